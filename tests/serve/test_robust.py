"""A server that is killed, and one that is sent far too much, in processes of their own."""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from extensible_embedding import ContextStore, ExtensibleEmbedder

from .processes import served

pytestmark = pytest.mark.slow
MIB = 1 << 20


@pytest.fixture
def arguments(
    tiny_reader_folder: Path, embedder: ExtensibleEmbedder, tmp_path: Path
) -> tuple[object, ...]:
    """Of a server over the tiny models and a store of its own."""
    embedder.save_pretrained(tmp_path / "embedder")
    models = ("--reader", tiny_reader_folder, "--embedder", tmp_path / "embedder")
    return (tmp_path / "store", *models)


def text_of(number: int) -> str:
    return f"{number}. The heron waits by the mill, and nobody asks it why. " * 40


def change(client: httpx2.Client, number: int, name: str, text: str, *, more: bool) -> None:
    """Makes, replaces or grows a context; returns when that was acknowledged."""
    if more:
        answer = client.post(f"/v1/contexts/{name}/append", json={"text": text})
    elif number % 2:
        form: dict[str, Any] = {"name": name, "replace": "true"}
        file = {"file": ("a.txt", text.encode())}
        answer = client.post("/v1/contexts/files", data=form, files=file)
    else:
        body = {"name": name, "text": text, "replace": True}
        answer = client.post("/v1/contexts", json=body)
    assert answer.status_code in (200, 201), answer.text


@pytest.mark.parametrize("seed", range(5))
def test_what_was_acknowledged_outlives_kill_9(
    arguments: tuple[object, ...], embedder: ExtensibleEmbedder, tmp_path: Path, seed: int
) -> None:
    """Texts are made, grown and replaced while the server is killed at any moment."""
    kept: dict[str, str] = {}
    last = ("", "")
    with served(*arguments) as (process, url), httpx2.Client(base_url=url, timeout=60) as client:
        killer = threading.Timer(random.Random(seed).uniform(0.1, 6.0), process.kill)
        try:
            for number in range(100_000):
                name, text = f"c{number % 7}", text_of(number)
                more = name in kept and number % 3 == 0
                last = (name, kept[name] + text if more else text)
                change(client, number, name, text, more=more)
                kept[name] = last[1]
                if number == 0:
                    killer.start()
        except httpx2.HTTPError:
            killer.join()
    store = ContextStore(tmp_path / "store")
    assert {each.name for each in store} - {last[0]} == set(kept) - {last[0]}
    for stored in store:
        text = stored.text()
        assert text == kept.get(stored.name) or (stored.name, text) == last
        fresh = embedder.compress(text, k=4, batch_chunks=1).rows
        opened = store.open(stored.name).context().rows
        assert (opened.float() - fresh.float()).abs().max() < 0.05


def test_bodies_of_100_mb_are_refused_without_being_held(arguments: tuple[object, ...]) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * MIB

    with served(*arguments) as (process, url), httpx2.Client(base_url=url, timeout=120) as client:
        before = most_memory_mib(process.pid)
        for content in (parts(), b" " * (100 * MIB)):
            headers = {"Content-Type": "application/json"}
            answer = client.post("/v1/chat/completions", content=content, headers=headers)
            assert answer.status_code == 413
        answer = client.post("/v1/contexts/files", files={"file": ("a", b"x" * (100 * MIB))})
        assert answer.status_code == 413
        assert client.get("/health").status_code == 200
        assert most_memory_mib(process.pid) < before + 80


def most_memory_mib(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    return int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 1024
