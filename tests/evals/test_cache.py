"""Kept chunks give the rows that compressing anew would give, and are read once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import make_embedder
from torch import Tensor

from extensible_embedding import ExtensibleEmbedder, Reader
from extensible_embedding.downsampling import DOWN_SAMPLINGS
from extensible_embedding.errors import InputError
from extensible_embedding.evals import lm
from extensible_embedding.evals.lm import evaluate_lm
from extensible_embedding.evals.methods import RowCache
from extensible_embedding.evals.records import LmRecord

CHUNK = 16


def ids(num_tokens: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(97, 123, (num_tokens,), generator=generator)


@pytest.fixture
def reads(tiny_embedder: ExtensibleEmbedder) -> list[int]:
    """Chunks of every batch that the embedder reads."""
    seen: list[int] = []
    tiny_embedder.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    return seen


@pytest.mark.parametrize("down_sampling", list(DOWN_SAMPLINGS))
@pytest.mark.parametrize("max_bytes", [0, 5 * CHUNK * 32 * 4, 1 << 29])
def test_rows_are_those_of_compress(
    tiny_reader: Reader, down_sampling: str, max_bytes: int
) -> None:
    embedder = make_embedder(tiny_reader, down_sampling=down_sampling)
    cache, context = RowCache(embedder, max_bytes=max_bytes), ids(200)
    for start, end, k in [(0, 200, 4), (0, 200, 8), (0, 170, 3), (32, 200, 16), (0, 7, 2)]:
        part = context[start:end]
        expected = embedder.compress(part, k=k).rows
        torch.testing.assert_close(cache.rows(part, k), expected, rtol=1e-5, atol=1e-6)


def test_half_precision_rows_are_picked_exactly(tiny_reader: Reader) -> None:
    import copy

    model = copy.deepcopy(tiny_reader.model).to(torch.bfloat16)
    embedder = make_embedder(Reader(model, tiny_reader.tokenizer))
    cache, context = RowCache(embedder), ids(128)
    for k in (2, 8):
        assert torch.equal(cache.rows(context, k), embedder.compress(context, k=k).rows)


def test_raw_rows_are_token_embeddings(tiny_embedder: ExtensibleEmbedder) -> None:
    found = RowCache(tiny_embedder).rows(ids(40), 1)
    torch.testing.assert_close(found, tiny_embedder.reader.embed_tokens(ids(40)))


def test_whole_chunks_are_read_once(tiny_embedder: ExtensibleEmbedder, reads: list[int]) -> None:
    cache, context = RowCache(tiny_embedder), ids(170)
    cache.rows(context, 4)
    assert reads == [8, 3]
    cache.rows(context, 16)  # another k
    cache.rows(context[48:], 4)  # older chunks left out
    assert reads == [8, 3]
    cache.rows(context[:165], 4)  # another raw part: the last chunk is another
    assert reads == [8, 3, 1]


def test_another_context_takes_the_place(
    tiny_embedder: ExtensibleEmbedder, reads: list[int]
) -> None:
    cache = RowCache(tiny_embedder)
    cache.rows(ids(160), 4)
    full = cache.num_bytes
    assert full == 160 * 32 * 4
    cache.rows(ids(160, seed=1), 4)
    assert cache.num_bytes == full
    cache.rows(ids(160), 4)
    assert reads == [8, 2] * 3


def test_memory_is_bounded(tiny_embedder: ExtensibleEmbedder, reads: list[int]) -> None:
    most = 4 * CHUNK * 32 * 4
    cache = RowCache(tiny_embedder, max_bytes=most)
    cache.rows(ids(160), 4)
    cache.rows(ids(160), 8)
    assert cache.num_bytes == most
    assert reads == [8, 2, 4, 2]  # the first four are kept


def test_what_compress_refuses_is_refused(tiny_embedder: ExtensibleEmbedder) -> None:
    cache = RowCache(tiny_embedder)
    for token_ids, k, message in (
        (ids(0), 2, "at least 1 token"),
        (ids(40), 17, "k is at most 16"),
        (ids(4), 8, "at most the context's length"),
        (ids(4), 0, "k is 0"),
    ):
        with pytest.raises(InputError, match=message):
            cache.rows(token_ids, k)


class NothingKept(RowCache):
    """Compresses afresh each time."""

    def rows(self, token_ids: Tensor, k: int) -> Tensor:
        return self.embedder.compress(token_ids, k=k).rows


def test_an_evaluation_gives_the_same_and_reads_each_chunk_once(
    tiny_embedder: ExtensibleEmbedder,
    reads: list[int],
    tmp_path: Path,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pq.write_table(pa.table({"text": [text]}), tmp_path / "one.parquet")

    def measured() -> tuple[list[LmRecord], int]:
        reads.clear()
        records = evaluate_lm(
            tiny_embedder,
            [tmp_path / "one.parquet"],
            methods=["extensible"],
            scale_factors=[2, 4, 8, 16],
            context_tokens=[128, 256],
            windows=[64, 96, 112],
            target_tokens=16,
            num_targets=2,
        )
        return records, sum(reads)

    found, few = measured()
    monkeypatch.setattr(lm, "RowCache", NothingKept)
    expected, many = measured()
    assert few < many / 2.5
    for one, other in zip(found, expected, strict=True):
        assert one.target_loss_nats == pytest.approx(other.target_loss_nats, abs=1e-5)
        assert dataclasses.replace(one, target_loss_nats=[]).k == other.k
