"""What help and usage errors say."""

from __future__ import annotations

import inspect
import re

import pytest
from typer.testing import CliRunner

from extensible_embedding import __version__, errors
from extensible_embedding.cli import app, commands, store, train

from .conftest import plain

COMMANDS = ("ask", "bench", "chat", "check", "compress", "demo", "eval", "info", "store", "train")


def test_help_lists_every_command() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    for command in COMMANDS:
        assert f" {command} " in result.stdout


NESTED = (
    *("eval lm", "bench cost", "bench ablations"),
    *(f"store {name}" for name in store.COMMANDS),
)


@pytest.mark.parametrize("command", [*COMMANDS, *NESTED])
def test_every_option_explains_itself(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0
    if command not in ("eval", "bench", "store"):
        for line in re.findall(r"^. .*--[a-z-]+ .*$", result.stdout, re.MULTILINE):
            described = re.sub(r"--?[a-z-]+|[A-Z|.\[\],]+|\W", "", line)
            assert len(described) > 10, line


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.stdout.strip() == f"extensible-embedding {__version__}"


def test_unknown_option_is_a_usage_error() -> None:
    assert CliRunner().invoke(app, ["ask", "--nonsense"]).exit_code == 2


@pytest.mark.parametrize("command", ["", *COMMANDS, *NESTED])
def test_help_is_for_people(command: str) -> None:
    shown = CliRunner().invoke(app, [*command.split(), "--help"]).stdout
    assert not re.search(r"<(bool|list|Path)|embedded|&#", shown)
    assert "\n  reader takes those rows" in shown or command


def test_help_names_every_exit_code() -> None:
    shown = plain(CliRunner().invoke(app, ["--help"]).stdout)
    codes = {kind.exit_code for kind in vars(errors).values() if isinstance(kind, type)}
    assert {int(code) for code in re.findall(r"[:,] (\d+) ", shown)} == {
        0,
        8,
        130,
        *codes,
    }  # 8: a verdict


def test_train_has_one_signature() -> None:
    """`commands.train` is there so that help does not import transformers."""
    ours, worker = (inspect.signature(each).parameters for each in (commands.train, train.train))
    assert list(ours) == list(worker)
