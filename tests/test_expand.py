"""Spans that matter are raw, everything else is rows, and both keep to the budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from conftest import make_embedder
from torch import Tensor

from extensible_embedding import Context, ExtensibleEmbedder, Reader, expand
from extensible_embedding.errors import InputError, MissingExtraError, WindowError
from extensible_embedding.expand import (
    ByAttention,
    ByEmbedding,
    ByWords,
    Piece,
    SpanRanker,
    expanded_prompt,
    tokens_of_spans,
)
from extensible_embedding.pieces import PIECE_TOKENS, cut
from extensible_embedding.prompt import Prompt, choose_k, question_prompt
from extensible_embedding.spans import SpanIndex

FILLER = "Nothing at all is told in this long and idle sentence about the weather. "
NEEDLE = "The zebra hides behind the violet door. "
QUESTION = "Where does the zebra hide?"


@pytest.fixture
def embedder(tiny_reader: Reader) -> ExtensibleEmbedder:
    return make_embedder(tiny_reader, chunk_tokens=64)


@pytest.fixture
def context(embedder: ExtensibleEmbedder) -> Context:
    return embedder.compress(FILLER * 12 + NEEDLE + FILLER * 12, k=4)


def piece(reader: Reader, token_ids: Tensor, start: int, end: int) -> Piece:
    ids = token_ids[start:end]
    return Piece(context=0, start=start, end=end, reader=reader, token_ids=ids)


class InOrder(SpanRanker):
    """The first pieces of all."""

    def rank(
        self, reader: Reader, contexts: Sequence[Context], pieces: Sequence[Piece], question: str
    ) -> list[int]:
        return list(range(len(pieces)))


def test_the_span_that_shares_words_is_raw(tiny_reader: Reader, context: Context) -> None:
    prompt = expanded_prompt(tiny_reader, [context], QUESTION, room=600)
    raw = [tiny_reader.decode(context.token_ids[each.start : each.end]) for each in prompt.spans]
    assert "zebra" in "".join(raw)
    assert prompt.num_rows(choose_k(prompt, 600)) <= 600
    assert prompt.contexts == [context]


@pytest.mark.parametrize("room", [200, 333, 600, 1000])
@pytest.mark.parametrize("expand", ["auto", 0, 64, 10_000])
def test_the_budget_holds_and_all_is_read(
    tiny_reader: Reader, context: Context, room: int, expand: int | str
) -> None:
    prompt = expanded_prompt(tiny_reader, [context], QUESTION, expand=expand, room=room)
    assert prompt.num_rows(choose_k(prompt, room)) <= room
    spans = sum(map(len, prompt.spans))
    left = room - question_prompt(tiny_reader, [context], QUESTION).num_raw
    assert spans <= (tokens_of_spans(left) if expand == "auto" else int(expand))
    assert len(prompt.contexts) == 1


@pytest.mark.parametrize(
    ("room", "most"), [(0, 0), (60, 50), (600, 500), (700, 512), (1536, 512), (3000, 1000)]
)
def test_spans_take_more_of_a_small_room(room: int, most: int) -> None:
    assert tokens_of_spans(room) == most


def test_words_that_are_kept_rank_alike_and_the_oldest_go(
    tiny_reader: Reader, embedder: ExtensibleEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    class Counted(SpanIndex):
        def __init__(self, texts: Sequence[str]) -> None:
            made.append(len(texts))
            super().__init__(texts)

    monkeypatch.setattr(expand, "SpanIndex", Counted)
    texts = [FILLER * n + NEEDLE + FILLER * n for n in (8, 9, 10)]
    contexts = [embedder.compress(text, k=4) for text in texts]
    keeping = ByWords(kept_bytes=1 << 20)

    def spans(context: Context, question: str, ranker: SpanRanker) -> list[tuple[int, int]]:
        prompt = expanded_prompt(
            tiny_reader, [context], question, expand=128, room=700, ranker=ranker
        )
        return [(span.start, span.end) for span in prompt.spans]

    questions = [QUESTION, "How is the weather?"]
    for context in (*contexts, *contexts[1:]):
        for question in questions:
            found = spans(dataclasses.replace(context), question, keeping)
            kept = len(made)
            assert found == spans(context, question, ByWords())
            del made[kept:]
    assert len(made) == 3  # one for each text, none for the second questions
    keeping.kept_bytes = keeping._bytes - 1
    ranked = keeping.rank(tiny_reader, [], [piece(tiny_reader, contexts[0].token_ids, 0, 9)], "a")
    assert ranked == [0]
    del made[3:]
    spans(contexts[0], QUESTION, keeping)
    assert len(made) == 4  # it was the oldest


def test_a_k_that_is_given_is_kept(tiny_reader: Reader, context: Context) -> None:
    plain = question_prompt(tiny_reader, [context], QUESTION)
    prompt = expanded_prompt(tiny_reader, [context], QUESTION, k=8, room=plain.num_rows(8) + 150)
    assert prompt.num_rows(8) <= plain.num_rows(8) + 150
    assert prompt.spans
    with pytest.raises(WindowError):
        expanded_prompt(tiny_reader, [context], QUESTION, k=8, room=plain.num_rows(8) - 1)


@pytest.mark.parametrize(("expand", "most"), [(0, 0), (1, 64), (64, 64), (100, 100), (300, 300)])
def test_spans_take_nearly_the_tokens_that_were_asked_for(
    tiny_reader: Reader, context: Context, expand: int, most: int
) -> None:
    prompt = expanded_prompt(tiny_reader, [context], QUESTION, expand=expand, room=900)
    found = sum(map(len, prompt.spans))
    assert max(0, most - PIECE_TOKENS) <= found <= most
    assert found or not expand


def test_what_fits_raw_stays_raw(tiny_reader: Reader, context: Context) -> None:
    plain = question_prompt(tiny_reader, [context], QUESTION)
    prompt = expanded_prompt(tiny_reader, [context], QUESTION, room=plain.num_rows(1))
    assert not prompt.spans
    assert choose_k(prompt, plain.num_rows(1)) == 1


def test_a_k_that_is_given_has_spans_where_all_would_fit_raw(
    tiny_reader: Reader, context: Context
) -> None:
    room = 2 * question_prompt(tiny_reader, [context], QUESTION).num_rows(1)
    for k in (8, [8]):
        prompt = expanded_prompt(tiny_reader, [context], QUESTION, k=k, expand=64, room=room)
        (span,) = prompt.spans
        assert "zebra" in tiny_reader.decode(context.token_ids[span.start : span.end])


def test_what_is_read_raw_has_no_spans(
    tiny_reader: Reader, embedder: ExtensibleEmbedder, context: Context
) -> None:
    note = embedder.compress(NEEDLE * 5, k=1)
    for k in ((8, 1), "auto"):
        prompt = expanded_prompt(tiny_reader, [context, note], QUESTION, k=k, room=1200)
        assert prompt.spans
        assert {id(span.context) for span in prompt.spans} == {id(context)}


def test_a_context_may_be_read_twice(tiny_reader: Reader, context: Context) -> None:
    for room in (900, 1200):
        prompt = expanded_prompt(tiny_reader, [context, context], QUESTION, room=room)
        assert prompt.num_rows(choose_k(prompt, room)) <= room
        assert len(prompt.contexts) == 2
        assert prompt.spans
        places = [(id(span.context), span.start) for span in prompt.spans]
        assert len(set(places)) == len(places)


@pytest.mark.parametrize("expand", [-5, "foo", True])
def test_spans_are_asked_for_in_tokens_however_short_the_text(
    tiny_reader: Reader, context: Context, expand: int | str
) -> None:
    with pytest.raises(InputError, match="expand is"):
        expanded_prompt(tiny_reader, [context], QUESTION, expand=expand, room=100_000)


def test_spans_follow_their_context_in_order_and_neighbours_are_one(
    tiny_reader: Reader, embedder: ExtensibleEmbedder, context: Context
) -> None:
    other = embedder.compress(FILLER * 10, k=4, title="Other")
    prompt = expanded_prompt(
        tiny_reader, [context, other], QUESTION, expand=5 * 64, room=1400, ranker=InOrder()
    )
    ends = [end for _, end in cut(tiny_reader, context.token_ids)]
    assert prompt.spans[0].start == 0
    assert prompt.spans[0].end in ends[3:]
    assert prompt.spans[0].context is context
    places = [
        next(number for number, part in enumerate(prompt.parts) if part is each)
        for each in (context, prompt.spans[0], other)
    ]
    assert places == sorted(places)


def test_what_comes_after_a_piece_is_of_its_own_context(
    tiny_reader: Reader, embedder: ExtensibleEmbedder
) -> None:
    """The last piece of the first text is best; the other text begins with nothing of it."""
    first = embedder.compress(FILLER * 12 + NEEDLE, k=4)
    second = embedder.compress("And now for something else altogether. " + FILLER * 12, k=4)
    prompt = expanded_prompt(tiny_reader, [first, second], QUESTION, expand=100, room=1100)
    assert any(span.context is first and span.end == first.num_tokens for span in prompt.spans)
    assert not any(span.context is second and span.start == 0 for span in prompt.spans)


@pytest.mark.parametrize("number", [-1, 10_000])
def test_a_ranker_gives_numbers_of_pieces(
    tiny_reader: Reader, context: Context, number: int
) -> None:
    class Strange(SpanRanker):
        def rank(self, *args: object) -> list[int]:
            return [0, number]

    with pytest.raises(InputError, match=f"it gave {number}; give places"):
        expanded_prompt(tiny_reader, [context], QUESTION, room=600, ranker=Strange())


def test_embeds_hold_the_raw_tokens(tiny_reader: Reader, context: Context) -> None:
    prompt = expanded_prompt(tiny_reader, [context], QUESTION, room=600, ranker=InOrder())
    k = choose_k(prompt, 600)
    embeds, place = prompt.embeds(tiny_reader, k), 0
    assert len(embeds) == prompt.num_rows(k)
    for part, rows in zip(prompt.parts, prompt.part_rows(k), strict=True):
        if part is prompt.spans[0]:
            ids = context.token_ids[: prompt.spans[0].end]
            assert torch.equal(embeds[place : place + rows], tiny_reader.embed_tokens(ids))
        place += rows


def test_attention_ranks_pieces_by_what_their_rows_get(
    tiny_reader: Reader, context: Context
) -> None:
    pieces = [
        piece(tiny_reader, context.token_ids, start, start + PIECE_TOKENS)
        for start in range(0, context.num_tokens, PIECE_TOKENS)
    ]
    ranked = ByAttention().rank(tiny_reader, [context], pieces, QUESTION)
    assert sorted(ranked) == list(range(len(pieces)))
    assert ranked != sorted(ranked)
    prompt = expanded_prompt(tiny_reader, [context], QUESTION, room=600, ranker=ByAttention())
    assert prompt.spans


def test_attention_prefers_no_piece_for_its_length(
    tiny_reader: Reader, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where each token gets the same, the first of equals is the best."""

    def equal(reader: Reader, prompt: Prompt, ks: Sequence[int], *_: object) -> list[torch.Tensor]:
        ends = prompt.contexts[0].row_ends_at(ks[0])
        return [ends.diff(prepend=torch.zeros(1, dtype=ends.dtype)).float()]

    monkeypatch.setattr("extensible_embedding.expand.attention_to_rows", equal)
    pieces = [
        piece(tiny_reader, context.token_ids, start, end)
        for start, end in cut(tiny_reader, context.token_ids)
    ]
    assert len({piece.end - piece.start for piece in pieces}) > 1
    ranked = ByAttention().rank(tiny_reader, [context], pieces, QUESTION)
    assert ranked == list(range(len(pieces)))


def test_words_are_the_default(tiny_reader: Reader, context: Context) -> None:
    found, expected = (
        expanded_prompt(tiny_reader, [context], QUESTION, room=600, ranker=ranker).spans
        for ranker in (None, ByWords())
    )
    assert [(s.start, s.end) for s in found] == [(s.start, s.end) for s in expected]


def test_an_embedding_model_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    with pytest.raises(MissingExtraError, match=r"extensible-embedding\[embedding\]"):
        ByEmbedding("model")


def test_an_embedding_model_ranks_by_nearness(
    monkeypatch: pytest.MonkeyPatch, tiny_reader: Reader, context: Context
) -> None:
    """With a stand-in for the package: vectors count letters."""

    class SentenceTransformer:
        def __init__(self, model: str) -> None:
            assert model == "letters"

        def encode(self, texts: list[str], normalize_embeddings: bool) -> torch.Tensor:
            counts = torch.tensor([[float(t.count(c)) for c in "zvx"] for t in texts])
            return torch.nn.functional.normalize(counts, dim=1).numpy()

    stand_in = type("Module", (), {"SentenceTransformer": SentenceTransformer})
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", stand_in)
    texts = [tiny_reader.encode(each) for each in ("xx", "zv", "v")]
    pieces = [piece(tiny_reader, ids, 0, len(ids)) for ids in texts]
    ranked = ByEmbedding("letters").rank(tiny_reader, [context], pieces, "zzvv")
    assert ranked == [1, 2, 0]


@pytest.mark.parametrize("expand", [-1, 2.5, "all", True])
def test_an_expand_that_is_no_number(
    tiny_reader: Reader, context: Context, expand: int | str
) -> None:
    with pytest.raises(InputError, match="a number of tokens"):
        expanded_prompt(tiny_reader, [context], QUESTION, expand=expand, room=600)


def _counted(function: Callable[..., Any], calls: list[int]) -> Callable[..., Any]:
    def call(*args: Any, **settings: Any) -> Any:
        calls.append(1)
        return function(*args, **settings)

    return call


def test_answers_expand(
    embedder: ExtensibleEmbedder, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader(embedder.reader.model, embedder.reader.tokenizer, window=700)
    answer = reader.answer(context, QUESTION, expand="auto", max_new_tokens=4)
    plain = reader.answer(context, QUESTION, expand=0, max_new_tokens=4)
    assert answer.k > plain.k
    assert answer.prompt_rows <= 696
    assert reader.answer(context, QUESTION, max_new_tokens=4) == answer
    batch = reader.answers(context, [QUESTION, QUESTION], max_new_tokens=4)
    assert [each.prompt_rows for each in batch] == [answer.prompt_rows] * 2
    built: list[int] = []
    monkeypatch.setattr(SpanIndex, "__init__", _counted(SpanIndex.__init__, built))
    reader.answers(context, [QUESTION, "Who?", "Why?"], max_new_tokens=4)
    assert len(built) == 1
    (rows_alone,) = reader.answers([context], [QUESTION], expand=0, max_new_tokens=4)
    assert rows_alone.prompt_rows == plain.prompt_rows


class Failing(SpanRanker):
    """Must not be asked."""

    def rank(self, *args: Any) -> list[int]:
        pytest.fail("asked")


def test_without_spans_nothing_is_ranked(tiny_reader: Reader, context: Context) -> None:
    answer = tiny_reader.answer(context, "Who?", expand=0, ranker=Failing(), max_new_tokens=4)
    assert answer.k > 1


def test_spans_take_half_of_the_texts_at_most(tiny_reader: Reader, context: Context) -> None:
    """However much room there is: at a k that was asked for, too."""
    prompt = expanded_prompt(tiny_reader, [context], QUESTION, k=4, expand=5000, room=9000)
    raw = prompt.num_raw - question_prompt(tiny_reader, [context], QUESTION).num_raw
    assert 0.4 < raw / context.num_tokens <= 0.5
