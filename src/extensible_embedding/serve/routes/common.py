"""What routes share: the service and the client of a request, streams, and errors as documented.

In: a request. Out: what belongs to it. Knows nothing of what it asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Annotated, Any, TypeVar, cast

import anyio
from fastapi import Depends, Request
from starlette.responses import StreamingResponse
from starlette.types import Send

from ..errors import CLIENT_LEFT, ApiError
from ..keys import Client
from ..schema import ErrorBody
from ..service import Service

_Value = TypeVar("_Value")
_WORDS = {
    400: "The request cannot be answered; the message says what to change.",
    401: "There is no key, or one that is not known; `WWW-Authenticate` says how it is sent.",
    403: "The key may not do this.",
    404: "There is no such thing.",
    405: "The path does not know this method.",
    408: "The body came too slowly.",
    409: "What is there is in the way.",
    413: "The body is too large.",
    422: "A field is missing, unknown or out of range; `param` names it.",
    429: "Too much at once; come back after `Retry-After` seconds.",
    500: "Something is wrong on the server, for example a damaged context.",
    502: "The engine failed.",
    503: "The server stops, or cannot answer now; come back after `Retry-After` seconds.",
    504: "It took too long.",
    507: "The disk refuses.",
}
Responses = dict[int | str, dict[str, Any]]


def errors_of(*more: int) -> Responses:
    """Errors of a route, for the OpenAPI schema: those that any may answer, and more."""
    statuses = sorted({400, 401, 403, 408, 413, 422, 429, 500, 503, *more})
    return {each: {"model": ErrorBody, "description": _WORDS[each]} for each in statuses}


def service_of(request: Request) -> Service:
    """The service of the app."""
    return cast(Service, request.app.state.service)


def client_of(request: Request) -> Client:
    """Who asks: the gate has seen to it."""
    return cast(Client, request.state.client)


ServiceOf = Annotated[Service, Depends(service_of)]
ClientOf = Annotated[Client, Depends(client_of)]


async def while_there(request: Request, work: Coroutine[Any, Any, _Value]) -> _Value:
    """Awaits work as long as the client is there, and cancels it when the client leaves.

    Raises:
        ApiError: the client has left.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ApiError(CLIENT_LEFT, "The client left before the answer was there.")
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """Server-sent events; when they end, or the client leaves, their generator is closed."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[str]) -> None:
        super().__init__(events, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._events = events

    async def stream_response(self, send: Send) -> None:
        """Sends them all."""
        try:
            await super().stream_response(send)
        finally:
            with anyio.CancelScope(shield=True):
                await self._events.aclose()


def event(data: str) -> str:
    """One event."""
    return f"data: {data}\n\n"


def note(request: Request, **fields: object) -> None:
    """Adds numbers to the line that is logged of a request."""
    noted = request.scope["state"].setdefault("noted", {})
    noted.update(fields)
