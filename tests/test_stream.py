"""A context that grows in a window that does not."""

from __future__ import annotations

import pytest
import torch
from conftest import make_embedder
from torch import Tensor

from extensible_embedding import Answer, ContextStream, ExtensibleEmbedder, Reader
from extensible_embedding.errors import InputError, WindowError
from extensible_embedding.prompt import question_prompt

SMALL = {"k": 2, "window": 180, "reserve_rows": 110}


@pytest.fixture
def token_ids() -> Tensor:
    return torch.randint(0, 256, (900,), generator=torch.Generator().manual_seed(0))


def state(stream: ContextStream) -> tuple[int, int, int, int, Tensor]:
    embeds = stream.prompt().embeds(stream.embedder.reader, 1)
    counts = (stream.k, stream.num_tokens, stream.num_dropped_tokens, stream.num_recent)
    return *counts, embeds


@pytest.mark.parametrize("piece", [1, 7, 16, 50, 300])
def test_pieces_change_nothing(
    tiny_embedder: ExtensibleEmbedder, token_ids: Tensor, piece: int
) -> None:
    whole, pieces = (ContextStream(tiny_embedder, **SMALL) for _ in range(2))
    whole.append(token_ids)
    for part in token_ids.split(piece):
        pieces.append(part)
    *counts, embeds = state(whole)
    *other_counts, other_embeds = state(pieces)
    assert counts == other_counts
    assert torch.equal(embeds, other_embeds)


def test_memory_is_bounded_and_no_token_is_lost_silently(
    tiny_embedder: ExtensibleEmbedder, token_ids: Tensor
) -> None:
    stream = ContextStream(tiny_embedder, **SMALL)
    ks = []
    for part in token_ids.split(23):
        stream.append(part)
        ks.append(stream.k)
        assert stream.num_rows + stream.num_recent <= stream.room == 70
        kept = stream.num_tokens - stream.num_dropped_tokens
        compressed = kept - stream.num_recent
        assert compressed % 16 == 0
        assert stream.num_rows == compressed // 16 * -(-16 // stream.k)
    assert ks == sorted(ks)
    assert ks[-1] == 16
    assert stream.num_tokens == 900


def test_recent_text_is_raw_and_older_text_is_rows(
    tiny_embedder: ExtensibleEmbedder, token_ids: Tensor
) -> None:
    stream = ContextStream(tiny_embedder, **SMALL)
    stream.append(token_ids[:100])
    reader, recent = tiny_embedder.reader, stream.num_recent
    embeds = stream.prompt().embeds(reader, 1)
    old = tiny_embedder.compress(token_ids[: 100 - recent], k=stream.k)
    assert stream.k == 2
    torch.testing.assert_close(embeds[1 : 1 + stream.num_rows], old.rows, rtol=1e-5, atol=1e-6)
    assert torch.equal(
        embeds[1 + stream.num_rows :], reader.embed_tokens(token_ids[100 - recent : 100])
    )


def test_rows_coarsen_to_what_compressing_at_that_k_gives(
    tiny_embedder: ExtensibleEmbedder, token_ids: Tensor
) -> None:
    stream = ContextStream(tiny_embedder, **SMALL)
    stream.append(token_ids[:200])
    assert stream.k > 2
    assert stream.num_dropped_tokens == 0
    old = tiny_embedder.compress(token_ids[: 200 - stream.num_recent], k=stream.k)
    embeds = stream.prompt().embeds(tiny_embedder.reader, 1)
    torch.testing.assert_close(embeds[1 : 1 + stream.num_rows], old.rows, rtol=1e-5, atol=1e-6)


def test_at_the_largest_k_the_oldest_rows_go(
    tiny_embedder: ExtensibleEmbedder, token_ids: Tensor
) -> None:
    stream = ContextStream(tiny_embedder, max_k=4, **SMALL)
    stream.append(token_ids)
    assert stream.k == 4
    first = stream.num_dropped_tokens
    assert first > 0
    kept = tiny_embedder.compress(token_ids[first : 900 - stream.num_recent], k=4)
    embeds = stream.prompt().embeds(tiny_embedder.reader, 1)
    torch.testing.assert_close(embeds[1 : 1 + stream.num_rows], kept.rows, rtol=1e-5, atol=1e-6)


def test_answers_at_any_time(tiny_embedder: ExtensibleEmbedder, token_ids: Tensor) -> None:
    stream = ContextStream(tiny_embedder, **SMALL)
    for part in token_ids.split(150):
        stream.append(part)
        answer = stream.answer("Who?", max_new_tokens=3)
        assert isinstance(answer, Answer)
        assert answer.prompt_rows + 3 <= answer.window
        pieces = stream.answer("Who?", max_new_tokens=3, stream=True)
        assert "".join(pieces).strip() == answer.text  # type: ignore[arg-type]


def test_short_text_is_raw_and_reads_as_the_plain_prompt(
    tiny_embedder: ExtensibleEmbedder,
) -> None:
    stream = ContextStream(tiny_embedder, window=400, reserve_rows=200)
    stream.append("All of this ")
    stream.append("is short.")
    reader = tiny_embedder.reader
    context = tiny_embedder.compress("All of this is short.", k=4)
    answer = stream.answer("Who?", max_new_tokens=8)
    plain = reader.answer(context, "Who?", k=1, max_new_tokens=8)
    assert isinstance(answer, Answer)
    assert isinstance(plain, Answer)
    assert stream.num_rows == 0
    assert (answer.text, answer.prompt_rows) == (plain.text, plain.prompt_rows)
    assert question_prompt(reader, [context], "Who?").num_rows(1) == answer.prompt_rows


def test_nothing_appended_is_no_change(tiny_embedder: ExtensibleEmbedder) -> None:
    stream = ContextStream(tiny_embedder, window=400, reserve_rows=200)
    stream.append("")
    assert stream.num_tokens == 0
    with pytest.raises(InputError, match="it is empty; append text"):
        stream.answer("Who?")


def test_mean_down_sampling_grows_too(tiny_reader: Reader, token_ids: Tensor) -> None:
    stream = ContextStream(make_embedder(tiny_reader, down_sampling="mean"), **SMALL)
    stream.append(token_ids)
    assert stream.num_rows + stream.num_recent <= stream.room


def test_what_cannot_grow_is_refused(
    tiny_reader: Reader, tiny_embedder: ExtensibleEmbedder
) -> None:
    with pytest.raises(InputError, match="nests"):
        ContextStream(make_embedder(tiny_reader, down_sampling="terminal"))
    with pytest.raises(InputError, match="k of 2 or more"):
        ContextStream(tiny_embedder, k=1, window=400, reserve_rows=100)
    with pytest.raises(WindowError, match="room for two chunks"):
        ContextStream(tiny_embedder, window=120, reserve_rows=100)


def test_a_long_question_does_not_fit(tiny_embedder: ExtensibleEmbedder, token_ids: Tensor) -> None:
    stream = ContextStream(tiny_embedder, k=2, window=500, reserve_rows=60)
    stream.append(token_ids)
    with pytest.raises(WindowError, match="must fit"):
        stream.answer("Who? " * 40)
