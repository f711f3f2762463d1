"""The texts of a form are UTF-8, or refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from extensible_embedding import ContextStore
from extensible_embedding.serve.app import create_app
from extensible_embedding.serve.service import Service

from .test_contexts import error_of


@pytest.fixture
def api(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service), base_url="http://localhost") as client:
        yield client


def form_of(file_name: bytes, field: bytes, value: bytes, more: str) -> dict[str, Any]:
    """A form with a file and a field, byte by byte."""
    parts = [(b'"file"; filename="' + file_name + b'"', b"Hello."), (b'"' + field + b'"', value)]
    body = b"".join(
        b"--XX\r\nContent-Disposition: form-data; name=%s\r\n\r\n%s\r\n" % part for part in parts
    )
    headers = {"Content-Type": f"multipart/form-data; boundary=XX{more}"}
    return {"content": body + b"--XX--\r\n", "headers": headers}


@pytest.mark.parametrize(
    ("field", "value", "more"),
    [
        (b"title", b"caf\xe9", ""),
        (b"name", b"a\xed\xa0\x80b", ""),  # half of a character
        (b"caf\xff", b"x", ""),
        (b"title", b"\xff\xfe\x00\xd8", "; charset=utf-16"),
        (b"title", b"a\\ud800b", "; charset=unicode_escape"),
        (b"name", b"a+2AA-b", "; charset=utf-7"),
        (b"title", b"x", "; charset=unknown"),
    ],
)
def test_texts_of_a_form_are_utf_8(
    api: TestClient, field: bytes, value: bytes, more: str, store: ContextStore
) -> None:
    answer = api.post("/v1/contexts/files", **form_of(b"a.txt", field, value, more))
    assert answer.status_code == 400, answer.text
    assert error_of(answer)["code"] == "not_utf8"
    assert "texts of a form are UTF-8" in error_of(answer)["message"]
    assert len(store) == 0


@pytest.mark.parametrize("more", ["", "; charset=UTF-8", "; charset=utf8"])
def test_a_form_in_utf_8_is_kept_as_it_is(api: TestClient, more: str) -> None:
    form = form_of(
        "\u00e9t\u00e9.txt".encode(), b"title", "L'\u00e9t\u00e9 \U0001f426".encode(), more
    )
    answer = api.post("/v1/contexts/files", **form)
    assert answer.status_code == 201, answer.text
    assert answer.json()["title"] == "L'\u00e9t\u00e9 \U0001f426"
    assert answer.json()["name"] == "\u00e9t\u00e9"
    broken = api.post("/v1/contexts/files", **form_of(b"\xe9t\xe9.txt", b"title", b"a", more))
    assert error_of(broken)["code"] == "not_utf8"


def test_a_form_without_a_boundary_is_refused(api: TestClient) -> None:
    headers = {"Content-Type": "multipart/form-data"}
    answer = api.post("/v1/contexts/files", content=b"x", headers=headers)
    assert answer.status_code == 400
    error_of(answer)
