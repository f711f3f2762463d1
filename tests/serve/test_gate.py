"""What every request passes: keys, limits, time-outs, counting, and clients that leave."""

from __future__ import annotations

import hashlib
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx2
import openai
import pytest
from starlette.testclient import TestClient

from extensible_embedding import ContextStore
from extensible_embedding.errors import EngineError
from extensible_embedding.serve.app import create_app
from extensible_embedding.serve.keys import Client, Key, Keys
from extensible_embedding.serve.logs import LOGGER, JsonLines
from extensible_embedding.serve.service import LONG_CHARS, Service
from extensible_embedding.serve.settings import Limits

from .conftest import Make, SimpleEngine, client_of, serving, until

JSON = {"Content-Type": "application/json"}
ASKED = {"model": "extensible", "messages": [{"role": "user", "content": "Who is it?"}]}


@contextmanager
def api_of(service: Service, host: str = "localhost") -> Iterator[TestClient]:
    with TestClient(create_app(service), base_url=f"http://{host}") as client:
        yield client


def key(name: str, **limits: int) -> Key:
    client = Client(name=name, limits=Limits(**limits))
    return Key(digest=hashlib.sha256(name.encode()).digest(), client=client)


def test_errors_have_one_form(service: Service) -> None:
    with api_of(service) as api:
        half = b'{"name": "a", "text": "\\ud800"}'
        for answer, status in (
            (api.get("/none"), 404),
            (api.put("/v1/models"), 405),
            (api.post("/v1/chat/completions", content=b"{", headers=JSON), 400),
            (api.post("/v1/chat/completions", content=b"[" * 100_000, headers=JSON), 400),
            (api.post("/v1/chat/completions", json={}), 422),
            (api.post("/v1/chat/completions", json=[]), 422),
            (api.post("/v1/contexts/files", content=b"x"), 422),
            (api.post("/v1/contexts", content=half, headers=JSON), 422),
        ):
            assert answer.status_code == status, answer.text
            assert set(answer.json()) == {"error"}
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
            assert answer.headers["x-request-id"]
            assert answer.headers["x-content-type-options"] == "nosniff"
        assert "GET" in api.put("/v1/models").headers["allow"]


def test_values_may_nest_as_deep_as_they_like(service: Service) -> None:
    """JSON of Python reads deeper than what checks it, by how much depends on all that calls it."""
    with api_of(service) as api:
        for depth in range(840, 1000):
            inner = "[" * depth + "]" * depth
            body = f'{{"name": "a", "text": "b", "metadata": {{"a": {inner}}}}}'
            answer = api.post("/v1/contexts", content=body.encode(), headers=JSON)
            assert answer.status_code in (400, 422), (depth, answer.text)


def test_a_key_is_needed_but_for_health(make: Make) -> None:
    with api_of(make(Keys([key("alice")])), "example.org") as api:
        for path in ("/v1/models", "/v1/contexts", "/metrics", "/openapi.json", "/none", "/mcp"):
            answer = api.get(path)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert api.get("/v1/models", headers={"Authorization": "Bearer alice"}).status_code == 200
        assert [api.get(path).status_code for path in ("/health", "/ready")] == [200, 200]


def test_a_body_is_refused_when_it_is_too_large(make: Make) -> None:
    service = make(Keys([key("alice", max_body_bytes=1000)]))
    headers = {"Authorization": "Bearer alice", "Content-Type": "application/json"}

    def parts() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 100

    with api_of(service, "example.org") as api:
        for content in (b" " * 1001, parts()):
            answer = api.post("/v1/contexts", content=content, headers=headers)
            assert answer.status_code == 413
            assert answer.json()["error"]["code"] == "body_too_large"
        form = {"Authorization": "Bearer alice"}
        answer = api.post("/v1/contexts/files", files={"file": ("a", b"x" * 1001)}, headers=form)
        assert answer.status_code == 413


def test_too_many_requests_are_told_to_come_back(make: Make, engine: SimpleEngine) -> None:
    engine.pause_s = 0.1
    service = make(Keys([key("alice", max_concurrent=1), key("bob")]), max_requests=2)
    with (
        serving(service) as url,
        client_of(url, "alice") as alice,
        client_of(url, "bob") as bob,
        alice.chat.completions.create(**ASKED, stream=True) as stream,
    ):
        next(iter(stream))
        with pytest.raises(openai.RateLimitError, match="1 requests") as caught:
            alice.models.list()
        assert caught.value.response.headers["retry-after"] == "2"
        with bob.chat.completions.create(**ASKED, stream=True) as other:
            next(iter(other))
            with pytest.raises(openai.RateLimitError, match="2 requests"):
                bob.models.list()
        until(lambda: service.slots.running == 1)
        bob.models.list()


CALLED = {"name": "ask", "arguments": {"question": "Who?", "documents": [], "max_tokens": 100}}


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/chat/completions", {**ASKED, "stream": True}),
        ("/v1/chat/completions", ASKED),
        ("/mcp", {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": CALLED}),
    ],
    ids=["stream", "whole", "tool"],
)
def test_a_client_that_leaves_ends_its_generation(
    make: Make, engine: SimpleEngine, path: str, asked: dict[str, Any]
) -> None:
    engine.pause_s = 1.0  # by itself it would end later than is waited for
    service = make(max_new_tokens=100)
    with serving(service) as url:
        body = json.dumps(asked).encode()
        with _connected(url) as connection:
            connection.sendall(_head(path, len(body)) + body)
            until(lambda: engine.running == 1)
        until(lambda: engine.running == 0)
        until(lambda: service.slots.running == 0)
        assert engine.closed == 1
        assert httpx2.get(f"{url}/health").status_code == 200


def test_an_answer_that_takes_too_long_is_ended(make: Make, engine: SimpleEngine) -> None:
    engine.pause_s = 0.2
    with serving(make(request_timeout_s=0.5, max_new_tokens=100)) as url, client_of(url) as client:
        with pytest.raises(openai.APIStatusError, match=r"within 0\.5 seconds") as caught:
            client.chat.completions.create(**ASKED)
        assert caught.value.status_code == 504
        with pytest.raises(openai.APIError, match="within"):
            list(client.chat.completions.create(**ASKED, stream=True))
        assert engine.running == 0


def test_rows_that_take_too_long_are_not_waited_for(
    make: Make, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    service, ended = make(request_timeout_s=0.5), threading.Event()

    def slow(*_: object, progress: Callable[[int, int], None], **__: object) -> None:
        try:
            for done in range(200):
                time.sleep(0.05)
                progress(done, 200)
        finally:
            ended.set()

    monkeypatch.setattr(service.embedder, "compress", slow)
    with serving(service) as url, client_of(url) as client:
        start = time.monotonic()
        asked = {**ASKED, "messages": [{"role": "user", "content": text}]}
        with pytest.raises(openai.APIStatusError, match=r"within 0\.5 seconds") as caught:
            client.chat.completions.create(**asked)
        assert caught.value.status_code == 504
        assert ended.wait(5)
        assert time.monotonic() - start < 5


def test_a_stop_waits_for_answers_that_run(make: Make, engine: SimpleEngine) -> None:
    engine.pause_s = 0.1
    with ThreadPoolExecutor() as pool, serving(make()) as url:
        answer = pool.submit(lambda: _chat(url))
        until(lambda: engine.running == 1)
    assert answer.result().usage.completion_tokens == 8


def _connected(url: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=10)


def _head(path: str, length: int) -> bytes:
    lines = (
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        f"Content-Length: {length}",
        "Content-Type: application/json",
        "Accept: application/json, text/event-stream",
    )
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _chat(url: str) -> openai.types.chat.ChatCompletion:
    with client_of(url) as client:
        return client.chat.completions.create(**ASKED)


@pytest.mark.parametrize(
    "sent", [b"", b"GET /health HTTP/1.1\r\nHost: loc", b"GET /health HTTP/1.1\r\n\r\nGET"]
)
def test_a_request_that_does_not_go_on_is_ended(make: Make, sent: bytes) -> None:
    with serving(make(header_timeout_s=0.3)) as url, _connected(url) as connection:
        connection.sendall(sent)
        start = time.monotonic()
        while connection.recv(4096):
            pass
        assert time.monotonic() - start < 5


def test_a_body_that_does_not_go_on_is_refused(make: Make) -> None:
    with serving(make(body_timeout_s=0.3)) as url, _connected(url) as connection:
        connection.sendall(_head("/v1/contexts", 100) + b"{")
        answer = b""
        while data := connection.recv(4096):
            answer += data
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"timeout"' in answer


def test_a_client_that_does_not_read_is_left(make: Make) -> None:
    service = make(send_timeout_s=0.3)
    with serving(service) as url, _connected(url) as connection:
        whole = 400 * len(httpx2.get(f"{url}/openapi.json").content)
        connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 400)
        until(lambda: service.slots.running == 1)
        until(lambda: not any(_slots_for_a_second(service)))  # between two answers there are none
        assert sum(map(len, iter(lambda: _received(connection), b""))) < whole


def _slots_for_a_second(service: Service) -> Iterator[int]:
    for _ in range(20):
        yield service.slots.running
        time.sleep(0.05)


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1 << 20)
    except ConnectionResetError:
        return b""


def test_long_messages_keep_nobody_else_waiting(make: Make) -> None:
    service, going = make(), threading.Event()
    with api_of(service) as api, ThreadPoolExecutor() as pool:
        service.reading_long._pool.submit(going.wait)
        long = {**ASKED, "messages": [{"role": "user", "content": "word " * (LONG_CHARS // 4)}]}
        waits = pool.submit(lambda: api.post("/v1/chat/completions", json=long))
        until(lambda: service.reading_long.jobs == 1)
        assert api.post("/v1/chat/completions", json=ASKED).status_code == 200
        assert api.get("/v1/contexts").status_code == 200
        assert not waits.done()
        going.set()
        waits.result()


def test_the_rest_of_a_refused_body_is_not_awaited_for_ever(make: Make) -> None:
    with serving(make(header_timeout_s=0.3)) as url, _connected(url) as connection:
        connection.sendall(_head("/v1/contexts", 99_999_999))
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            _trickle(connection)


def _trickle(connection: socket.socket) -> None:
    for _ in range(200):
        connection.sendall(b" " * 1000)
        time.sleep(0.05)


def test_a_full_queue_of_the_embedder_is_told(make: Make) -> None:
    service = make(max_queued=1)
    going = threading.Event()
    with api_of(service) as api:
        service.embedding._pool.submit(going.wait)
        with ThreadPoolExecutor() as pool:
            first = pool.submit(
                lambda: api.post("/v1/contexts", json={"name": "a", "text": "One."})
            )
            until(lambda: service.embedding.jobs == 1)
            second = api.post("/v1/contexts", json={"name": "b", "text": "Two."})
            going.set()
        assert first.result().status_code == 201
        assert second.status_code == 429
        assert second.headers["retry-after"]


def test_an_embedding_that_nobody_waits_for_leaves_nothing(
    make: Make, store: ContextStore, text: str
) -> None:
    service = make()
    going = threading.Event()
    with serving(service) as url:
        service.embedding._pool.submit(going.wait)
        with pytest.raises(httpx2.TimeoutException):
            httpx2.post(f"{url}/v1/contexts", json={"name": "a", "text": text}, timeout=0.3)
        until(lambda: service.slots.running == 0)
        going.set()
    assert "a" not in store


def test_ready_tells_the_log_what_is_wrong(
    service: Service, engine: SimpleEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, LOGGER.name)
    with api_of(service) as api:
        engine.fails = EngineError("The engine is gone; start it.")
        assert api.get("/health").status_code == 200
        answer = api.get("/ready")
        assert answer.status_code == 503
        assert "gone" not in answer.text
    assert "The engine is gone; start it." in caplog.records[-1].fields["message"]


def test_metrics_count(service: Service, text: str) -> None:
    with api_of(service) as api:
        api.post("/v1/contexts", json={"name": "a", "text": text})
        api.post("/v1/chat/completions", json={**ASKED, "extensible": {"contexts": ["a"]}})
        lines = api.get("/metrics").text.splitlines()
    found = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    chat = 'extensible_requests_total{method="POST",route="/v1/chat/completions",status="200"}'
    assert found[chat] == "1.0"
    assert found["extensible_first_token_seconds_count"] == "1.0"
    assert float(found["extensible_prompt_rows_sum"]) > 0
    assert float(found["extensible_new_tokens_total"]) > 0
    assert found["extensible_engine_prefix_cache_hits"] == "3.0"
    assert found['extensible_queue{thread="embedder"}'] == "0.0"
    assert found["extensible_running_requests"] == "0.0"  # this one is none


def test_logs_say_what_happened_without_what_was_sent(
    service: Service, engine: SimpleEngine
) -> None:
    secret, lines = "xyzzy", []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(JsonLines().format(record))

    handler = Kept()
    LOGGER.addHandler(handler)
    level = LOGGER.level
    LOGGER.setLevel(logging.INFO)
    asked = {"model": "extensible", "messages": [{"role": "user", "content": secret}]}
    try:
        with api_of(service) as api:
            api.post("/v1/contexts", json={"name": f"n{secret}", "text": secret})
            api.get(f"/v1/contexts/n{secret}?after={secret}")
            api.post("/v1/chat/completions", json=asked)
            engine.fails = ValueError(secret)
            assert api.post("/v1/chat/completions", json=asked).status_code == 500
            api.post("/v1/chat/completions", json={**asked, "stream": True})
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(level)
    logged = [json.loads(line) for line in lines]
    assert secret not in "".join(lines)
    assert [each["status"] for each in logged] == [201, 200, 200, 500, 500]
    assert logged[0]["route"] == "/v1/contexts"
    assert logged[2]["new_tokens"] == 8
    assert logged[3]["error"] == logged[4]["error"] == "ValueError"
    assert any("conftest.py" in frame for frame in logged[3]["stack"])
