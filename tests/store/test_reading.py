"""A lazy context is planned with as any other, and has the rows of the store when it is read."""

from __future__ import annotations

import pytest
import torch
from conftest import make_embedder

from extensible_embedding import ContextStore, Reader
from extensible_embedding.store.reading import lazy_context

from .conftest import text_of


@pytest.mark.parametrize("k", [4, 8, 16])
def test_rows_are_read_when_k_is_known(store: ContextStore, tiny_reader: Reader, k: int) -> None:
    stored = store.add("novel", text_of(70), make_embedder(tiny_reader), title="A novel")
    lazy = lazy_context(stored)
    assert len(lazy.rows) == 0
    assert lazy.num_rows == stored.num_rows
    assert lazy.rows_at(k) == lazy.at(k).num_rows
    assert torch.equal(lazy.at(k).rows, stored.context(k).rows)
    adopted = tiny_reader.adopt(lazy).at(k)
    assert (adopted.title, adopted.reader_fingerprint) == ("A novel", tiny_reader.fingerprint)
    answers = [
        tiny_reader.answer(each, "Who?", k=k, max_new_tokens=4).text
        for each in (lazy, stored.context(k))
    ]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("row_type", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("k", [4, 8, 16, 32])
def test_reading_at_a_multiple_is_computing_at_it_up_to_rounding(
    store: ContextStore, tiny_reader: Reader, row_type: str, k: int
) -> None:
    """Bit for bit at the k that it is kept at: there all products have the same size."""
    embedder = make_embedder(tiny_reader, chunk_tokens=32)
    text, dtype = text_of(300), getattr(torch, row_type)
    found = store.add("novel", text, embedder, row_type=row_type).context(k).rows
    expected = embedder.compress(text, k=k, batch_chunks=1).rows
    if k == 4:
        assert torch.equal(found.to(dtype), expected.to(dtype))
    digits = {"float32": 1e-5, "bfloat16": 2**-8, "float16": 2**-11}[row_type]
    torch.testing.assert_close(found.float(), expected, rtol=digits, atol=1e-5)
