"""Spans and batches of chunks."""

from __future__ import annotations

import pytest
import torch

from extensible_embedding.chunks import chunk_batches, chunk_spans, pad_chunks
from extensible_embedding.errors import InputError


@pytest.mark.parametrize("num_tokens", [1, 15, 16, 17, 32, 50])
@pytest.mark.parametrize("chunk_tokens", [1, 7, 16])
def test_spans_cover_every_token_once(num_tokens: int, chunk_tokens: int) -> None:
    spans = chunk_spans(num_tokens, chunk_tokens)
    assert [place for start, end in spans for place in range(start, end)] == list(range(num_tokens))
    assert all(end - start == chunk_tokens for start, end in spans[:-1])


def test_no_tokens_have_no_chunks() -> None:
    assert chunk_spans(0, 16) == []


def test_a_chunk_holds_a_token() -> None:
    with pytest.raises(InputError, match="at least 1 token"):
        chunk_spans(10, 0)


@pytest.mark.parametrize("num_tokens", [1, 4, 8, 10, 32, 33])
def test_batches_hold_every_token_once_and_nothing_else(num_tokens: int) -> None:
    ids = torch.arange(num_tokens)
    batches = list(chunk_batches(ids, 4, 3))
    assert torch.cat([batch.flatten() for batch in batches]).tolist() == ids.tolist()
    assert all(len(batch) <= 3 and batch.shape[1] == 4 for batch in batches[:-1])
    rest = num_tokens % 4
    assert batches[-1].shape[1] == (rest or 4)
    assert not rest or len(batches[-1]) == 1


def test_padding_is_on_the_right() -> None:
    ids = torch.arange(1, 11)
    batch = pad_chunks(ids, chunk_spans(10, 4))
    assert batch.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 0, 0]]
