"""Files that take too long, too much memory, or the program that reads them with them."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client
from starlette.testclient import TestClient

from extensible_embedding.errors import ConfigError
from extensible_embedding.serve.app import create_app
from extensible_embedding.serve.keys import Client as KeyClient
from extensible_embedding.serve.keys import Key, Keys
from extensible_embedding.serve.mcp import mcp_server
from extensible_embedding.serve.service import Service
from extensible_embedding.serve.settings import MIB, ServeSettings

from .conftest import Make, serving, until
from .hostile import endless_pdf

FILES = "/v1/contexts/files"
WORDS = b"The heron waits by the mill. "
QUESTION = {"model": "extensible", "messages": [{"role": "user", "content": "Who?"}]}
PARSER = "import sys, os, time; from extensible_embedding.serve import parser; "


def program(what: str, when: str = "'bad' in sys.argv[1]") -> tuple[str, ...]:
    """The program that reads files, but with some it does something else first."""
    return (sys.executable, "-c", f"{PARSER}\nif {when}: {what}\nparser.main()")


def waits_for(path: Path) -> str:
    return "exec({!r})".format(f"while not os.path.exists({str(path)!r}): time.sleep(0.01)")


@contextmanager
def api_of(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service), base_url="http://localhost") as client:
        yield client


def refused(answer: Any, code: str, words: str) -> None:
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", "file")
    assert error["code"] == code
    assert words in error["message"]


def test_a_file_that_never_ends_is_refused_and_the_next_one_read(make: Make) -> None:
    service = make(max_parsing=1, parse_timeout_s=4.0)
    service.parsing.program = program("time.sleep(999)")
    with api_of(service) as api, ThreadPoolExecutor() as pool:
        bad = pool.submit(lambda: api.post(FILES, files={"file": ("bad.txt", WORDS)}))
        until(lambda: service.parsing.jobs == 1)
        good = api.post(FILES, files={"file": ("good.txt", WORDS)})
        refused(bad.result(), "file_too_slow", "within 4 seconds")
        assert good.status_code == 201, good.text
        assert service.parsing.jobs == 0


@pytest.mark.slow
def test_a_pdf_that_never_ends_is_refused_and_the_next_one_read(make: Make) -> None:
    with api_of(make(max_parsing=1, parse_timeout_s=10.0)) as api:
        bad = api.post(FILES, files={"file": ("a.pdf", endless_pdf())})
        refused(bad, "file_too_slow", "within 10 seconds")
        assert api.post(FILES, files={"file": ("a.txt", WORDS)}).status_code == 201


def test_two_are_read_at_the_same_time(make: Make, tmp_path: Path) -> None:
    service, goes_on = make(), tmp_path / "go"
    service.parsing.program = program(waits_for(goes_on))
    with api_of(service) as api, ThreadPoolExecutor() as pool:
        bad = pool.submit(lambda: api.post(FILES, files={"file": ("bad.txt", WORDS)}))
        until(lambda: service.parsing.jobs == 1)
        assert api.post(FILES, files={"file": ("good.txt", WORDS)}).status_code == 201
        assert not bad.done()
        goes_on.touch()
        assert bad.result().status_code == 201


def test_a_client_that_leaves_ends_the_reading_of_its_file(make: Make, tmp_path: Path) -> None:
    service, pid = make(), tmp_path / "pid"
    begin = f"open({str(pid)!r}, 'w').write(str(os.getpid()) + ' '); time.sleep(999)"
    service.parsing.program = program(begin)
    with serving(service) as url:
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(f"{url}{FILES}", files={"file": ("bad.txt", WORDS)}, timeout=4)
        until(lambda: service.parsing.jobs == 0)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text(encoding="ascii")), 0)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are kept on Linux alone")
def test_a_file_that_takes_too_much_memory_is_refused(make: Make) -> None:
    service = make(parse_memory_bytes=256 * MIB)
    service.parsing.program = program("parser.read_document = lambda _: bytearray(1 << 30)")
    with api_of(service) as api:
        bad = api.post(FILES, files={"file": ("bad.txt", WORDS)})
        refused(bad, "file_too_large", "256 MiB")
        assert api.post(FILES, files={"file": ("good.txt", WORDS)}).status_code == 201


def test_modules_of_the_folder_that_it_was_started_in_are_not_run(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit", encoding="ascii")
    monkeypatch.chdir(tmp_path)
    with api_of(make()) as api:
        made = api.post(FILES, files={"file": ("good.txt", WORDS)})
        assert made.status_code == 201, made.text


def test_a_small_file_with_a_long_text_is_refused(make: Make) -> None:
    with api_of(make(max_document_bytes=1000)) as api:
        bad = api.post(FILES, files={"file": ("bad.txt", WORDS * 40)})
        refused(bad, "file_too_large", f"1000 bytes at most, but this one's has {40 * len(WORDS)}")
        assert api.post(FILES, files={"file": ("good.txt", WORDS)}).status_code == 201


def test_a_files_own_title_is_as_short_as_one_that_is_given(make: Make) -> None:
    page = b"<title>" + b"heron " * 1000 + b"</title><p>" + WORDS
    with api_of(make()) as api:
        made = api.post(FILES, files={"file": ("a.html", page)})
        assert made.status_code == 201, made.text
        assert made.json()["title"] == ("heron " * 84)[:500]


def test_halves_of_characters_in_a_file_are_replaced(make: Make, store: Any) -> None:
    page = b'<meta charset="utf-7"><p>The heron +2AA- waits.'
    with api_of(make()) as api:
        made = api.post(FILES, files={"file": ("a.html", page)})
        assert made.status_code == 201, made.text
    assert store.open("a").text() == "The heron ? waits."


@pytest.mark.parametrize("what", ["os.abort()", "sys.stdout.write('{\"te'); os._exit(0)"])
def test_a_file_that_ends_its_reader_is_refused(make: Make, what: str) -> None:
    service = make()
    service.parsing.program = program(what)
    with api_of(service) as api:
        bad = api.post(FILES, files={"file": ("bad.txt", WORDS)})
        refused(bad, "unreadable_file", "ended them")


def test_a_full_queue_is_told(make: Make) -> None:
    service = make(max_queued=1, parse_timeout_s=30.0)
    service.parsing.program = program("time.sleep(3)")
    with api_of(service) as api, ThreadPoolExecutor() as pool:
        first = pool.submit(lambda: api.post(FILES, files={"file": ("bad.txt", WORDS)}))
        until(lambda: service.parsing.jobs == 1)
        second = api.post(FILES, files={"file": ("b.txt", WORDS)})
        assert second.status_code == 429
        assert second.headers["retry-after"]
        assert first.result().status_code == 201


def test_a_key_leaves_places_to_others(make: Make, tmp_path: Path) -> None:
    names = ("alice", "bob")
    keys = [
        Key(digest=hashlib.sha256(name.encode()).digest(), client=KeyClient(name=name))
        for name in names
    ]
    service, goes_on = make(Keys(keys), max_queued=2, max_parsing=2), tmp_path / "go"
    service.parsing.program = program(waits_for(goes_on))

    def post(api: TestClient, name: str, file: str) -> Any:
        headers = {"authorization": f"Bearer {name}"}
        return api.post(FILES, files={"file": (file, WORDS)}, headers=headers)

    with api_of(service) as api, ThreadPoolExecutor() as pool:
        first = pool.submit(post, api, "alice", "bad.txt")
        until(lambda: service.parsing.jobs == 1)
        second = post(api, "alice", "b.txt")
        assert second.status_code == 429
        assert "1 files of a key" in second.json()["error"]["message"]
        assert post(api, "bob", "c.txt").status_code == 201
        goes_on.touch()
        assert first.result().status_code == 201
        assert post(api, "alice", "b.txt").status_code == 201


def test_what_readers_print_is_no_text(make: Make, store: Any) -> None:
    service = make()
    service.parsing.program = program(
        "real = parser.read_document; parser.read_document = lambda path: print('Hm') or real(path)"
    )
    with api_of(service) as api:
        assert api.post(FILES, files={"file": ("bad.txt", WORDS)}).status_code == 201
    assert store.open("bad").text() == WORDS.decode()


def test_the_tool_for_files_has_the_same_limit(make: Make, tmp_path: Path) -> None:
    service = make(parse_timeout_s=3.0)
    service.parsing.program = program("time.sleep(999)")
    (tmp_path / "bad.txt").write_bytes(WORDS)

    async def add() -> Any:
        async with service.running(), Client(mcp_server(service, files=True)) as client:
            return await client.call_tool("add_file", {"path": str(tmp_path / "bad.txt")})

    answer = asyncio.run(add())
    assert answer.is_error
    assert "within 3 seconds" in answer.content[0].text


def test_nobody_else_waits_while_a_file_is_read(make: Make, tmp_path: Path) -> None:
    service, goes_on = make(max_parsing=1), tmp_path / "go"
    service.parsing.program = program(waits_for(goes_on))
    with serving(service) as url, httpx2.Client(base_url=url, timeout=30) as client:
        with ThreadPoolExecutor(1) as pool:
            upload = pool.submit(client.post, FILES, files={"file": ("bad.txt", WORDS)})
            until(lambda: service.parsing.jobs == 1)
            assert client.post("/v1/chat/completions", json=QUESTION).status_code == 200
            assert client.get("/v1/contexts").status_code == 200
            assert not upload.done()
            goes_on.touch()
        assert upload.result().status_code == 201


@pytest.mark.parametrize(
    ("name", "value"),
    [("parse_timeout_s", 0), ("parse_memory_bytes", MIB), ("max_parsing", 0)],
)
def test_limits_are_checked(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=name):
        ServeSettings(**{name: value})  # type: ignore[arg-type]
