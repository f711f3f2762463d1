"""A lazy context is planned with as any other, and has the rows of the store when it is read."""

from __future__ import annotations

import pytest
import torch
from conftest import make_embedder, tiny_llama
from torch import Tensor

from extensible_embedding import ContextStore, Reader
from extensible_embedding.store.reading import lazy_context
from extensible_embedding.store.segment import keep

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


@pytest.mark.parametrize("row_type", ["float32", "bfloat16", "float16", "int8"])
@pytest.mark.parametrize("name", ["strided", "terminal"])
@pytest.mark.parametrize("kept_k", [2, 3, 4])
def test_reading_at_a_multiple_is_computing_at_it_bit_for_bit(
    store: ContextStore, tiny_reader: Reader, kept_k: int, name: str, row_type: str
) -> None:
    """Also where a chunk has few rows, or the last one few tokens."""
    embedder = make_embedder(tiny_reader, chunk_tokens=32, down_sampling=name)
    for number, num_tokens in enumerate((301, 289, 320)):
        ids = tiny_reader.encode(text_of(70))[:num_tokens]
        text = tiny_reader.decode(ids)
        stored = store.add(f"novel {number}", text, embedder, k=kept_k, row_type=row_type)
        for k in range(kept_k, 33, kept_k):
            expected = embedder.compress(text, k=k, batch_chunks=1).rows
            found = stored.context(k).rows
            assert torch.equal(found, as_kept(expected, row_type).to(found.dtype)), k


def as_kept(rows: Tensor, row_type: str) -> Tensor:
    """Rows (R, H) in a type and back."""
    kept, scales = keep(rows, row_type)
    return kept if scales is None else kept.float() * scales[:, None]


def test_a_reader_of_half_precision_reads_at_multiples_as_it_computes(
    store: ContextStore, tiny_reader: Reader
) -> None:
    half = Reader(tiny_llama().bfloat16(), tiny_reader.tokenizer, name="half")
    embedder = make_embedder(half, chunk_tokens=32)
    stored = store.add("novel", text_of(70), embedder)
    for k in (4, 8, 12, 16, 32):
        expected = embedder.compress(text_of(70), k=k, batch_chunks=1).rows
        assert torch.equal(stored.context(k).rows, expected)


def test_mean_rows_at_a_multiple_are_those_computed_up_to_rounding(
    store: ContextStore, tiny_reader: Reader
) -> None:
    embedder = make_embedder(tiny_reader, chunk_tokens=32, down_sampling="mean")
    stored = store.add("novel", text_of(70), embedder, row_type="float32")
    for k in (8, 16, 32):
        expected = embedder.compress(text_of(70), k=k, batch_chunks=1).rows
        torch.testing.assert_close(stored.context(k).rows, expected, rtol=1e-5, atol=1e-6)
