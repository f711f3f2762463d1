"""What a request's head alone can tell is told before its body comes."""

from __future__ import annotations

import socket

import httpx2
import pytest

from extensible_embedding.serve.keys import Keys
from extensible_embedding.serve.service import Service
from extensible_embedding.serve.settings import MIB

from .conftest import Make, serving
from .test_gate import key

FILES, TEXTS = "/v1/contexts/files", "/v1/contexts"
FORM = "multipart/form-data; boundary=x"
MORE = "/v1/contexts/a/append"
LONG = 100 * MIB


def answer_to_head(url: str, path: str, length: int = LONG, who: str = "alice") -> bytes:
    """What comes first when a client asks, with the head of a request, whether it may go on."""
    lines = (
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        f"Authorization: Bearer {who}",
        f"Content-Length: {length}",
        f"Content-Type: {FORM if path == FILES else 'application/json'}",
        "Expect: 100-continue",
    )
    port = int(url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        return connection.recv(1 << 16)


@pytest.fixture
def service(make: Make) -> Service:
    keys = Keys([key("alice", max_body_bytes=LONG, max_concurrent=2)])
    return make(keys, max_queued=1)


@pytest.mark.parametrize("path", [FILES, TEXTS, MORE])
def test_who_has_a_place_is_told_to_go_on(service: Service, path: str) -> None:
    with serving(service) as url:
        assert answer_to_head(url, path).startswith(b"HTTP/1.1 100 ")


@pytest.mark.parametrize(
    ("thread", "path"),
    [("parsing", FILES), ("embedding", FILES), ("embedding", TEXTS), ("embedding", MORE)],
)
def test_a_text_or_file_without_a_place_is_not_sent(
    service: Service, monkeypatch: pytest.MonkeyPatch, thread: str, path: str
) -> None:
    with serving(service) as url:
        with monkeypatch.context() as full:
            full.setattr(getattr(service, thread), "jobs", 1)
            answer = answer_to_head(url, path)
            assert answer.startswith(b"HTTP/1.1 429 ")
            assert b"retry-after: 2" in answer
        headers = {"Authorization": "Bearer alice"}
        for name in ("a", "b"):  # nothing is held by who was refused
            form = {"file": (name, b"The heron waits. ")}
            assert httpx2.post(f"{url}{FILES}", files=form, headers=headers).status_code == 201


def test_neither_is_one_of_a_key_that_has_its_share(make: Make) -> None:
    service = make(Keys([key("alice"), key("bob")]), max_queued=2)
    with serving(service) as url:
        for thread, path in ((service.parsing, FILES), (service.embedding, TEXTS)):
            thread._of_key["alice"] += 1
            assert answer_to_head(url, path, MIB).startswith(b"HTTP/1.1 429 ")
            assert answer_to_head(url, path, MIB, "bob").startswith(b"HTTP/1.1 100 ")
            thread._of_key["alice"] -= 1


@pytest.mark.parametrize("path", [FILES, TEXTS, "/v1/chat/completions", "/mcp"])
def test_neither_is_one_without_a_key_or_too_large_or_too_many(service: Service, path: str) -> None:
    client = service.keys.client("Bearer alice")
    with serving(service) as url:
        assert answer_to_head(url, path, who="eve").startswith(b"HTTP/1.1 401 ")
        assert answer_to_head(url, path, LONG + 1).startswith(b"HTTP/1.1 413 ")
        with service.slots.taken(client), service.slots.taken(client):
            assert answer_to_head(url, path).startswith(b"HTTP/1.1 429 ")
            # Coming back would not help.
            assert answer_to_head(url, path, LONG + 1).startswith(b"HTTP/1.1 413 ")
