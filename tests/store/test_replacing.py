"""A context takes another's place when it is whole, not before."""

from __future__ import annotations

import pytest
from conftest import make_embedder

from extensible_embedding import ContextStore, ExtensibleEmbedder, Reader
from extensible_embedding.errors import InputError

from .conftest import text_of


@pytest.fixture
def embedder(tiny_reader: Reader) -> ExtensibleEmbedder:
    return make_embedder(tiny_reader)


def test_a_context_is_replaced(store: ContextStore, embedder: ExtensibleEmbedder) -> None:
    store.add("novel", text_of(100), embedder, metadata={"edition": 1})
    with pytest.raises(InputError, match="already"):
        store.add("novel", "Another.", embedder)
    store.add("novel", "Another.", embedder, k=8, metadata={"edition": 2}, replace=True)
    assert store["novel"].text() == "Another."
    assert store["novel"].metadata == {"edition": 2}
    store.add("new", "A text.", embedder, replace=True)
    assert len(list(store.place.folder.rglob("*.txt"))) == 2


def test_the_old_one_stays_until_then(store: ContextStore, embedder: ExtensibleEmbedder) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    store.add("novel", text_of(100), embedder)
    before = sorted(store.place.folder.rglob("*"))
    with pytest.raises(KeyboardInterrupt):
        store.add("novel", "Another.", embedder, replace=True, progress=interrupt)
    assert store["novel"].text() == text_of(100)
    assert sorted(store.place.folder.rglob("*")) == before
