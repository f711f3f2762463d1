"""How requests end that the server cannot or will not go on with, and what is said of them."""

from __future__ import annotations

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import openai
import pytest
from starlette.testclient import TestClient

from extensible_embedding.errors import EngineError
from extensible_embedding.serve.app import create_app, run
from extensible_embedding.serve.keys import Keys
from extensible_embedding.serve.service import Service

from .conftest import Make, SimpleEngine, client_of, serving, until
from .test_gate import ASKED, JSON, key

CHAT = "/v1/chat/completions"


def counted(service: Service, path: str = CHAT) -> dict[str, float]:
    """Requests of a path by status."""
    samples = next(iter(service.metrics.requests.collect())).samples
    return {
        each.labels["status"]: each.value
        for each in samples
        if each.labels["route"] == path and each.name.endswith("_total")
    }


def exchanged(url: str, sent: bytes) -> tuple[str, dict[str, Any]]:
    """Status line and body of the answer to these bytes."""
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=10) as open_:
        open_.sendall(sent)
        answer = b""
        while data := open_.recv(4096):
            answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.decode().splitlines()[0], json.loads(body)


def test_a_stream_that_takes_too_long_counts_as_such(make: Make, engine: SimpleEngine) -> None:
    engine.pause_s = 0.2
    service = make(request_timeout_s=0.5, max_new_tokens=100)
    with serving(service) as url, client_of(url) as client:
        with pytest.raises(openai.APIError, match="within"):
            list(client.chat.completions.create(**ASKED, stream=True))
        until(lambda: counted(service) == {"504": 1.0})


def test_a_stream_whose_client_left_counts_as_such(make: Make, engine: SimpleEngine) -> None:
    engine.pause_s = 0.2
    service = make(max_new_tokens=100)
    with serving(service) as url, client_of(url) as client:
        with client.chat.completions.create(**ASKED, stream=True) as stream:
            next(iter(stream))
        until(lambda: counted(service) == {"499": 1.0})


def test_what_runs_when_the_time_to_stop_is_over_is_told(make: Make, engine: SimpleEngine) -> None:
    engine.pause_s = 1.0
    service = make(max_new_tokens=100, stop_timeout_s=1.0)
    with ThreadPoolExecutor() as pool, serving(service) as url:
        answer = pool.submit(httpx2.post, f"{url}{CHAT}", json=ASKED, timeout=30)
        until(lambda: engine.running == 1)
    response = answer.result()
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "stopping"
    assert response.headers["retry-after"] == "5"
    assert counted(service) == {"503": 1.0}


def test_metrics_are_there_when_no_slot_is(make: Make, engine: SimpleEngine) -> None:
    engine.pause_s = 0.2
    service = make(Keys([key("alice")]), max_requests=1, max_new_tokens=100)
    with (
        serving(service) as url,
        client_of(url, "alice") as alice,
        alice.chat.completions.create(**ASKED, stream=True) as stream,
    ):
        next(iter(stream))
        bearer = {"Authorization": "Bearer alice"}
        assert httpx2.get(f"{url}/v1/models", headers=bearer).status_code == 429
        assert httpx2.get(f"{url}/metrics").status_code == 401
        assert "running_requests 1.0" in httpx2.get(f"{url}/metrics", headers=bearer).text


def test_a_stream_of_tools_that_would_never_end_is_refused(service: Service) -> None:
    with serving(service) as url:
        start = time.monotonic()
        for method in ("GET", "DELETE"):
            answer = httpx2.request(
                method, f"{url}/mcp", headers={"Accept": "text/event-stream"}, timeout=20
            )
            assert answer.status_code == 405
            assert answer.json()["error"]["type"] == "invalid_request_error"
        assert time.monotonic() - start < 10
    assert not service.slots.running


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
    ],
    ids=["no host", "negative length", "TLS"],
)
def test_what_is_no_http_is_told_so_as_all_errors_are(service: Service, sent: bytes) -> None:
    with serving(service) as url:
        status, body = exchanged(url, sent)
    assert status == "HTTP/1.1 400 Bad Request"
    assert body["error"]["code"] == "invalid_http"
    assert "HTTP/1.1" in body["error"]["message"]


@pytest.mark.parametrize("body", [b'{"name": "\xff"}', b"{"])
def test_what_is_no_json_is_told_so(service: Service, body: bytes) -> None:
    with TestClient(create_app(service), base_url="http://localhost") as api:
        answer = api.post("/v1/contexts", content=body, headers=JSON)
    assert answer.status_code == 400
    assert "The body is JSON" in answer.json()["error"]["message"]
    assert answer.json()["error"]["code"] == "invalid_json"


def test_why_an_engine_does_not_start_is_told(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def start(_: SimpleEngine) -> SimpleEngine:
        raise EngineError("vLLM does not start with such a dtype; correct it.")

    monkeypatch.setattr(SimpleEngine, "__aenter__", start)
    with pytest.raises(EngineError, match="such a dtype"):
        run(service, "127.0.0.1", 0, lambda _: None)


@pytest.mark.parametrize(
    ("method", "path", "route"),
    [
        ("POST", CHAT, CHAT),
        ("POST", "/v1/contexts/files", "/v1/contexts/files"),
        ("PATCH", "/v1/contexts/heron", "/v1/contexts/{name}"),
        ("POST", "/mcp", "/mcp"),
        ("POST", "/heron", "none"),
    ],
)
def test_what_the_gate_refuses_counts_under_its_route(
    make: Make, method: str, path: str, route: str
) -> None:
    service = make(Keys([key("alice", max_body_bytes=10)]))
    with TestClient(create_app(service)) as api:
        body = {"content": b"x" * 11, "headers": {"Authorization": "Bearer alice"}}
        assert api.request(method, path, **body).status_code == 413
        assert api.request(method, path).status_code == 401
    assert counted(service, route) == {"413": 1, "401": 1}
