"""The OpenAPI schema says all that the server does."""

from __future__ import annotations

import functools
import json
import operator
from typing import Any

import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.core.result import Ok
from schemathesis.specs.openapi import checks

from extensible_embedding.errors import EngineError
from extensible_embedding.serve.app import create_app
from extensible_embedding.serve.keys import Keys
from extensible_embedding.serve.schema import ErrorBody
from extensible_embedding.serve.service import Service

from .conftest import Make, SimpleEngine, serving
from .test_gate import api_of, key


@pytest.fixture
def schema(service: Service) -> dict[str, Any]:
    return create_app(service).openapi()


def operations(schema: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{method} {path}", operation)
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    ]


def test_every_error_is_documented_in_one_form(schema: dict[str, Any]) -> None:
    for name, operation in operations(schema):
        errors = {status for status in operation["responses"] if status[0] in "45"}
        assert {"400", "401", "403", "408", "413", "422", "429", "500", "503"} <= errors, name
        for status in errors:
            content = operation["responses"][status]["content"]["application/json"]
            assert content["schema"] == {"$ref": f"#/components/schemas/{ErrorBody.__name__}"}


def resolved(schema: dict[str, Any], found: Any) -> Any:
    """What a reference stands for."""
    while "$ref" in found:
        names = found["$ref"].removeprefix("#/").split("/")
        found = functools.reduce(operator.getitem, names, schema)
    return found


def references(found: Any) -> list[str]:
    if isinstance(found, list):
        return [each for value in found for each in references(value)]
    if not isinstance(found, dict):
        return []
    own = [found["$ref"]] if isinstance(found.get("$ref"), str) else []
    return own + [each for value in found.values() for each in references(value)]


def test_every_reference_leads_somewhere(schema: dict[str, Any]) -> None:
    for each in references(schema):
        assert resolved(schema, {"$ref": each}) is not None


def headers_of(schema: dict[str, Any], path: str, method: str, answer: Any) -> set[str]:
    """Documented headers of an answer; it must have those that are required, as they are said."""
    documented = schema["paths"][path][method]["responses"][str(answer.status_code)]["headers"]
    for name, header in documented.items():
        header = resolved(schema, header)
        assert header["required"]
        sent = answer.headers[name]
        whole = header["schema"]["type"] == "integer"
        jsonschema.validate(int(sent) if whole else sent, header["schema"])
    return set(documented)


def test_headers_are_documented_where_they_are_sent(make: Make, engine: SimpleEngine) -> None:
    service = make(Keys([key("alice", max_concurrent=1), key("bob")]))
    schema = create_app(service).openapi()
    alice, bob = ({"Authorization": f"Bearer {name}"} for name in ("alice", "bob"))
    models, ready = ("/v1/models", "get"), ("/ready", "get")
    with api_of(service, "example.org") as api:
        assert headers_of(schema, *models, api.get(models[0], headers=bob)) == {"X-Request-Id"}
        refused = api.get(models[0])
        assert headers_of(schema, *models, refused) == {"X-Request-Id", "WWW-Authenticate"}
        with service.slots.taken(service.keys.client("Bearer alice")):
            busy = api.get(models[0], headers=alice)
        assert headers_of(schema, *models, busy) == {"X-Request-Id", "Retry-After"}
        engine.fails = EngineError("It is gone.")
        gone = api.get(ready[0])
        assert headers_of(schema, *ready, gone) == {"X-Request-Id", "Retry-After"}


@pytest.mark.parametrize("fails", [False, True], ids=["whole", "broken"])
@pytest.mark.parametrize(
    ("path", "asked", "form"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Who?"}]}, "ChatChunk"),
        ("/v1/completions", {"prompt": "It is"}, "Completion"),
    ],
)
def test_events_of_streams_are_as_documented(
    service: Service, engine: SimpleEngine, path: str, asked: dict[str, Any], form: str, fails: bool
) -> None:
    engine.fails = EngineError("It is gone.") if fails else None
    options = {"include_usage": True, "continuous_usage_stats": True}
    with api_of(service) as api:
        body = {"model": "extensible", "stream": True, "stream_options": options, **asked}
        lines = api.post(path, json=body).text.split("\n\n")
    events = [each.removeprefix("data: ") for each in lines if each]
    schema = create_app(service).openapi()
    content = schema["paths"][path]["post"]["responses"]["200"]["content"]["text/event-stream"]
    item, data = content["itemSchema"], content["itemSchema"]["properties"]["data"]
    for each in events:
        jsonschema.validate({"data": each}, item)
    said, done = data["anyOf"]
    forms = [resolved(schema, each)["title"] for each in said["contentSchema"]["anyOf"]]
    assert forms == [form, ErrorBody.__name__]
    assert (events[-1] == done["const"]) == (not fails)
    for each in events[:-1] if not fails else events:
        used = ErrorBody.__name__ if "error" in json.loads(each) else form
        part = {"$ref": f"#/components/schemas/{used}", "components": schema["components"]}
        jsonschema.validate(json.loads(each), part)
    assert len(events) > 2 or fails


def test_operations_have_names_and_words(schema: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, operation in operations(schema)]
    assert len(set(names)) == len(names)
    assert all(operation["description"] for _, operation in operations(schema))


# What the schema allows may still not fit the window, or be no name that a context can have.
TOO_STRICT = [checks.positive_data_acceptance]
# In a form anything is text, be it of an object that should have been text.
IN_FORMS = [*TOO_STRICT, checks.negative_data_rejection]
FORMS = ("/v1/contexts/files",)


@pytest.mark.parametrize(
    "examples", [4, pytest.param(50, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_nothing_else_is_ever_answered(make: Make, examples: int) -> None:
    """schemathesis sends what the schema allows, and what it does not."""
    with serving(make(max_new_tokens=2)) as url:
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        for result in schema.get_all_operations():
            assert isinstance(result, Ok)
            operation = result.ok()
            for mode in schemathesis.GenerationMode:
                _try(operation, mode, examples)


def _try(operation: Any, mode: Any, examples: int) -> None:
    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: Any) -> None:
        case.call_and_validate(excluded_checks=IN_FORMS if case.path in FORMS else TOO_STRICT)

    try:
        ask()
    except Unsatisfiable:  # there is no way to break an operation that takes nothing
        assert mode is schemathesis.GenerationMode.NEGATIVE
