"""What help and usage errors say."""

from __future__ import annotations

import re

import pytest
from typer.testing import CliRunner

from extensible_embedding import __version__
from extensible_embedding.cli import app

COMMANDS = ("ask", "chat", "compress", "demo", "eval", "info", "train")


def test_help_lists_every_command() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    for command in COMMANDS:
        assert f" {command} " in result.stdout


@pytest.mark.parametrize("command", [*COMMANDS, "eval lm"])
def test_every_option_explains_itself(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0
    if command != "eval":
        for line in re.findall(r"^. .*--[a-z-]+ .*$", result.stdout, re.MULTILINE):
            described = re.sub(r"--?[a-z-]+|[A-Z|.\[\],]+|\W", "", line)
            assert len(described) > 10, line


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.stdout.strip() == f"extensible-embedding {__version__}"


def test_unknown_option_is_a_usage_error() -> None:
    assert CliRunner().invoke(app, ["ask", "--nonsense"]).exit_code == 2
