"""The OpenAPI schema says all that the server does."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.core.result import Ok
from schemathesis.specs.openapi import checks

from extensible_embedding.serve.app import create_app
from extensible_embedding.serve.schema import ErrorBody
from extensible_embedding.serve.service import Service

from .conftest import Make, serving


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
        assert {"400", "401", "403", "408", "413", "422", "429", "500"} <= errors, name
        for status in errors:
            content = operation["responses"][status]["content"]["application/json"]
            assert content["schema"] == {"$ref": f"#/components/schemas/{ErrorBody.__name__}"}


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
