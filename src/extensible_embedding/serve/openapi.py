"""What the OpenAPI schema says beyond what FastAPI finds: the events of streams, and headers.

In: the schema of the routes. Out: the same, with the forms of events as components and every header
that answers have. Knows nothing of routes but their schema.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from .schema import ChatChunk, ErrorBody

Schema = dict[str, Any]
_MODELS = "#/components/schemas/{model}"
_HEADERS: dict[str, Schema] = {
    "X-Request-Id": {
        "description": "Of this request, as the server's log names it.",
        "required": True,
        "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
    },
    "Retry-After": {
        "description": "Seconds after which to ask again.",
        "required": True,
        "schema": {"type": "integer", "minimum": 1},
    },
    "WWW-Authenticate": {
        "description": "How a key is sent.",
        "required": True,
        "schema": {"type": "string", "const": "Bearer"},
    },
}
_OF_STATUS = {"401": ["WWW-Authenticate"], "429": ["Retry-After"], "503": ["Retry-After"]}
"""Headers of some answers; `X-Request-Id` is one of all."""


def events_of(chunk: type[Any]) -> Schema:
    """A media type: server-sent events of which each holds a `chunk` as JSON, the last [DONE].

    FastAPI says it in the same way, with OpenAPI 3.2's `itemSchema`.
    """
    models = [{"$ref": _MODELS.format(model=each.__name__)} for each in (chunk, ErrorBody)]
    data = {
        "description": f"A {chunk.__name__}; after an error nothing else comes, and at the end of "
        "a whole answer [DONE] does.",
        "anyOf": [
            {
                "type": "string",
                "contentMediaType": "application/json",
                "contentSchema": {"anyOf": models},
            },
            {"const": "[DONE]"},
        ],
    }
    return {"itemSchema": {"type": "object", "required": ["data"], "properties": {"data": data}}}


def complete(app: FastAPI) -> None:
    """Makes an app's schema say it all."""
    found: Callable[[], Schema] = app.openapi

    def whole() -> Schema:
        if app.openapi_schema is None:
            _add(found())  # which keeps it
        return found()

    app.openapi = whole  # type: ignore[method-assign]


def _add(schema: Schema) -> None:
    components = schema["components"]
    _, models = models_json_schema([(ChatChunk, "serialization")], ref_template=_MODELS)
    for name, model in models["$defs"].items():
        components["schemas"].setdefault(name, model)
    components["headers"] = _HEADERS
    for operations in schema["paths"].values():
        for operation in operations.values():
            for status, answer in operation["responses"].items():
                names = ["X-Request-Id", *_OF_STATUS.get(status, [])]
                refs = {name: {"$ref": f"#/components/headers/{name}"} for name in names}
                answer.setdefault("headers", {}).update(refs)
