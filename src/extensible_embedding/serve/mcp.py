"""Tools for agents and desktop assistants, by the Model Context Protocol.

In: a service. Out: an MCP server with the tools add_document, list_documents and ask; over stdio it
also reads files of its own machine. Knows nothing of transports but who asks.
"""

from __future__ import annotations

import logging
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import BaseModel, Field

from .._version import __version__
from ..errors import ExtensibleError
from .errors import ApiError, api_error
from .keys import Client
from .logs import fault_fields, log
from .routes.common import while_there
from .schema import ChatMessage, ChatRequest, Extensible, Source
from .service import Service

_Value = TypeVar("_Value")
_WORDS = """Long documents for a small reader: add a document once, then ask about it as often as \
you like. It is kept in compressed form, so that a whole book fits the reader's window. Rows keep \
the gist; passages that share words with the question are read word for word."""


class Document(BaseModel):
    """A document that is kept."""

    name: str
    title: str
    tokens: int


class DocumentList(BaseModel):
    """All that may be asked about."""

    documents: list[Document]


class Reply(BaseModel):
    """An answer, and what it was read from."""

    answer: str
    k: int = Field(description="Tokens per row that the documents were read at; 1 is word for word")
    sources: list[Source]


def mcp_server(service: Service, *, files: bool = False) -> MCPServer[Any]:
    """An MCP server over a service that runs.

    Args:
        service: that keeps and answers.
        files: whether documents may be read from files of this machine: never for other machines.
    """
    server: MCPServer[Any] = MCPServer(
        "extensible-embedding", instructions=_WORDS, version=__version__, log_level="WARNING"
    )

    @server.tool()
    async def add_document(name: str, text: str, ctx: Context[Any, Any]) -> Document:
        """Keeps a text under a name, to be asked about. A document of that name is replaced."""
        return await _while_there(ctx, _add(service, _client_of(ctx), name, text, ""))

    @server.tool()
    async def list_documents(ctx: Context[Any, Any]) -> DocumentList:
        """Lists the documents that can be asked about."""
        with _told():
            kept = await service.library.all(_client_of(ctx))
        return DocumentList(
            documents=[
                Document(name=each.name, title=each.manifest.title, tokens=each.manifest.num_tokens)
                for each in kept
            ]
        )

    @server.tool()
    async def ask(
        question: str,
        documents: list[str],
        ctx: Context[Any, Any],
        k: int | Literal["auto"] = "auto",
        max_tokens: int = 256,
    ) -> Reply:
        """Asks a question about documents, by their names, and says where the answer is from."""
        work = _ask(service, _client_of(ctx), question, documents, k, max_tokens)
        return await _while_there(ctx, work)

    if files:

        @server.tool()
        async def add_file(path: str, ctx: Context[Any, Any], name: str = "") -> Document:
            """Keeps the text of a file: .txt, .md, .html, .epub, .pdf, .docx, code.

            Its name is the file's, unless one is given.
            """
            with _told():
                found = await service.parsing.file(path)
            name = name or Path(path).stem
            return await _add(service, _client_of(ctx), name, found.text, found.title)

    return server


def _client_of(ctx: Context[Any, Any]) -> Client:
    """Over HTTP the client that the gate let in; over stdio there is one."""
    request = ctx.request_context.request
    if request is None:
        return Client()
    client: Client = request.state.client
    return client


async def _while_there(ctx: Context[Any, Any], work: Coroutine[Any, Any, _Value]) -> _Value:
    """Over HTTP, work ends when the client leaves; over stdio, the server does."""
    request = ctx.request_context.request
    if request is None:
        return await work
    with _told():
        return await while_there(request, work)


@contextmanager
def _told() -> Iterator[None]:
    """What cannot be done is told to the agent, which may know better."""
    try:
        yield
    except (ApiError, ExtensibleError) as error:
        made = api_error(error)
        if made.status_code >= 500:
            log("tool", level=logging.ERROR, **fault_fields(error))
        raise ToolError(str(made.detail)) from error


async def _add(service: Service, client: Client, name: str, text: str, title: str) -> Document:
    with _told():
        kept = await service.library.add(client, name, text, title=title, replace=True)
    return Document(name=kept.name, title=kept.manifest.title, tokens=kept.manifest.num_tokens)


async def _ask(
    service: Service,
    client: Client,
    question: str,
    documents: Sequence[str],
    k: int | Literal["auto"],
    max_tokens: int,
) -> Reply:
    try:
        request = ChatRequest(
            model=service.settings.model,
            messages=[ChatMessage(role="user", content=question)],
            max_tokens=max_tokens,
            extensible=Extensible(contexts=list(documents), k=k, expand="auto", cite=True),
        )
    except ValueError as error:
        raise ToolError("k and max_tokens are 1 or more, and documents are names.") from error
    with _told():
        answering = await service.chat(client, request)
        async for _ in answering.pieces:
            pass
    usage = answering.usage.extensible
    sources = [Source.model_validate(vars(each)) for each in answering.citations or ()]
    return Reply(answer=answering.text.strip(), k=usage.k, sources=sources)
