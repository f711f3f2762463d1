"""Mixed precision: the best spans raw among rows."""

from __future__ import annotations

import pytest
import torch
from conftest import byte_tokenizer, tiny_llama
from torch import Tensor

from extensible_embedding import ExtensibleEmbedder, Reader
from extensible_embedding.downsampling import num_rows
from extensible_embedding.evals.methods import Passage, Reading, make_method
from extensible_embedding.evals.methods.base import EmbedsReading
from extensible_embedding.evals.methods.following import FollowingReading
from extensible_embedding.expand import expanded_prompt
from extensible_embedding.pieces import PIECE_TOKENS
from extensible_embedding.prompt import BETWEEN_SPANS, question_frame

ROOM = 4 * PIECE_TOKENS


def ids(text: str) -> Tensor:
    return Reader(tiny_llama(), byte_tokenizer()).encode(text)


def embeds(
    embedder: ExtensibleEmbedder, context: Tensor, tail: str, k: int | None, room: int = ROOM
) -> Tensor:
    passage = Passage(head=ids("H"), context=context, tail=ids(tail))
    reading = make_method("extensible-mixed", embedder, k=k).read(passage, room)
    assert reading.num_rows <= room
    return first(reading).embeds


def first(reading: Reading) -> EmbedsReading:
    """As it is read before anything new."""
    if isinstance(reading, FollowingReading):
        return reading.first
    assert isinstance(reading, EmbedsReading)
    return reading


def piece(words: str) -> Tensor:
    return ids((words + " ").ljust(PIECE_TOKENS, ".")[:PIECE_TOKENS])


def test_rows_then_the_span_that_was_asked_for(tiny_embedder: ExtensibleEmbedder) -> None:
    needle = piece("my magic number was seven")
    filler = piece("rain fell upon every hill")
    context = torch.cat([filler, filler, needle, *[filler] * 7])
    tail = "magic number?"
    found = embeds(tiny_embedder, context, tail, k=8, room=164)
    raw = torch.cat([ids(BETWEEN_SPANS), needle, ids(tail)])
    assert torch.equal(found[-len(raw) :], tiny_embedder.reader.embed_tokens(raw))
    made = tiny_embedder.compress(context, k=8).rows  # all of it: rows come first
    torch.testing.assert_close(found[1 : -len(raw)], made)


def test_where_no_question_follows_a_span_is_read_with_what_came_after_it(
    tiny_embedder: ExtensibleEmbedder,
) -> None:
    """What followed the like of the context's end is what may come again."""
    filler, before, after = piece("rain fell"), piece("magic seven"), piece("then the sun rose")
    context = torch.cat([*[filler] * 3, before, after, *[filler] * 8, before])
    room = 10 * PIECE_TOKENS
    passage = Passage(head=ids("H"), context=context, tail=context[:0])
    reading = first(make_method("extensible-mixed", tiny_embedder, k=8).read(passage, room))
    recent = context[-(2 * (room - 1) // 3) :]
    raw = torch.cat([before, after, recent])
    assert torch.equal(reading.embeds[-len(raw) :], tiny_embedder.reader.embed_tokens(raw))


def test_recent_text_stays_raw_where_no_question_follows(
    tiny_embedder: ExtensibleEmbedder,
) -> None:
    context = torch.cat([piece(f"hill {number}") for number in range(10)])
    found = embeds(tiny_embedder, context, "", k=8)
    recent = context[-(2 * (ROOM - 1) // 3) :]
    assert torch.equal(found[-len(recent) :], tiny_embedder.reader.embed_tokens(recent))


def test_auto_takes_the_smallest_k_at_which_the_older_text_fits(
    tiny_embedder: ExtensibleEmbedder,
) -> None:
    context = torch.cat([piece(f"hill {number}") for number in range(8)])
    method = make_method("extensible-mixed", tiny_embedder)
    passage = Passage(head=ids("H"), context=context, tail=context[:0])
    reading = method.read(passage, 6 * PIECE_TOKENS)
    left = 6 * PIECE_TOKENS - 1
    recent = int(2 / 3 * left)
    older = len(context) - recent
    room = left - recent - PIECE_TOKENS
    whole, rest = divmod(older, tiny_embedder.config.chunk_tokens)

    def rows(k: int) -> int:
        return whole * num_rows(tiny_embedder.config.chunk_tokens, k) + num_rows(rest, k)

    assert reading.k == min(k for k in range(2, 17) if rows(k) <= room)


def test_the_question_alone_asks_not_the_words_around_it(tiny_embedder: ExtensibleEmbedder) -> None:
    needle, decoy = piece("my magic number was seven"), piece("answer in short words please")
    context = torch.cat([piece("rain fell upon hills"), needle, decoy, piece("the sun shone")])
    tail = ids("please answer in short words: the magic number?")
    for question, best in {"": decoy, "the magic number?": needle}.items():
        passage = Passage(head=ids("H"), context=context, tail=tail, question=question)
        reading = make_method("retrieve", tiny_embedder).read(passage, 1 + 64 + len(tail))
        assert isinstance(reading, EmbedsReading)
        raw = tiny_embedder.reader.embed_tokens(best)
        assert torch.equal(reading.embeds[1:65], raw)


@pytest.mark.parametrize("room", [440, 460, 700, 900])
def test_before_a_question_it_reads_as_an_expanded_prompt_does(
    tiny_embedder: ExtensibleEmbedder, room: int
) -> None:
    reader = tiny_embedder.reader
    text = "".join(
        f"Upon hill {number} the rain fell, and it was {number}. " for number in range(60)
    )
    question = "Upon which hill was it 23?"
    context = tiny_embedder.compress(text, k=8)
    prompt = expanded_prompt(reader, [context], question, k=8, room=room)
    assert prompt.spans
    head, tail = question_frame(reader, question)
    passage = Passage(head=head, context=context.token_ids, tail=tail, question=question)
    reading = make_method("extensible-mixed", tiny_embedder, k=8).read(passage, room)
    assert isinstance(reading, EmbedsReading)
    parts = [
        reader.embed_tokens(part) if part.dim() == 1 else part
        for part in prompt.tensors(reader, prompt.each_k(8))
    ]
    torch.testing.assert_close(reading.embeds, torch.cat(parts))


@pytest.mark.parametrize("num_tokens", [80, 110, 130, 160])
def test_a_text_too_short_for_spans_is_rows_as_in_a_prompt(
    tiny_embedder: ExtensibleEmbedder, num_tokens: int
) -> None:
    reader, question = tiny_embedder.reader, "Which hill?"
    text = "".join(f"Upon hill {number} the rain fell then. " for number in range(9))[:num_tokens]
    context = tiny_embedder.compress(text, k=8)
    head, tail = question_frame(reader, question)
    room = len(head) + num_tokens + len(tail) - 5
    prompt = expanded_prompt(reader, [context], question, k=8, room=room)
    passage = Passage(head=head, context=context.token_ids, tail=tail, question=question)
    reading = make_method("extensible-mixed", tiny_embedder, k=8).read(passage, room)
    assert isinstance(reading, EmbedsReading)
    assert len(reading.embeds) == prompt.num_rows(8)


@pytest.mark.parametrize("room", [70, 100, 130, 200])
@pytest.mark.parametrize("tail", ["", "hill?"])
def test_a_small_room_is_kept_to(tiny_embedder: ExtensibleEmbedder, room: int, tail: str) -> None:
    context = torch.cat([piece(f"hill {number}") for number in range(10)])
    passage = Passage(head=ids("H"), context=context, tail=ids(tail))
    reading = make_method("extensible-mixed", tiny_embedder, k=8).read(passage, room)
    assert len(passage.head) + len(passage.tail) < reading.num_rows <= room


def test_a_context_that_fits_is_raw(tiny_embedder: ExtensibleEmbedder) -> None:
    context = piece("all of it")
    found = embeds(tiny_embedder, context, "", k=None)
    raw = torch.cat([ids("H"), context])
    assert torch.equal(found, tiny_embedder.reader.embed_tokens(raw))
