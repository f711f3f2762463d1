"""What each method lets the reader see."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from extensible_embedding import ExtensibleEmbedder
from extensible_embedding.errors import InputError, WindowError
from extensible_embedding.evals.methods import METHODS, WITH_K, Passage, check_methods, make_method
from extensible_embedding.evals.methods.base import CannotRunError, EmbedsReading
from extensible_embedding.evals.methods.prune import Prune
from extensible_embedding.evals.methods.retrieve import Retrieve
from extensible_embedding.evals.methods.rope import rotary_of, scaled_positions
from extensible_embedding.evals.methods.rows import Extensible
from extensible_embedding.pieces import PIECE_TOKENS


def passage(num_tokens: int, tail: str = "") -> Passage:
    ids = torch.randint(97, 123, (num_tokens,), generator=torch.Generator().manual_seed(1))
    return Passage(
        head=torch.tensor([256]), context=ids, tail=torch.tensor(list(tail.encode())).long()
    )


def embeds(reading: object) -> Tensor:
    assert isinstance(reading, EmbedsReading)
    return reading.embeds


UNLIMITED = ("raw", "pi", "ntk", "yarn")
OPTIONAL = ("llmlingua-2", "kvpress-snapkv", "kvpress-streaming-llm", "kvpress-knorm")
FOR_RECOVERY = {name for name, method in WITH_K.items() if method.for_recovery}
HERE = [name for name in METHODS if name not in {*OPTIONAL, *FOR_RECOVERY}]


@pytest.mark.parametrize("name", [name for name in HERE if name not in UNLIMITED])
@pytest.mark.parametrize("num_tokens", [1, 40, 63, 64, 65, 300, 1000])
def test_no_method_takes_more_than_its_room(
    tiny_embedder: ExtensibleEmbedder, name: str, num_tokens: int
) -> None:
    reading = make_method(name, tiny_embedder).read(passage(num_tokens, "ab"), 67)
    assert 3 <= reading.num_rows <= 67
    if num_tokens <= 64 and name != "none":
        assert reading.num_rows == num_tokens + 3


@pytest.mark.parametrize("name", HERE)
def test_every_method_gives_losses_and_text(tiny_embedder: ExtensibleEmbedder, name: str) -> None:
    reading = make_method(name, tiny_embedder).read(passage(200, "ab"), 300)
    assert reading.nll(torch.tensor([97, 98, 99])).shape == (3,)
    assert isinstance(reading.generate(3), str)


@pytest.mark.parametrize("name", [name for name in HERE if name not in UNLIMITED[1:]])
def test_a_frame_larger_than_the_window_is_refused(
    tiny_embedder: ExtensibleEmbedder, name: str
) -> None:
    with pytest.raises(WindowError, match="Head and tail must fit in 2 rows, but they take 3"):
        make_method(name, tiny_embedder).read(passage(100, "ab"), 2)


def test_raw_context_that_does_not_fit_is_refused(tiny_embedder: ExtensibleEmbedder) -> None:
    with pytest.raises(WindowError, match="Raw context must fit in 66 rows, but it has 100"):
        make_method("raw", tiny_embedder).read(passage(100), 67)


def test_unknown_method(tiny_embedder: ExtensibleEmbedder) -> None:
    with pytest.raises(InputError, match="one or more of none, .*, but 'magic' is none of them"):
        make_method("magic", tiny_embedder)


def test_truncate_keeps_the_most_recent_tokens(tiny_embedder: ExtensibleEmbedder) -> None:
    here = passage(100)
    found = embeds(make_method("truncate", tiny_embedder).read(here, 31))
    ids = torch.cat([here.head, here.context[-30:]])
    assert torch.equal(found, tiny_embedder.reader.embed_tokens(ids))


def test_streaming_llm_keeps_first_and_recent_tokens(tiny_embedder: ExtensibleEmbedder) -> None:
    here = passage(100)
    found = embeds(make_method("streaming-llm", tiny_embedder).read(here, 31))
    ids = torch.cat([here.head, here.context[:4], here.context[-26:]])
    assert torch.equal(found, tiny_embedder.reader.embed_tokens(ids))


def test_extensible_reads_older_text_as_rows_and_recent_text_raw(
    tiny_embedder: ExtensibleEmbedder,
) -> None:
    here, reader = passage(200), tiny_embedder.reader
    reading = Extensible(tiny_embedder).read(here, 91)  # 60 raw, 30 rows for 140 tokens: k=6
    assert reading.k == 6
    rows = tiny_embedder.compress(here.context[:140], k=6).rows
    expected = [reader.embed_tokens(here.head), rows, reader.embed_tokens(here.context[140:])]
    torch.testing.assert_close(embeds(reading), torch.cat(expected))


def test_extensible_at_a_fixed_k_keeps_as_much_raw_as_fits(
    tiny_embedder: ExtensibleEmbedder,
) -> None:
    reading = Extensible(tiny_embedder, 8).read(passage(200), 81)
    assert reading.k == 8
    assert reading.num_rows in (80, 81)


def test_extensible_leaves_out_the_oldest_where_no_k_is_enough(
    tiny_embedder: ExtensibleEmbedder,
) -> None:
    here = passage(1000)
    half = Extensible(tiny_embedder, recent_share=0.5)
    reading = half.read(here, 61)  # 30 raw; 30 rows at k=16 are 480 tokens
    assert reading.k == 16
    assert reading.num_rows == 61
    rows = tiny_embedder.compress(
        here.context[31 * 16 : -30], k=16
    ).rows  # whole chunks are left out
    assert torch.equal(embeds(reading)[1:31], rows)


def test_all_rows_reads_nothing_raw(tiny_embedder: ExtensibleEmbedder) -> None:
    here = passage(100)
    found = embeds(Extensible(tiny_embedder, 4, all_rows=True).read(here, 300))
    assert torch.equal(found[1:], tiny_embedder.compress(here.context, k=4).rows)


def test_mean_pool_averages_token_embeddings(tiny_embedder: ExtensibleEmbedder) -> None:
    here, reader = passage(200), tiny_embedder.reader
    found = embeds(make_method("mean-pool", tiny_embedder, k=4).read(here, 81))
    first = reader.embed_tokens(here.context[:4]).mean(0)
    torch.testing.assert_close(found[1], first)


def test_recent_reads_as_many_raw_tokens_as_there_would_be_rows(
    tiny_embedder: ExtensibleEmbedder,
) -> None:
    here, reader = passage(101), tiny_embedder.reader
    made = make_method("recent", tiny_embedder, k=4, all_rows=True).read(here, 300)
    rows = make_method("extensible", tiny_embedder, k=4, all_rows=True).read(here, 300)
    assert made.num_rows == rows.num_rows
    assert torch.equal(embeds(made)[1:], reader.embed_tokens(here.context[-(rows.num_rows - 1) :]))
    for name in ("recent", "extensible-raw-end"):
        with pytest.raises(InputError, match="without windows; with a window or a question"):
            check_methods(["extensible", name])
        check_methods([name], recovery=True)


def test_retrieval_finds_the_piece_with_the_words_of_the_question(
    tiny_embedder: ExtensibleEmbedder,
) -> None:
    reader = tiny_embedder.reader
    text = "word " * 40 + ". The captain was Lind. " + "more " * 40
    here = Passage(
        head=torch.tensor([256]),
        context=reader.encode(text),
        tail=reader.encode("Who was the captain?"),
    )
    for room in (64, 100):
        found = Retrieve(reader).select(here, room)
        assert "The captain was Lind." in reader.decode(found)
        assert len(found) <= room


def test_retrieval_without_words_in_common_reads_the_latest(
    tiny_embedder: ExtensibleEmbedder,
) -> None:
    here = passage(100)
    kept = Retrieve(tiny_embedder.reader).select(here, 70)
    assert torch.equal(kept[-36:], here.context[-36:])


@pytest.mark.parametrize("name", ["pi", "ntk", "yarn"])
def test_rescaled_positions_read_all_and_are_put_back(
    tiny_embedder: ExtensibleEmbedder, name: str
) -> None:
    reader, long, short = tiny_embedder.reader, passage(900), passage(100)
    targets = torch.tensor([97, 98, 99])
    method, raw = make_method(name, tiny_embedder), make_method("raw", tiny_embedder)
    before = rotary_of(reader)
    assert method.read(long, 100).num_rows == 901
    assert method.read(long, 100).nll(targets).isfinite().all()
    assert rotary_of(reader) is before
    method.new_tokens = 10  # type: ignore[attr-defined]
    expected = raw.read(short, 500).nll(targets)
    torch.testing.assert_close(method.read(short, 500).nll(targets), expected)


def test_position_interpolation_divides_positions(tiny_embedder: ExtensibleEmbedder) -> None:
    model, ids = tiny_embedder.reader.model, passage(50).context[None]
    with torch.inference_mode():
        expected = model(ids, position_ids=torch.arange(50)[None] / 4).logits
        with scaled_positions(tiny_embedder.reader, "linear", 4.0):
            found = model(ids).logits
    torch.testing.assert_close(found, expected)


def test_a_reader_without_rotary_positions_says_so(
    tiny_embedder: ExtensibleEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_embedder.reader.model.config
    monkeypatch.setattr(config, "rope_parameters", None, raising=False)
    with pytest.raises(CannotRunError, match="has no rotary positions"):
        make_method("pi", tiny_embedder).read(passage(900), 100)


def test_pruning_keeps_the_least_predictable_tokens(tiny_embedder: ExtensibleEmbedder) -> None:
    here = passage(100)
    method = Prune(tiny_embedder.reader, block_tokens=30)
    losses = method.losses(here.context)
    assert losses.shape == (100,)
    kept = method.select(here, 40)
    least = losses.sort().values[60]
    assert torch.equal(kept, here.context[losses >= least])


def test_a_fixed_k_whose_rows_do_not_fit_leaves_recent_text_raw(
    tiny_embedder: ExtensibleEmbedder,
) -> None:
    here = passage(400)
    found = embeds(Extensible(tiny_embedder, k=4, recent_share=0.5).read(here, 61))
    recent = tiny_embedder.reader.embed_tokens(here.context[-30:])
    assert torch.equal(found[-30:], recent)
    older = here.context[:-30]
    rows = len(found) - 31
    assert 30 - 4 < rows <= 30
    chunk = tiny_embedder.config.chunk_tokens
    dropped = -(-(len(older) - 4 * rows) // chunk) * chunk
    torch.testing.assert_close(found[1:-30], tiny_embedder.compress(older[dropped:], k=4).rows)


@pytest.mark.parametrize("room", [15, 22, 50, 127, 250])
@pytest.mark.parametrize("tail", ["", "abc"])
def test_retrieval_takes_no_more_than_its_room_and_nearly_all(
    tiny_embedder: ExtensibleEmbedder, room: int, tail: str
) -> None:
    found = len(Retrieve(tiny_embedder.reader).select(passage(300, tail), room))
    assert max(0, room - PIECE_TOKENS) < found <= room
    assert found == room or room >= 300 % PIECE_TOKENS  # less than the shortest piece


def test_rows_of_a_whole_context_are_never_cut(tiny_embedder: ExtensibleEmbedder) -> None:
    """Chunks of 16 tokens take 2 rows at k=9, where 16 / 9 would be fewer."""
    method = make_method("extensible", tiny_embedder, k=9, all_rows=True)
    ids = torch.arange(97, 113).repeat(20)
    with pytest.raises(WindowError, match="fit in 36 rows, but they take 40"):
        method.read(Passage(head=ids[:1], context=ids, tail=ids[:0]), 37)
