"""The context through a stream: what offline rows would be, in any room."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import make_embedder
from torch import Tensor

from extensible_embedding import ContextStream, ExtensibleEmbedder, Reader
from extensible_embedding.errors import InputError
from extensible_embedding.evals.lm import evaluate_lm
from extensible_embedding.evals.methods import Passage, make_method
from extensible_embedding.evals.methods.base import CannotRunError, EmbedsReading

NAME = "extensible-online"


def passage(num_tokens: int, tail: str = "ab") -> Passage:
    ids = torch.randint(97, 123, (num_tokens,), generator=torch.Generator().manual_seed(1))
    return Passage(
        head=torch.tensor([256]), context=ids, tail=torch.tensor(list(tail.encode())).long()
    )


def read(
    embedder: ExtensibleEmbedder, here: Passage, room: int, k: int | None = None
) -> EmbedsReading:
    reading = make_method(NAME, embedder, k=k).read(here, room)
    assert isinstance(reading, EmbedsReading)
    return reading


def expected(
    embedder: ExtensibleEmbedder, here: Passage, rows: int, k: int, dropped: int
) -> Tensor:
    """Head, rows of what lies between the dropped and the recent tokens, recent tokens, tail."""
    reader, split = embedder.reader, dropped + rows * k
    made = embedder.compress(here.context[dropped:split], k=k).rows if rows else torch.empty(0, 32)
    recent = reader.embed_tokens(torch.cat([here.context[split:], here.tail]))
    return torch.cat([reader.embed_tokens(here.head), made, recent])


def test_rows_grow_coarser_with_the_context(tiny_embedder: ExtensibleEmbedder) -> None:
    """Room for 100: at k=2, 4, ... rows of whole chunks of 16, then recent tokens."""
    used = []
    for length in (100, 140, 200, 260, 400, 560):
        here = passage(length)
        reading = read(tiny_embedder, here, 103)
        held = reading.num_rows - 3  # with r rows: r * k + (held - r) tokens
        rows = (length - held) // max(1, reading.k - 1)
        torch.testing.assert_close(
            reading.embeds, expected(tiny_embedder, here, rows, reading.k, 0), atol=1e-5, rtol=1e-5
        )
        used.append(reading.k)
    assert used == sorted(used)
    assert (used[0], used[1], used[-1]) == (1, 2, 16)


def test_a_fixed_k_stays_and_the_oldest_rows_go(tiny_embedder: ExtensibleEmbedder) -> None:
    here = passage(1000)
    reading = read(tiny_embedder, here, 103, k=4)
    assert reading.k == 4
    recent = 50 + (1000 - 50) % 16
    rows = reading.num_rows - 3 - recent
    dropped = 1000 - recent - 4 * rows
    assert dropped > 0
    torch.testing.assert_close(
        reading.embeds, expected(tiny_embedder, here, rows, 4, dropped), atol=1e-5, rtol=1e-5
    )


def test_half_of_the_room_is_recent_text(tiny_embedder: ExtensibleEmbedder) -> None:
    here = passage(500)
    reading = read(tiny_embedder, here, 103)
    recent = tiny_embedder.reader.embed_tokens(torch.cat([here.context[-50:], here.tail]))
    torch.testing.assert_close(reading.embeds[-52:], recent)


@pytest.mark.parametrize("room", [9, 12, 20, 35, 40, 45])
def test_a_small_room_is_read_in_shorter_chunks(
    tiny_embedder: ExtensibleEmbedder, room: int
) -> None:
    here = passage(200)
    reading = read(tiny_embedder, here, room)
    assert reading.k > 1
    assert room - 16 <= reading.num_rows <= room
    ids = torch.cat([here.context[-max(1, (room - 3) // 4) :], here.tail])
    recent = tiny_embedder.reader.embed_tokens(ids)
    torch.testing.assert_close(reading.embeds[-len(recent) :], recent)
    assert tiny_embedder.config.chunk_tokens == 16


def test_the_windows_of_the_equal_window_protocol_are_large_enough(tiny_reader: Reader) -> None:
    """Chunks of 256, 256 target tokens: 512 rows leave 255, 1,024 leave 767."""
    embedder = make_embedder(tiny_reader, chunk_tokens=256)
    method = make_method(NAME, embedder)
    chunks = {}
    for left in (255, 767, 1791):
        fitting = method._fitting_embedder(left)  # type: ignore[attr-defined]
        chunks[left] = fitting.config.chunk_tokens
    assert chunks == {255: 64, 767: 256, 1791: 256}


def test_a_room_without_place_for_a_row_says_so(tiny_embedder: ExtensibleEmbedder) -> None:
    with pytest.raises(CannotRunError, match="two chunks and recent text do not fit in 4 rows"):
        read(tiny_embedder, passage(100), 7)


def test_what_a_stream_cannot_do_says_so(tiny_reader: Reader) -> None:
    embedder = make_embedder(tiny_reader, down_sampling="random")
    with pytest.raises(CannotRunError, match="a down-sampling that nests"):
        read(embedder, passage(200), 103)
    with pytest.raises(CannotRunError, match="k of 2 or more"):
        read(make_embedder(tiny_reader), passage(200), 103, k=1)


def test_it_reads_what_a_stream_of_text_keeps(tiny_embedder: ExtensibleEmbedder, text: str) -> None:
    reader = tiny_embedder.reader
    here = Passage(
        head=torch.tensor([256]), context=reader.encode(text), tail=torch.empty(0).long()
    )
    stream = ContextStream(tiny_embedder, k=2, window=101, reserve_rows=1, recent_tokens=50)
    for word in text.split(" "):
        stream.append(word + " ")
    stream_ids = stream.prompt().embeds(reader, stream.k)
    ours = read(tiny_embedder, here, 101).embeds
    assert len(stream_ids) in (len(ours), len(ours) + 1)  # the last blank is one token more


def test_recovery_needs_a_window(tiny_embedder: ExtensibleEmbedder, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["word " * 300]}), tmp_path / "a.parquet")
    shape = {"context_tokens": [200], "target_tokens": 16, "num_targets": 1}
    data = [tmp_path / "a.parquet"]
    with pytest.raises(InputError, match=f"{NAME!r} reads what fits a window"):
        evaluate_lm(tiny_embedder, data, methods=[NAME], **shape)  # type: ignore[arg-type]
    records = evaluate_lm(
        tiny_embedder,
        data,
        methods=[NAME],
        scale_factors=(),
        windows=[80],
        **shape,  # type: ignore[arg-type]
    )
    assert [(record.method, record.k) for record in records] == [(NAME, 16)]
