"""The server put together: an ASGI app over a service, and uvicorn that runs it.

In: a service. Out: routes behind the gate, the OpenAPI schema, and the page if the package has one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn
from fastapi import Depends, FastAPI
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from starlette.requests import Request
from starlette.responses import FileResponse

from .._version import __version__
from . import errors
from .gate import Gate
from .patience import patient_protocol
from .routes import answers, contexts, state
from .service import Service

PAGE = Path(__file__).parent / "page"
_PUBLIC = ("/health", "/ready")
_WORDS = """OpenAI's protocol over a language model that reads documents longer than its window.

Contexts are documents that were compressed once; a chat names them in its field `extensible`, or
sends messages longer than the window, which are compressed on the way."""


def create_app(service: Service, *, page: Path = PAGE) -> FastAPI:
    """The app; it runs the service's engine while it runs itself."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

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
    for routes in (answers, contexts, state):
        app.include_router(routes.router)
    files = _add_page(app, page)
    errors.install(app)
    app.add_middleware(
        Gate,
        keys=service.keys,
        slots=service.slots,
        settings=service.settings,
        metrics=service.metrics,
        public=(*_PUBLIC, *files),
    )
    return app


def server_of(service: Service, host: str, port: int) -> uvicorn.Server:
    """A server that is ready to run; it stops at SIGINT and SIGTERM when its requests are done."""
    settings = service.settings
    config = uvicorn.Config(
        create_app(service),
        host=host,
        port=port,
        http=patient_protocol(settings.header_timeout_s),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(settings.stop_timeout_s)),
        h11_max_incomplete_event_size=64 * 1024,
    )
    return uvicorn.Server(config)


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


def _sends(file: Path):  # type: ignore[no-untyped-def]
    async def send(_: Request) -> FileResponse:
        return FileResponse(file)

    return send
