"""Forms whose texts are UTF-8, or refused.

In: a request with a form. Out: its fields and files, as FastAPI takes them. Starlette reads bytes
that are no UTF-8 as Latin-1, and in any encoding that a request names: a title would be kept
wrong, or with half of a character. Knows nothing of what the fields mean.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser

from ..errors import ApiError


class Utf8Route(APIRoute):
    """A route that reads its forms so."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """As FastAPI's, for requests of our kind."""
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            return await handle(_Utf8Request(request.scope, request.receive))

        return handler


class _Utf8Request(Request):
    async def _get_form(self, **limits: Any) -> FormData:
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if self._form is None and kind == "multipart/form-data":
            try:
                self._form = await _Utf8Parser(self.headers, self.stream(), **limits).parse()
            except MultiPartException as error:
                raise ApiError(400, error.message) from None
        return await super()._get_form(**limits)


class _Utf8Parser(MultiPartParser):
    def on_part_begin(self) -> None:
        if self._charset != "utf-8":
            raise _refused("this one is said to be in another encoding")
        super().on_part_begin()

    def on_headers_finished(self) -> None:
        _check(self._current_part.content_disposition or b"", "the name of a field or file")
        super().on_headers_finished()

    def on_part_end(self) -> None:
        if self._current_part.file is None:
            _check(self._current_part.data, f"the field {self._current_part.field_name[:100]!r}")
        super().on_part_end()


def _check(data: bytes | bytearray, what: str) -> None:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise _refused(f"{what} has an invalid byte 0x{data[error.start]:02x}") from None


def _refused(what: str) -> ApiError:
    return ApiError(
        400, f"The texts of a form are UTF-8, but {what}; send it as UTF-8.", code="not_utf8"
    )
