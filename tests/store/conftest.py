"""A store in a temporary folder, and texts whose tokens are bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import make_embedder

from extensible_embedding import ExtensibleEmbedder, Reader
from extensible_embedding.errors import CheckpointError, ExtensibleError
from extensible_embedding.store.store import ContextStore

WORDS = "The heron waits by the old grey mill, and nobody asks it why. "
NON_ASCII = "Le h\u00e9ron attend; \u65e5\u672c \U0001f426 encore. "


@pytest.fixture
def store(tmp_path: Path) -> ContextStore:
    return ContextStore(tmp_path / "store", wait_s=0.2)


@pytest.fixture
def embedder(tiny_reader: Reader) -> ExtensibleEmbedder:
    return make_embedder(tiny_reader, chunk_tokens=32)


@pytest.fixture
def full(store: ContextStore, embedder: ExtensibleEmbedder) -> ContextStore:
    """Two contexts, each of a segment of whole chunks and one of the rest."""
    store.add("novel", TEXT, embedder)
    store.add("other", OTHER, embedder)
    return store


def text_of(num_bytes: int) -> str:
    """That many bytes, hence tokens, of text that does not repeat within a chunk."""
    whole = "".join(f"{number}. {WORDS}" for number in range(num_bytes // len(WORDS) + 1))
    return whole[:num_bytes]


TEXT = text_of(100)
OTHER = text_of(70)[5:]


@contextmanager
def refused(kind: type[ExtensibleError], words: str) -> Iterator[None]:
    """Exactly this error, in one sentence with what to do next."""
    with pytest.raises(kind, match=words) as caught:
        yield
    sentence = str(caught.value)
    assert type(caught.value) is kind or kind is CheckpointError
    assert "\n" not in sentence
    assert sentence.endswith(".")
    assert len(sentence) < 1000
    assert ";" in sentence


def folder_of(store: ContextStore, name: str) -> Path:
    return store.place.folder / store.open(name).folder


def contents(store: ContextStore) -> dict[str, tuple[str, list[list[float]]]]:
    """All that a store serves, read afresh."""
    again = ContextStore(store.place.name)
    return {
        each.name: (each.text(), each.context().rows.tolist() if each.num_rows else [])
        for each in (again.open(listed.name) for listed in again)
    }


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "lock"
    }
