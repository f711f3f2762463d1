"""Deletions: what they wait for, and what is told of a context that goes at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from starlette.testclient import TestClient

from extensible_embedding import ContextStore
from extensible_embedding.serve.app import create_app
from extensible_embedding.serve.service import Service
from extensible_embedding.store import store as store_module
from extensible_embedding.store.locks import locked_store

WORDS = "The heron waits by the mill. " * 4


@pytest.fixture
def api(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service), base_url="http://localhost") as client:
        yield client


def test_what_is_deleted_does_not_wait_for_a_text_that_is_read(
    api: TestClient, store: ContextStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless it is that very context, which goes as soon as its text is whole."""
    for name in ("a", "b"):
        assert api.post("/v1/contexts", json={"name": name, "text": WORDS}).status_code == 201
    here, go, make = threading.Event(), threading.Event(), store_module.make_segments

    def slow(*args: Any, **kwargs: Any) -> list[Any]:
        here.set()
        assert go.wait(20)
        return list(make(*args, **kwargs))

    monkeypatch.setattr(store_module, "make_segments", slow)
    with ThreadPoolExecutor(2) as pool:
        more = pool.submit(api.post, "/v1/contexts/a/append", json={"text": WORDS})
        assert here.wait(20)
        assert api.delete("/v1/contexts/b").status_code == 200
        gone = pool.submit(api.delete, "/v1/contexts/a")
        assert api.get("/v1/contexts/a").json()["tokens"] == len(WORDS)
        assert not more.done()
        assert not gone.done()
        go.set()
        assert more.result().status_code == 200
        assert gone.result().status_code == 200
    assert not len(store)


@pytest.mark.parametrize("change", ["add", "append"])
def test_what_is_deleted_right_after_it_was_kept(
    api: TestClient, store: ContextStore, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """The answer is that of what was kept, not an error that tells where the store is."""
    assert api.post("/v1/contexts", json={"name": "a", "text": WORDS}).status_code == 201
    make = getattr(ContextStore, change)

    def then_deleted(self: ContextStore, name: str, *args: Any, **kwargs: Any) -> Any:
        made = make(self, name, *args, **kwargs)
        store.delete(name)
        return made

    monkeypatch.setattr(ContextStore, change, then_deleted)
    if change == "add":
        answer = api.post("/v1/contexts", json={"name": "b", "text": WORDS})
    else:
        answer = api.post("/v1/contexts/a/append", json={"text": WORDS})
    assert answer.status_code in (200, 201), answer.text
    assert answer.json()["tokens"] == len(WORDS) * (1 + (change == "append"))


def test_a_deletion_waits_a_moment_for_others_that_begin_a_change(
    api: TestClient, store: ContextStore
) -> None:
    """The lock of the store is held for moments: that is no reason to wait for a text."""
    for name in ("a", "b"):
        assert api.post("/v1/contexts", json={"name": name, "text": WORDS}).status_code == 201
    here, go = threading.Event(), threading.Event()

    def hold(seconds: float) -> None:
        with locked_store(store.place.folder, 1.0):
            here.set()
            go.wait(seconds)

    service: Any = api.app.state.service  # type: ignore[attr-defined]
    queued = service.embedding.run
    service.embedding.run = None  # whoever waits for a text fails
    try:
        with ThreadPoolExecutor(1) as pool:
            held = pool.submit(hold, 0.05)
            assert here.wait(20)
            assert api.delete("/v1/contexts/b").status_code == 200
            held.result()
    finally:
        service.embedding.run = queued
    assert [each.name for each in store] == ["a"]
