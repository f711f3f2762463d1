"""Tools for agents, with the client of the mcp package."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from mcp import Client

from extensible_embedding import ContextStore
from extensible_embedding.serve.mcp import mcp_server
from extensible_embedding.serve.service import Service

from .conftest import serving

WORDS = "The heron waits by the mill. " * 4


async def use(service: Service, *calls: tuple[str, dict[str, Any]]) -> list[Any]:
    async with service.running(), Client(mcp_server(service, files=True)) as client:
        return [await client.call_tool(name, arguments) for name, arguments in calls]


def test_tools_are_described(service: Service) -> None:
    async def tools(files: bool) -> dict[str, str]:
        async with Client(mcp_server(service, files=files)) as client:
            return {tool.name: tool.description for tool in (await client.list_tools()).tools}

    found = asyncio.run(tools(True))
    assert set(found) == {"add_document", "add_file", "list_documents", "ask"}
    assert all(found.values())
    assert set(asyncio.run(tools(False))) == {"add_document", "list_documents", "ask"}


def test_a_document_is_added_listed_and_asked_about(
    service: Service, store: ContextStore, tmp_path: Path
) -> None:
    (tmp_path / "mill.txt").write_text("The mill is old.", encoding="utf-8")
    added, file, listed, answer = asyncio.run(
        use(
            service,
            ("add_document", {"name": "heron", "text": WORDS}),
            ("add_file", {"path": str(tmp_path / "mill.txt")}),
            ("list_documents", {}),
            ("ask", {"question": "Who waits?", "documents": ["heron"], "max_tokens": 4}),
        )
    )
    assert not any(each.is_error for each in (added, file, listed, answer))
    assert store.open("heron").text() == WORDS
    names = [each["name"] for each in listed.structured_content["documents"]]
    assert names == ["heron", "mill"]
    assert answer.structured_content["k"] >= 1
    assert answer.structured_content["sources"]


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("ask", {"question": "Who?", "documents": ["none"]}, "there is no 'none'"),
        ("ask", {"question": "Who?", "documents": [], "k": 0}, "1 or more"),
        ("add_file", {"path": "none.txt"}, "there is no 'none.txt'"),
        ("add_document", {"name": "a/b", "text": "x"}, "no path"),
    ],
)
def test_what_cannot_be_done_is_told(
    service: Service, name: str, arguments: dict[str, Any], words: str
) -> None:
    (answer,) = asyncio.run(use(service, (name, arguments)))
    assert answer.is_error
    assert words in answer.content[0].text


def test_the_same_tools_are_there_over_http(service: Service, store: ContextStore) -> None:
    async def add(url: str) -> Any:
        async with Client(f"{url}/mcp") as client:
            return await client.call_tool("add_document", {"name": "heron", "text": WORDS})

    with serving(service) as url:
        added = asyncio.run(add(url))
    assert not added.is_error
    assert store.open("heron").text() == WORDS
