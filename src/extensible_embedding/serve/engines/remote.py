"""An engine that is a server elsewhere: one POST a request, tokens as server-sent events.

In: requests of token ids and rows. Out: new token ids. Closing a generation closes its connection,
by which the server knows to end it. What is sent and what an event means is the subclass's; how
requests run side by side is the server's.

Axes: S prompt row, H reader hidden size.
"""

from __future__ import annotations

import asyncio
import json
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from torch import Tensor

from ...errors import EngineError
from .base import Engine, NewTokens, Request
from .embeds import EmbedTokens, joined_rows

Parser = Callable[[dict[str, Any]], list[NewTokens]]
"""What one event of an answer says; most say one thing. It raises ValueError, KeyError or TypeError
where that is not what the server's documentation says."""


class RemoteEngine(Engine):
    """Sends requests to a server.

    Args:
        url: where it is.
        embed_tokens: the reader's table.
        api_key: what it was started with, if it was.
        connect_timeout_s: until it takes a connection.
        read_timeout_s: until something comes, such as the first token of a long prompt.
        transport: how it is reached, if not by the network.
    """

    product: str
    """What runs there, for errors."""
    path: str
    """Of requests."""
    format_advice: str
    """What to do where it sends something else than documented."""

    def __init__(
        self,
        url: str,
        embed_tokens: EmbedTokens,
        *,
        api_key: str | None = None,
        connect_timeout_s: float = 10.0,
        read_timeout_s: float = 600.0,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._embed_tokens = embed_tokens
        self._num_running = 0
        self._client = httpx2.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx2.Timeout(read_timeout_s, connect=connect_timeout_s, pool=None),
            limits=httpx2.Limits(),  # it is the server that knows how many requests it takes
            transport=transport,
        )

    @abstractmethod
    def fields(self, request: Request, rows: Tensor) -> dict[str, Any]:
        """What is sent, of a prompt's rows (S, H)."""

    @abstractmethod
    def parser(self) -> Parser:
        """Of the events of one answer."""

    def advice(self, message: str, code: object) -> str:
        """What to do about a refusal."""
        return "check its API key" if code == 401 else "see its log"

    async def __aexit__(self, *exc_info: object) -> None:
        await self._client.aclose()

    async def check(self) -> None:
        async with self.answer("GET", "/health"):
            return

    def numbers(self) -> Mapping[str, float]:
        return {"running": self._num_running}

    async def generate(self, request: Request) -> AsyncIterator[NewTokens]:
        body, parse = await asyncio.to_thread(self._body, request), self.parser()
        self._num_running += 1
        try:
            async with self.answer("POST", self.path, body) as response:
                async for line in _lines(response):
                    for piece in self._pieces(line, parse):
                        yield piece
                        if piece.finish_reason:
                            return
            raise EngineError(
                f"{self.product} at {self.url} ended an answer before its end; ask again."
            )
        finally:
            self._num_running -= 1

    def refusal(self, message: str, code: object) -> EngineError:
        """The error for what the server refused."""
        return EngineError(
            f"{self.product} at {self.url} refused a request ({code}: {message.rstrip('.')}); "
            f"{self.advice(message, code)}."
        )

    @asynccontextmanager
    async def answer(
        self, method: str, path: str, body: bytes | None = None
    ) -> AsyncIterator[httpx2.Response]:
        """A response that is no error; its body may be still to come."""
        headers = {"Content-Type": "application/json"} if body else {}
        where = f"{self.product} at {self.url}"
        if self._client.is_closed:
            raise EngineError(f"The engine of {where} takes no request: it has been stopped.")
        try:
            async with self._client.stream(method, path, content=body, headers=headers) as response:
                if response.status_code != httpx2.codes.OK:
                    await response.aread()
                    raise self.refusal(_message(response), response.status_code)
                yield response
        except httpx2.TimeoutException as error:
            raise EngineError(
                f"{where} did not answer in time ({type(error).__name__}); ask for less, or give "
                "it longer time-outs."
            ) from error
        except httpx2.HTTPError as error:
            raise EngineError(
                f"{where} cannot be reached ({type(error).__name__}: {error}); check the address, "
                "and that it runs."
            ) from error

    def _body(self, request: Request) -> bytes:
        """The request as JSON; of a long prompt it is megabytes."""
        fields = self.fields(request, joined_rows(request, self._embed_tokens))
        try:
            return json.dumps(fields, allow_nan=False).encode()
        except ValueError as error:
            raise EngineError(
                "Rows are finite numbers, but some of these are not; compress the text again."
            ) from error

    def _pieces(self, line: str, parse: Parser) -> list[NewTokens]:
        kind, _, data = line.partition(":")
        if kind != "data" or data.strip() == "[DONE]":
            return []
        try:
            event = json.loads(data)
            if "error" in event:
                raise self.refusal(*_error(event["error"]))
            return parse(event)
        except (ValueError, KeyError, TypeError) as error:
            raise EngineError(
                f"{self.product} at {self.url} sends token ids as its documentation says, but it "
                f"sent {_shape(data)}; {self.format_advice}."
            ) from error


async def _lines(response: httpx2.Response) -> AsyncIterator[str]:
    """Lines of an event stream; `aiter_lines` breaks at characters that JSON may hold, too."""
    rest = b""
    async for data in response.aiter_bytes():
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line.decode(errors="replace")
    yield rest.decode(errors="replace")


def _shape(data: str) -> str:
    """What an event is like, without what it says: that may be of an answer."""
    try:
        event = json.loads(data)
    except ValueError:
        return f"{len(data)} characters that are no JSON"
    if isinstance(event, dict):
        return f"the fields {', '.join(map(str, event))[:200] or '(none)'}"
    return f"JSON of type {type(event).__name__}"


def _error(error: Any) -> tuple[str, object]:
    """Message and code of an error in OpenAI's form."""
    return str(error["message"]), error.get("code")


def _message(response: httpx2.Response) -> str:
    """Of an error: OpenAI's form, an older one of theirs, or whatever stands there."""
    try:
        body = response.json()
        error = body.get("error", body)
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, AttributeError):
        return response.text[:200] or response.reason_phrase
