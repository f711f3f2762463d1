"""The server put together: an ASGI app over a service, and uvicorn that runs it.

In: a service. Out: routes behind the gate, the OpenAPI schema, and the page if the package has one.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from itertools import chain
from pathlib import Path

import uvicorn
from fastapi import Depends, FastAPI
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from mcp.server.transport_security import TransportSecuritySettings
from starlette.requests import Request
from starlette.responses import FileResponse

from .._version import __version__
from ..errors import InputError
from . import errors, openapi
from .gate import Gate
from .mcp import mcp_server
from .patience import patient_protocol
from .routes import answers, contexts, state
from .service import Service

PAGE = Path(__file__).parent / "page"
_PUBLIC = ("/health", "/ready")
_WATCHING = ("/metrics",)
_WORDS = """OpenAI's protocol over a language model that reads documents longer than its window.

Contexts are documents that were compressed once; a chat names them in its field `extensible`, or
sends messages longer than the window, which are compressed on the way."""


def create_app(service: Service, *, page: Path = PAGE) -> FastAPI:
    """The app; it runs the service's engine while it runs itself."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running(), tools.session_manager.run():
            yield

    tools = mcp_server(service)
    # The gate has checked hosts, keys and sizes.
    tools_app = tools.streamable_http_app(
        stateless_http=True,
        json_response=True,
        max_request_body_size=1 << 40,
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
    )
    app = FastAPI(
        title="Extensible Embedding",
        version=__version__,
        description=_WORDS,
        docs_url=None,  # they would load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        generate_unique_id_function=_operation_id,
        dependencies=[Depends(HTTPBearer(auto_error=False))] if service.keys.required else [],
    )
    app.state.service = service
    routers = (answers.router, *contexts.routers, state.router)
    for router in routers:
        app.include_router(router)
    for route in tools_app.routes:
        # It keeps no sessions: a stream that a GET opens would never bring anything, and never end.
        route.methods = {"POST"}  # type: ignore[attr-defined]
        app.router.routes.append(route)
    files = _add_page(app, page)
    errors.install(app)
    openapi.complete(app)
    app.add_middleware(
        Gate,
        keys=service.keys,
        slots=service.slots,
        settings=service.settings,
        metrics=service.metrics,
        public=(*_PUBLIC, *files),
        watching=_WATCHING,
        routes=(*chain.from_iterable(each.routes for each in routers), *app.routes),
    )
    return app


def run(service: Service, host: str, port: int, started: Callable[[str], None]) -> None:
    """Serves until SIGINT or SIGTERM.

    Args:
        service: that answers.
        host: to listen at.
        port: to listen at; 0 takes any that is free.
        started: called with the URL when requests are taken, in the loop that takes them, so that
            it must not wait for an answer; never called if the engine does not start.

    Raises:
        InputError: the address cannot be listened at.
        Exception: the engine does not start, and why.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise InputError(
            f"A server listens at an address of this machine and a free port, but {host!r} and "
            f"{port} cannot be had ({error.strerror}); give another --host or --port."
        ) from error
    with listening:
        shown = f"[{host}]" if ":" in host else host
        server = server_of(service, host, port)
        server.tell = partial(started, f"http://{shown}:{listening.getsockname()[1]}")
        try:
            server.run(sockets=[listening])
        except SystemExit:  # uvicorn's, which says no more than that it did not start
            if service.failure is None:
                raise
            raise service.failure from None


class TellingServer(uvicorn.Server):
    """Tells when requests are taken: the engine runs by then."""

    tell: Callable[[], None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.tell is not None and not self.should_exit:  # it was stopped while it started
            self.tell()


def server_of(service: Service, host: str, port: int) -> TellingServer:
    """A server that is ready to run; it stops at SIGINT and SIGTERM when its requests are done."""
    settings = service.settings
    config = uvicorn.Config(
        create_app(service),
        host=host,
        port=port,
        http=patient_protocol(settings.header_timeout_s, settings.send_timeout_s),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(settings.stop_timeout_s)),
        h11_max_incomplete_event_size=64 * 1024,
    )
    return TellingServer(config)


def _operation_id(route: APIRoute) -> str:
    return route.name


def _add_page(app: FastAPI, page: Path) -> list[str]:
    """Serves the files of a folder, and its index.html at /."""
    paths = {}
    for file in sorted(page.rglob("*")):
        if file.is_file():
            relative = f"/{file.relative_to(page).as_posix()}"
            paths["/" if relative == "/index.html" else relative] = file
    for path, file in paths.items():
        app.add_route(path, _sends(file), include_in_schema=False)
    return list(paths)


def _sends(file: Path) -> Callable[[Request], Awaitable[FileResponse]]:
    async def send(_: Request) -> FileResponse:
        return FileResponse(file)

    return send
