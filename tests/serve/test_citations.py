"""Where an answer comes from, over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from extensible_embedding.serve.app import create_app
from extensible_embedding.serve.service import Service

TEXT = "".join(f"Walk {number} went up the hill. " for number in range(60))
ASKED = {
    "model": "extensible",
    "messages": [{"role": "user", "content": "Who went up the hill?"}],
    "extensible": {"contexts": ["walks"], "expand": 64, "cite": True},
}


@pytest.fixture
def api(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service), base_url="http://localhost") as client:
        made = client.post("/v1/contexts", json={"name": "walks", "text": TEXT})
        assert made.status_code == 201
        yield client


def test_citations_are_places_in_the_text(api: TestClient) -> None:
    answer: dict[str, Any] = api.post("/v1/chat/completions", json=ASKED).json()
    found = answer["extensible"]["citations"]
    assert [each["raw"] for each in found] == sorted((each["raw"] for each in found), reverse=True)
    assert any(each["raw"] for each in found)
    for each in found:
        assert TEXT.encode()[each["start_byte"] : each["end_byte"]].decode() == each["quote"]


def test_an_answer_is_not_lost_where_too_many_wait_for_its_citations(
    api: TestClient, service: Service
) -> None:
    service.embedding.most = 0
    answer = api.post("/v1/chat/completions", json=ASKED)
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"]
    assert "extensible" not in answer.json() or answer.json()["extensible"] is None
