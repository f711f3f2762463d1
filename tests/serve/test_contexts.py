"""Contexts by REST."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from extensible_embedding import ContextStore, ExtensibleEmbedder
from extensible_embedding.archive import RATIO_FREE_BYTES
from extensible_embedding.errors import CheckpointError
from extensible_embedding.serve.app import create_app
from extensible_embedding.serve.chat import Planner
from extensible_embedding.serve.keys import Client, Key, Keys
from extensible_embedding.serve.service import Service
from extensible_embedding.serve.settings import Limits

from .conftest import Make, SimpleEngine

WORDS = "The heron waits by the mill. " * 4


@pytest.fixture
def api(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service), base_url="http://localhost") as client:
        yield client


def error_of(answer) -> dict:
    (name, fields) = next(iter(answer.json().items()))
    assert name == "error"
    assert set(fields) == {"message", "type", "param", "code"}
    return fields


def test_a_text_is_kept(api: TestClient, store: ContextStore, embedder: ExtensibleEmbedder) -> None:
    answer = api.post("/v1/contexts", json={"name": "heron", "text": WORDS, "metadata": {"a": 1}})
    assert answer.status_code == 201
    made = answer.json()
    assert (made["name"], made["title"], made["tokens"]) == ("heron", "heron", len(WORDS))
    assert (made["k"], made["metadata"], made["shared"]) == (4, {"a": 1}, False)
    assert store.open("heron").text() == WORDS
    assert store.open("heron").settings.embedder_fingerprint == embedder.fingerprint
    assert api.get("/v1/contexts/heron").json() == made
    assert api.get("/v1/contexts").json() == {"object": "list", "data": [made], "has_more": False}
    assert api.get("/v1/usage").json()["tokens"] == len(WORDS)


def test_a_name_is_taken_once_unless_it_is_replaced(api: TestClient) -> None:
    assert api.post("/v1/contexts", json={"name": "a", "text": "One. "}).status_code == 201
    again = api.post("/v1/contexts", json={"name": "a", "text": "Two. "})
    assert again.status_code == 409
    assert error_of(again)["code"] == "context_exists"
    replaced = api.post("/v1/contexts", json={"name": "a", "text": "Three. ", "replace": True})
    assert replaced.json()["tokens"] == 7


def test_a_context_grows_and_goes(api: TestClient, store: ContextStore) -> None:
    api.post("/v1/contexts", json={"name": "a", "text": WORDS})
    grown = api.post("/v1/contexts/a/append", json={"text": "And then?"})
    assert grown.json()["tokens"] == len(WORDS) + 9
    assert store.open("a").text() == WORDS + "And then?"
    assert api.delete("/v1/contexts/a").json() == {
        "object": "context.deleted",
        "name": "a",
        "deleted": True,
    }
    for answer in (
        api.get("/v1/contexts/a"),
        api.get("/v1/contexts/a/text"),
        api.delete("/v1/contexts/a"),
        api.post("/v1/contexts/a/append", json={"text": "More."}),
    ):
        assert answer.status_code == 404
        assert error_of(answer)["code"] == "context_not_found"


def test_lists_come_in_pages(api: TestClient) -> None:
    for name in "cab":
        api.post("/v1/contexts", json={"name": name, "text": ""})
    first = api.get("/v1/contexts", params={"limit": 2}).json()
    assert [each["name"] for each in first["data"]] == ["a", "b"]
    assert first["has_more"]
    rest = api.get("/v1/contexts", params={"limit": 2, "after": "b"}).json()
    assert [each["name"] for each in rest["data"]] == ["c"]
    assert not rest["has_more"]


def test_text_comes_by_whole_characters(api: TestClient) -> None:
    whole = "Le h\u00e9ron \U0001f426 attend."
    api.post("/v1/contexts", json={"name": "a", "text": whole})
    pieces, start = [], 0
    for _ in range(50):
        part = api.get("/v1/contexts/a/text", params={"start_byte": start, "num_bytes": 4}).json()
        pieces.append(part["text"])
        start = part["end_byte"]
        if start == part["text_bytes"]:
            break
    assert "".join(pieces) == whole
    inside = api.get("/v1/contexts/a/text", params={"start_byte": 5}).json()
    assert whole.encode()[inside["start_byte"] :].decode() == inside["text"] == whole[5:]


def test_an_empty_context_is_not_read(api: TestClient) -> None:
    api.post("/v1/contexts", json={"name": "a", "text": ""})
    asked = {"model": "extensible", "messages": [{"role": "user", "content": "Who?"}]}
    answer = api.post("/v1/chat/completions", json={**asked, "extensible": {"contexts": ["a"]}})
    assert answer.status_code == 409
    assert error_of(answer)["code"] == "context_empty"


def test_a_file_is_kept_by_its_text(api: TestClient, store: ContextStore) -> None:
    page = b"<html><head><title>A heron</title></head><body><p>It waits.</p></body></html>"
    answer = api.post("/v1/contexts/files", files={"file": ("../../her/on.html", page)})
    assert answer.status_code == 201
    assert (answer.json()["name"], answer.json()["title"]) == ("on", "A heron")
    assert store.open("on").text() == "It waits."
    named = api.post(
        "/v1/contexts/files",
        files={"file": ("x.txt", b"Plain.")},
        data={"name": "plain", "title": "So plain"},
    )
    assert (named.json()["name"], named.json()["title"]) == ("plain", "So plain")


@pytest.mark.parametrize(
    ("name", "data"), [("a.pdf", b"no pdf"), ("a.txt", b"\xff\xfe"), ("a.docx", b"PK"), ("", b" ")]
)
def test_unreadable_files_are_refused(api: TestClient, name: str, data: bytes) -> None:
    answer = api.post("/v1/contexts/files", files={"file": (name or "b", data)})
    assert answer.status_code == 400
    assert "/tmp" not in error_of(answer)["message"]
    assert api.get("/v1/usage").json()["contexts"] == 0


@pytest.mark.parametrize("name", ["a/b", ".a", " a", "a\n", "\u202ea", "x" * 201])
def test_names_that_cannot_be_are_refused(api: TestClient, name: str) -> None:
    answer = api.post("/v1/contexts", json={"name": name, "text": "One."})
    assert answer.status_code in (400, 422)
    error_of(answer)


ALICE, BOB = Client(name="alice"), Client(name="bob", limits=Limits(max_contexts=1))


@pytest.fixture
def two(make: Make) -> Iterator[TestClient]:
    import hashlib

    keys = Keys(
        [
            Key(digest=hashlib.sha256(each.name.encode()).digest(), client=each)
            for each in (ALICE, BOB)
        ]
    )
    with TestClient(create_app(make(keys)), base_url="http://example.org") as client:
        yield client


def as_(client: Client) -> dict[str, str]:
    return {"Authorization": f"Bearer {client.name}"}


def test_clients_never_meet(two: TestClient, store: ContextStore) -> None:
    for client in (ALICE, BOB):
        body = {"name": "diary", "text": f"I am {client.name}."}
        assert two.post("/v1/contexts", json=body, headers=as_(client)).status_code == 201
    assert sorted(each.name for each in store) == ["alice:diary", "bob:diary"]
    for client in (ALICE, BOB):
        text = two.get("/v1/contexts/diary/text", headers=as_(client)).json()["text"]
        assert text == f"I am {client.name}."
    for name in ("alice:diary", "alice\uff1adiary", "ALICE:diary"):
        assert two.get(f"/v1/contexts/{name}", headers=as_(BOB)).status_code == 404
    two.delete("/v1/contexts/diary", headers=as_(BOB))
    assert two.get("/v1/contexts/diary", headers=as_(BOB)).status_code == 404
    assert two.get("/v1/contexts/diary", headers=as_(ALICE)).status_code == 200


def test_shared_contexts_are_read_by_all_and_changed_by_nobody(
    two: TestClient, store: ContextStore, embedder: ExtensibleEmbedder
) -> None:
    store.add("book", WORDS, embedder)
    for client in (ALICE, BOB):
        assert two.get("/v1/contexts/book", headers=as_(client)).json()["shared"]
        assert two.delete("/v1/contexts/book", headers=as_(client)).status_code == 403
        more = two.post("/v1/contexts/book/append", json={"text": "x"}, headers=as_(client))
        assert more.status_code == 403
    own = {"name": "book", "text": "Mine."}
    assert two.post("/v1/contexts", json=own, headers=as_(ALICE)).status_code == 201
    assert two.get("/v1/contexts/book/text", headers=as_(ALICE)).json()["text"] == "Mine."
    assert two.get("/v1/contexts/book/text", headers=as_(BOB)).json()["text"] == WORDS
    assert store.open("book").text() == WORDS


def test_a_key_keeps_so_many(two: TestClient) -> None:
    for name, status in (("a", 201), ("b", 403)):
        answer = two.post("/v1/contexts", json={"name": name, "text": "x"}, headers=as_(BOB))
        assert answer.status_code == status
    assert error_of(answer)["code"] == "too_many_contexts"


def keeping(make: Make, most: int) -> TestClient:
    """A server whose clients keep so many bytes of text."""
    return TestClient(
        create_app(make(Keys(limits=Limits(max_text_bytes=most)))), base_url="http://localhost"
    )


def kept_bytes(api: TestClient) -> int:
    usage = api.get("/v1/usage").json()
    assert usage["text_bytes"] <= usage["max_text_bytes"]
    return int(usage["text_bytes"])


def refused_text(answer: Any) -> None:
    assert answer.status_code == 403, answer.text
    error = error_of(answer)
    assert (error["type"], error["code"]) == ("permission_error", "too_much_text")
    assert "bytes of text at most" in error["message"]


def test_a_key_keeps_so_much_text(make: Make) -> None:
    with keeping(make, 100) as api:
        assert api.post("/v1/contexts", json={"name": "a", "text": "x" * 60}).status_code == 201
        refused_text(api.post("/v1/contexts", json={"name": "b", "text": "\u00e9" * 21}))
        refused_text(api.post("/v1/contexts/a/append", json={"text": "x" * 41}))
        refused_text(api.post("/v1/contexts/files", files={"file": ("b.txt", b"x" * 41)}))
        assert kept_bytes(api) == 60
        assert (
            api.post("/v1/contexts", json={"name": "b", "text": "\u00e9" * 20}).status_code == 201
        )
        refused_text(api.post("/v1/contexts/b/append", json={"text": "x"}))
        assert kept_bytes(api) == 100
        whole = {"name": "a", "text": "y" * 60, "replace": True}
        assert api.post("/v1/contexts", json=whole).status_code == 201
        refused_text(api.post("/v1/contexts", json={**whole, "text": "y" * 61}))
        assert api.delete("/v1/contexts/a").status_code == 200
        assert api.post("/v1/contexts/b/append", json={"text": "x" * 60}).status_code == 200
    with keeping(make, 100) as again:
        assert kept_bytes(again) == 100
        refused_text(again.post("/v1/contexts/b/append", json={"text": "x"}))


def test_texts_at_the_same_time_share_the_room(make: Make) -> None:
    with keeping(make, 100) as api, ThreadPoolExecutor(8) as pool:
        bodies = [{"name": f"c{number}", "text": "x" * 30} for number in range(8)]
        answers = list(pool.map(lambda body: api.post("/v1/contexts", json=body), bodies))
        assert sorted(each.status_code for each in answers) == [201] * 3 + [403] * 5
        assert kept_bytes(api) == 90


def test_what_is_shared_and_what_others_keep_counts_for_nobody(
    two: TestClient, store: ContextStore, embedder: ExtensibleEmbedder
) -> None:
    store.add("book", WORDS, embedder)
    two.post("/v1/contexts", json={"name": "a", "text": "x" * 50}, headers=as_(ALICE))
    assert two.get("/v1/usage", headers=as_(BOB)).json()["text_bytes"] == 0
    assert two.get("/v1/usage", headers=as_(ALICE)).json()["text_bytes"] == 50


def test_metadata_are_small(api: TestClient) -> None:
    body = {"name": "a", "text": "x", "metadata": {"a": "x" * (1 << 16)}}
    answer = api.post("/v1/contexts", json=body)
    assert answer.status_code == 422
    assert error_of(answer)["param"] == "metadata"


def test_a_damaged_context_is_told_and_hurts_no_other(api: TestClient, store: ContextStore) -> None:
    for name in "ab":
        api.post("/v1/contexts", json={"name": name, "text": WORDS + name})
    folder = store.place.folder / store.open("a").folder
    for file in folder.glob("*.safetensors"):
        file.write_bytes(b"x")
    asked = {"model": "extensible", "messages": [{"role": "user", "content": "Who?"}]}
    for name, status in (("a", 500), ("b", 200)):
        body = {**asked, "extensible": {"contexts": [name]}}
        assert api.post("/v1/chat/completions", json=body).status_code == status


def test_what_was_acknowledged_is_in_the_store_at_once(
    api: TestClient, store: ContextStore, tmp_path: Path
) -> None:
    api.post("/v1/contexts", json={"name": "a", "text": WORDS})
    again = ContextStore(store.place.name)
    assert again.open("a").text() == WORDS


def test_an_archive_bomb_is_refused(api: TestClient) -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", bytes(RATIO_FREE_BYTES + 1))
    answer = api.post("/v1/contexts/files", files={"file": ("bomb.docx", data.getvalue())})
    assert answer.status_code == 400
    assert "200 times" in error_of(answer)["message"]


def test_unknown_fields_are_refused(api: TestClient, engine: SimpleEngine) -> None:
    answer = api.post("/v1/contexts", json={"name": "a", "text": "x", "k": 2})
    assert answer.status_code == 422
    assert error_of(answer)["param"] == "k"


def test_progress_is_told_while_a_text_becomes_rows(
    api: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, object]] = []
    real = ContextStore.add

    def add(self: ContextStore, *args: object, **settings: Any) -> object:
        report = settings["progress"]

        def progress(done: int, total: int) -> None:
            report(done, total)
            seen.append(api.get("/v1/progress").json())

        return real(self, *args, **{**settings, "progress": progress})  # type: ignore[arg-type]

    monkeypatch.setattr(ContextStore, "add", add)
    idle = {"object": "progress", "done": 0, "total": 0, "waiting": 0}
    assert api.get("/v1/progress").json() == idle
    made = api.post("/v1/contexts", json={"name": "a", "text": WORDS * 20}).json()
    assert [each["total"] for each in seen] == [made["tokens"]] * len(seen)
    assert seen[-1]["done"] == made["tokens"]
    assert [each["done"] for each in seen] == sorted(each["done"] for each in seen)  # type: ignore[type-var]
    assert api.get("/v1/progress").json() == idle


def test_a_context_that_is_replaced_while_it_is_read_is_read_again(
    api: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"name": "a", "text": WORDS * 20}
    api.post("/v1/contexts", json=body)
    real, times = Planner.finish, []

    def finish(self: Planner, *args: Any) -> Any:
        times.append(1)
        if len(times) == 1:
            service.store.add("a", WORDS * 10, service.embedder, k=service.settings.k, replace=True)
            raise CheckpointError("a file of it is missing")
        return real(self, *args)

    monkeypatch.setattr(Planner, "finish", finish)
    asked = {
        "model": "extensible",
        "messages": [{"role": "user", "content": "Who?"}],
        "extensible": {"contexts": ["a"]},
    }
    answer = api.post("/v1/chat/completions", json=asked)
    assert answer.status_code == 200
    tokens = api.get("/v1/contexts/a").json()["tokens"]
    assert answer.json()["usage"]["extensible"]["context_tokens"] == tokens


def test_progress_of_others_is_not_told(service: Service) -> None:
    service.embedding._progress = ("ann", 3, 9)
    assert service.embedding.progress_of("ann") == (3, 9)
    assert service.embedding.progress_of("bob") == (0, 0)


def test_memory_of_the_process_is_among_the_metrics(api: TestClient) -> None:
    assert "process_resident_memory_bytes " in api.get("/metrics").text


@pytest.mark.parametrize("letter", ["\u6c34", "a", "\U0001f600x"])
def test_a_file_may_have_a_long_name(api: TestClient, letter: str) -> None:
    file = (f"{letter * 150}.html", b"<p>The heron waits.</p>")
    answer = api.post("/v1/contexts/files", files={"file": file}, data={"name": "a"})
    assert answer.status_code == 201, answer.text
    assert api.get("/v1/contexts/a/text").json()["text"] == "The heron waits."
    assert api.post("/v1/contexts/files", files={"file": file}).status_code == 201
