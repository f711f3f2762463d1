"""Raw spans that follow the text as it goes on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import byte_tokenizer, tiny_llama
from torch import Tensor

from extensible_embedding import Context, ExtensibleEmbedder, Reader
from extensible_embedding.evals.methods import Passage, make_method
from extensible_embedding.evals.methods.following import (
    BLOCK_TOKENS,
    FollowingReading,
)
from extensible_embedding.pieces import PIECE_TOKENS

ROOM = 4 * PIECE_TOKENS
BOTH = pytest.mark.parametrize("name", ["retrieve", "extensible-mixed"])


def ids(text: str) -> Tensor:
    return Reader(tiny_llama(), byte_tokenizer()).encode(text)


def piece(words: str) -> Tensor:
    return ids((words + " ").ljust(PIECE_TOKENS, ".")[:PIECE_TOKENS])


def hills() -> Tensor:
    return torch.cat([piece(f"hill {number} sun moon {number * 7}") for number in range(14)])


def following(
    embedder: ExtensibleEmbedder, context: Tensor, room: int, name: str = "extensible-mixed"
) -> FollowingReading:
    passage = Passage(head=ids("H"), context=context, tail=context[:0])
    reading = make_method(name, embedder, k=8).read(passage, room)
    assert isinstance(reading, FollowingReading)
    return reading


def test_spans_follow_the_text(tiny_embedder: ExtensibleEmbedder) -> None:
    """Once the text speaks of something else, what is told of that is read raw."""
    filler, sun, moon = (piece(words) for words in ("rain fell", "sun rose red", "moon sank pale"))
    context = torch.cat([filler, sun, filler, filler, moon, *[filler] * 8, sun])
    room = 10 * PIECE_TOKENS
    reading = following(tiny_embedder, context, room)
    recent = context[-(2 * (room - 1) // 3) :]
    embed = tiny_embedder.reader.embed_tokens
    for new, told in ((context[:0], sun), (ids("moon sank pale " * 6), moon)):
        found = reading.after(new).embeds
        raw = torch.cat([told, filler, recent, new])
        assert torch.equal(found[-len(raw) :], embed(raw))
        assert len(found) - len(new) == reading.num_rows <= room


@BOTH
def test_losses_are_those_of_the_prompt_before_each_block(
    tiny_embedder: ExtensibleEmbedder, name: str
) -> None:
    reading = following(tiny_embedder, hills(), ROOM, name)
    target = ids("hill 3 sun moon 21. hill 9 sun moon 63. and then hill 5 " * 3)[:110]
    expected = torch.cat(
        [
            reading.after(target[:start]).nll(target[start : start + BLOCK_TOKENS])
            for start in range(0, len(target), BLOCK_TOKENS)
        ]
    )
    torch.testing.assert_close(reading.nll(target), expected)


@BOTH
def test_no_loss_depends_on_what_is_still_to_come(
    tiny_embedder: ExtensibleEmbedder, name: str
) -> None:
    reading = following(tiny_embedder, hills(), ROOM, name)
    target = ids("hill 3 sun moon 21. hill 9 sun moon 63. " * 3)
    found = reading.nll(target)
    for end in (1, BLOCK_TOKENS, BLOCK_TOKENS + 5):
        other = torch.cat([target[:end], target[end:].flip(0)])
        torch.testing.assert_close(reading.nll(other)[:end], found[:end])


def test_it_writes_on_block_by_block(
    tiny_embedder: ExtensibleEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each block is written after the spans that the text before it asks for."""
    reading = following(tiny_embedder, hills(), ROOM)
    asked, words = [], ids("moon sank " * 20)

    def greedy(reader: Reader, embeds: Tensor, count: int) -> Tensor:
        done = sum(asked_count for _, asked_count in asked)
        asked.append((embeds, count))
        return words[done : done + count]

    monkeypatch.setattr("extensible_embedding.evals.methods.following.greedy_ids", greedy)
    assert ids(reading.generate(BLOCK_TOKENS + 8)).equal(words[: BLOCK_TOKENS + 8])
    assert [count for _, count in asked] == [BLOCK_TOKENS, 8]
    assert torch.equal(asked[0][0], reading.first.embeds)
    assert torch.equal(asked[1][0], reading.after(words[:BLOCK_TOKENS]).embeds)


def test_rows_are_made_once_however_long_the_text_goes_on(
    tiny_embedder: ExtensibleEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    compress, made = ExtensibleEmbedder.compress, []

    def counted(self: ExtensibleEmbedder, *arguments: Any, **settings: Any) -> Context:
        made.append(arguments)
        return compress(self, *arguments, **settings)

    monkeypatch.setattr(ExtensibleEmbedder, "compress", counted)
    following(tiny_embedder, hills(), ROOM).nll(ids("hill 3 sun moon 21. hill 9 sun moon 63. " * 3))
    assert len(made) == 1


A = 64
"""The token of `a`."""


@pytest.mark.parametrize("end", [[9, A], A])
def test_it_stops_at_an_end_token_that_ends_a_block(
    tiny_embedder: ExtensibleEmbedder, monkeypatch: pytest.MonkeyPatch, end: int | list[int]
) -> None:
    reading = following(tiny_embedder, hills(), ROOM)
    config = tiny_embedder.reader.model.generation_config
    monkeypatch.setattr(config, "eos_token_id", end)
    monkeypatch.setattr(
        "extensible_embedding.evals.methods.following.greedy_ids",
        lambda reader, embeds, count: torch.full((count,), A),
    )
    assert len(ids(reading.generate(3 * BLOCK_TOKENS))) == BLOCK_TOKENS


def test_as_many_tokens_as_asked_for_are_written_without_a_warning(
    tiny_embedder: ExtensibleEmbedder,
    monkeypatch: pytest.MonkeyPatch,
    recwarn: pytest.WarningsRecorder,
) -> None:
    config = tiny_embedder.reader.model.generation_config
    monkeypatch.setattr(config, "min_new_tokens", BLOCK_TOKENS + 8)
    lengths: list[int] = []
    monkeypatch.setattr(Reader, "decode", lambda self, ids: lengths.append(len(ids)) or "")
    following(tiny_embedder, hills(), ROOM).generate(BLOCK_TOKENS + 8)
    assert lengths[-1] == BLOCK_TOKENS + 8
    assert not [each for each in recwarn if "length" in str(each.message)]


@pytest.mark.parametrize("room", [70, 100, 130, 200, 400])
def test_retrieval_reads_recent_text_and_pieces_and_no_more(
    tiny_embedder: ExtensibleEmbedder, room: int
) -> None:
    reading = following(tiny_embedder, hills(), room, "retrieve")
    assert reading.room == (room - 1) // 2 // PIECE_TOKENS * PIECE_TOKENS
    assert room - PIECE_TOKENS < reading.num_rows <= room
    recent = hills()[reading.split :]
    embeds = tiny_embedder.reader.embed_tokens(recent)
    assert torch.equal(reading.first.embeds[-len(recent) :], embeds)
