"""`extensible serve` and `extensible mcp`, as processes of their own."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from openai import OpenAI
from serve.processes import PROGRAM, served

from extensible_embedding import ContextStore
from extensible_embedding.cli.serve import check_installed, parse_engine_options
from extensible_embedding.errors import InputError
from extensible_embedding.serve.choice import EngineChoice
from extensible_embedding.serve.keys import Keys
from extensible_embedding.serve.settings import ServeSettings

from .conftest import Run, refused


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    """Commands that serve send all logs to the stderr of their process, which is that of a test."""
    root = logging.getLogger()
    before = root.handlers, root.level
    yield
    root.handlers, root.level = before


@pytest.mark.slow
def test_a_server_answers_and_stops_when_told(
    tiny_reader_folder: Path, embedder_folder: Path, library: Path
) -> None:
    models = ("--reader", tiny_reader_folder, "--embedder", embedder_folder)
    with (
        served(library, *models, "--name", "tiny") as (process, url),
        OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client,
    ):
        answer = client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "Who?"}],
            max_tokens=4,
            extra_body={"extensible": {"contexts": ["book"]}},
        )
        assert answer.usage.completion_tokens
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, -signal.SIGTERM)


@pytest.mark.slow
def test_agents_speak_to_it_on_stdin_and_stdout(
    tiny_reader_folder: Path, embedder_folder: Path, library: Path
) -> None:
    arguments = ["mcp", str(library), "--reader", str(tiny_reader_folder)]
    arguments += ["--embedder", str(embedder_folder)]

    async def ask() -> object:
        parameters = StdioServerParameters(command=PROGRAM[0], args=[*PROGRAM[1:], *arguments])
        async with Client(stdio_client(parameters)) as client:
            await client.call_tool("add_document", {"name": "heron", "text": "It waits. " * 9})
            return await client.call_tool("list_documents", {})

    listed = asyncio.run(ask())
    names = [each["name"] for each in listed.structured_content["documents"]]
    assert names == ["book", "heron"]
    assert ContextStore(library).open("heron").num_tokens == 90


def test_other_machines_need_keys(run: Run, no_reader: None) -> None:
    refused(run("serve", "library", "--host", "0.0.0.0"), 2, "--keys", "0.0.0.0")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--keys", "none.yaml"), "none.yaml"),
        (("--k", "1"), "--k is 1"),
        (("--k", "auto"), "one k"),
        (("--expand", "some"), "some"),
        (("--name", " "), "' '"),
        (("--name", "a\nb"), "give another"),
        (("--max-body", "0"), "--max-body"),
        (("--engine", "tgi"), "llama.cpp"),
        (("--engine", "sglang"), "add it"),
        (("--engine-url", "http://localhost"), "leave it out"),
        (("--engine-option", "max_running"), "KEY=VALUE"),
        (("--engine-option", "=3"), "KEY=VALUE"),
        (("--engine-option", "max_run=3"), "nearest are max_running"),
    ],
)
def test_what_cannot_be_is_told_before_the_models_load(
    run: Run, no_reader: None, arguments: tuple[str, str], words: str
) -> None:
    refused(run("serve", "library", *arguments), 2, words)


def test_options_of_an_engine_are_json_or_text(
    run: Run, no_reader: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["max-running=3", "dtype=float32", 'limits={"image": 0}', "eager=true", "name=a=b"]
    expected = {
        "max_running": 3,
        "dtype": "float32",
        "limits": {"image": 0},
        "eager": True,
        "name": "a=b",
    }
    assert parse_engine_options(given) == expected
    twice = ("--engine-option", "max_running=3", "--engine-option", "max-running=4")
    refused(run("serve", "library", *twice), 2, "'max_running' twice")
    choices = []

    def service(_: object, __: object, choice: EngineChoice, *___: object) -> None:
        choices.append(choice)
        raise InputError("That is enough.")

    monkeypatch.setattr("extensible_embedding.cli.serve._service", service)
    options = ("--engine-option", "max_running=3", "--engine-option", "prefill_rows=64")
    refused(run("serve", "library", *options), 2, "enough")
    assert choices == [EngineChoice(options={"max_running": 3, "prefill_rows": 64})]


def test_a_file_is_no_store(run: Run, no_reader: None, book: Path) -> None:
    refused(run("serve", book), 2, "book.txt")
    refused(run("mcp", book), 2, "book.txt")


def test_agents_keep_as_much_text_as_they_may(
    run: Run, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = []

    def service(
        store: object, keys: Keys, engine: object, settings: ServeSettings, _: object
    ) -> None:
        limits.extend([settings.limits, keys.client(None).limits])
        raise InputError("That is enough.")

    monkeypatch.setattr("extensible_embedding.cli.serve._service", service)
    refused(run("mcp", library, "--max-text", "2"), 2, "enough")
    assert [each.max_text_bytes for each in limits] == [2 << 20, 2 << 20]
    refused(run("mcp", library, "--max-text", "0"), 2, "--max-text")


def test_a_k_that_no_chunk_has_is_told_at_the_start(run: Run, library: Path) -> None:
    refused(run("serve", library, "--k", "4096"), 2, "k is 4096", "give for example")


def test_a_port_that_is_taken_is_told(run: Run, library: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(run("serve", library, "--port", port), 2, str(port))


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from extensible_embedding.errors import MissingExtraError

    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(MissingExtraError, match=r"uvicorn is missing.*\[serve\]"):
        check_installed()
