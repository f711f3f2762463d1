"""Whether the server works, for whatever watches it.

In: nothing. Out: health, readiness, and metrics for Prometheus.
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from ...errors import ExtensibleError
from ..errors import ApiError
from ..schema import State
from .common import ServiceOf, errors_of

router = APIRouter(tags=["state"])
_METRICS = "text/plain; version=0.0.4; charset=utf-8"


@router.get("/health", responses=errors_of())
async def health() -> State:
    """Says that the server runs."""
    return State()


@router.get("/ready", responses=errors_of())
async def ready(request: Request, service: ServiceOf) -> State:
    """Says whether a request could be answered now; why not, the log says: no key is asked for."""
    try:
        await service.check()
    except ExtensibleError as error:
        request.state.failure = error
        raise ApiError(
            503,
            "The server cannot answer now; its log says why.",
            code="not_ready",
            headers={"Retry-After": "5"},
        ) from None
    return State()


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **errors_of()},
)
async def metrics(service: ServiceOf) -> Response:
    """Counters for Prometheus."""
    return Response(service.metrics.text(), media_type=_METRICS)
