"""What a client is told when something goes wrong: a status, and a body in OpenAI's form.

In: errors of the library, of validation and of HTTP. Out: `{"error": {"message", "type", "param",
"code"}}`. What a client cannot mend is not explained to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from ..errors import (
    CheckpointError,
    EngineError,
    ExtensibleError,
    MismatchError,
    StorageError,
    WindowError,
)

CLIENT_LEFT = 499
"""Status in logs and metrics of a request whose client left; nobody receives it."""
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_STATUS: Sequence[tuple[type[ExtensibleError], int, str | None, str | None]] = (
    (WindowError, 400, "context_length_exceeded", None),
    (MismatchError, 409, "made_by_another", None),
    (
        CheckpointError,
        500,
        "damaged",
        "A context that was asked for cannot be read: it is damaged, or it is being changed; try "
        "again, and see the server's log.",
    ),
    (
        StorageError,
        507,
        "storage",
        "The store cannot do this now: its disk refuses, or others are changing it; try again, "
        "and see the server's log.",
    ),
    (
        EngineError,
        502,
        "engine",
        "The engine that runs the model does not answer as it should; the server's log says why.",
    ),
)
"""Of each kind its status, its code, and the sentence that stands for its own if that may tell of
folders and addresses of the server."""


class ApiError(HTTPException):
    """An answer that is an error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.code, self.param = code, param


def api_error(error: Exception) -> ApiError:
    """Any error as one that can be answered."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):
        if isinstance(error.__cause__, UnicodeDecodeError):
            return ApiError(
                400, "The body is JSON in UTF-8, but this one is not; mend it.", code="invalid_json"
            )
        return ApiError(error.status_code, str(error.detail), headers=error.headers)
    if isinstance(error, RequestValidationError):
        return _of_validation(error)
    if isinstance(error, ExtensibleError):
        for kind, status, code, told in _STATUS:
            if isinstance(error, kind):
                return ApiError(status, told or str(error), code=code)
        return ApiError(400, str(error))
    return ApiError(500, "Something went wrong on the server; its log has more.", code="internal")


def body_of(error: ApiError) -> dict[str, Any]:
    """What is sent."""
    kind = "server_error" if error.status_code >= 500 else "invalid_request_error"
    fields = {
        "message": str(error.detail),
        "type": _TYPES.get(error.status_code, kind),
        "param": error.param,
        "code": error.code,
    }
    return {"error": fields}


def response_of(error: ApiError) -> JSONResponse:
    """The answer."""
    return JSONResponse(body_of(error), error.status_code, error.headers)


def _of_validation(error: RequestValidationError) -> ApiError:
    """The first fault, with its place; what was sent is not repeated."""
    first: Mapping[str, Any] = error.errors()[0]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "")
        return ApiError(
            400, f"The body is JSON, but this one is not ({reason}); mend it.", code="invalid_json"
        )
    place = ".".join(map(str, first["loc"][1:])) or str(first["loc"][0])
    return ApiError(422, f"{place}: {first['msg']}", param=place)


def install(app: FastAPI) -> None:
    """Makes an app answer every error in this form."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        made = api_error(error)
        if made.status_code >= 500:
            request.scope["state"].setdefault("failure", error)
        return response_of(made)

    for kind in (HTTPException, RequestValidationError, ExtensibleError):
        app.add_exception_handler(kind, answer)
