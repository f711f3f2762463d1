"""A server without keys answers its own page and programs, and no page of others."""

from __future__ import annotations

import json

import pytest

from extensible_embedding import ContextStore
from extensible_embedding.serve.keys import Keys
from extensible_embedding.serve.service import Service

from .conftest import Make
from .test_gate import api_of, key


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "127.0.0.1:8000", "Origin": "http://127.0.0.1:8000"}, 200),
        ({"Host": "127.0.0.1:8000", "Origin": "http://localhost:8000"}, 403),
        ({"Host": "localhost:8000", "Origin": "http://localhost:1234"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 200),  # a link to the page
        ({"Host": "evil.org"}, 403),
        ({"Host": "localhost.evil.org"}, 403),
        ({"Host": "["}, 403),
        ({"Origin": "https://evil.org"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_without_keys_web_pages_of_others_are_refused(
    service: Service, headers: dict[str, str], status: int
) -> None:
    with api_of(service) as api:
        assert api.get("/v1/models", headers=headers).status_code == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 201),
        ({"Origin": "http://localhost"}, 201),
        ({"Origin": "http://LOCALHOST", "Sec-Fetch-Site": "same-origin"}, 201),
        ({"Sec-Fetch-Site": "none"}, 201),
        # A proxy in between has changed the host; the browser knows better.
        ({"Origin": "http://localhost:1234", "Sec-Fetch-Site": "same-origin"}, 201),
        ({"Origin": "http://localhost:1234"}, 403),
        ({"Origin": "http://127.0.0.1:1234", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "http://localhost:1234", "Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "http://[", "Sec-Fetch-Site": "none"}, 403),
    ],
)
def test_without_keys_pages_of_other_ports_send_no_forms(
    service: Service, store: ContextStore, headers: dict[str, str], status: int
) -> None:
    with api_of(service) as api:
        form = {"file": ("a.txt", b"Not mine.")}
        answer = api.post("/v1/contexts/files", files=form, headers=headers)
        assert answer.status_code == status, answer.text
        plain = {"Content-Type": "text/plain", **headers}
        body = json.dumps({"name": "b", "text": "Nor this."})
        assert (api.post("/v1/contexts", content=body, headers=plain).status_code == 403) == (
            status == 403
        )
    assert len(store) == (status == 201)


def test_with_keys_pages_from_elsewhere_may_ask(make: Make) -> None:
    with api_of(make(Keys([key("alice")])), "example.org") as api:
        headers = {"Authorization": "Bearer alice", "Origin": "https://elsewhere.org"}
        form = {"file": ("a.txt", b"Mine.")}
        assert api.post("/v1/contexts/files", files=form, headers=headers).status_code == 201
