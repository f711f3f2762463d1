"""Long texts, and the memory that they take."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import make_embedder

from extensible_embedding import (
    Context,
    Reader,
)


def with_peak(call: Callable[[], Context]) -> tuple[Context, int]:
    """What the call returns, and by how many bytes the process's peak memory grew."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    made = call()
    return made, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def check_long(tiny_reader: Reader, folder: Path, num_tokens: int) -> None:
    embedder = make_embedder(tiny_reader, num_layers=1, chunk_tokens=256)
    ids = torch.arange(num_tokens) % 256
    context, grown = with_peak(lambda: embedder.compress(ids, k=32, batch_chunks=64))
    rows = -(-num_tokens // 256) * 8
    assert context.num_tokens == num_tokens
    assert abs(context.num_rows - rows) < 8
    # The rows once, in float32, and a batch, whatever the number of tokens.
    assert grown < rows * 32 * 4 + (200 << 20)
    context.save(folder)
    loaded = Context.load(folder)
    assert torch.equal(loaded.rows, context.rows)
    assert int(loaded.row_ends()[-1]) == num_tokens


def test_200_thousand_tokens(tmp_path: Path, tiny_reader: Reader) -> None:
    check_long(tiny_reader, tmp_path / "c", 200_001)


@pytest.mark.slow
def test_10_million_tokens(tmp_path: Path, tiny_reader: Reader) -> None:
    check_long(tiny_reader, tmp_path / "c", 10_000_001)


def test_a_long_text(tiny_reader: Reader) -> None:
    embedder = make_embedder(tiny_reader, num_layers=1, chunk_tokens=256)
    context = embedder.compress("word " * 20_000, k=64, batch_chunks=64)
    assert context.num_tokens == 100_000
