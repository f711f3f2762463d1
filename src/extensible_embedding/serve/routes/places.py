"""A place for what a request brings, asked for before its body comes.

In: what tells whether there is a place. Out: a kind of route. FastAPI reads a body before anything
else of a route runs: a client would send all of a long file to be told to come back.

A place is looked for and not held: who sends slowly keeps nobody else from it. It may be gone when
the body is there, and the client is told so then.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response

from ..keys import Client
from ..service import Service
from .common import client_of, service_of
from .forms import Utf8Route


def route_with_place(check: Callable[[Service, Client], None]) -> type[Utf8Route]:
    """Routes that refuse a request without a place before they read its body.

    Args:
        check: raises ApiError, 429, if there is none for this client now.
    """

    class PlacedRoute(Utf8Route):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def handler(request: Request) -> Response:
                check(service_of(request), client_of(request))
                return await handle(request)

            return handler

    return PlacedRoute


def embedder_place(service: Service, client: Client) -> None:
    """For a text that becomes rows."""
    service.embedding.check(client)


def parser_place(service: Service, client: Client) -> None:
    """For a file, whose text then becomes rows."""
    service.parsing.check(client)
    service.embedding.check(client)
