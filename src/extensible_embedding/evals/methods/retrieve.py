"""Retrieval: the pieces of the context that share most words with what is read after it."""

from __future__ import annotations

import torch
from torch import Tensor

from ...pieces import PIECE_TOKENS, best_fitting, cut
from ...reader import Reader
from ...spans import rank_spans
from .base import (
    EmbedsReading,
    Passage,
    Reading,
    SelectionMethod,
    raw_reading,
    room_for_context,
)
from .following import FollowingReading


class Retrieve(SelectionMethod):
    """BM25 over pieces of the context, read raw in their order.

    The question asks, or the whole tail where nobody says what of it is the question. Where a task
    has no tail (language modelling), half of the room is recent text, and its end asks for the
    rest, again and again as the text goes on (`FollowingReading`).
    """

    name = "retrieve"
    version = 6

    def read(self, passage: Passage, room: int) -> Reading:
        """Head, pieces, tail; or head, pieces, recent text."""
        context, left = passage.context, room_for_context(passage, room)
        if len(passage.tail) or len(context) <= left:
            return super().read(passage, room)
        for_pieces = left // 2 // PIECE_TOKENS * PIECE_TOKENS
        split = len(context) - (left - for_pieces)

        def prompt(spans: Tensor, new_ids: Tensor) -> EmbedsReading:
            raw = torch.cat([spans, context[split:], new_ids])
            return raw_reading(self.reader, passage, raw)

        return FollowingReading(
            reader=self.reader, context=context, split=split, room=for_pieces, prompt=prompt
        )

    def select(self, passage: Passage, room: int) -> Tensor:
        """Best pieces that fit, in the order of the text."""
        if len(passage.context) <= room:
            return passage.context
        return asked_for(self.reader, passage, room)


def asked_for(reader: Reader, passage: Passage, room: int, before_each: str = "") -> Tensor:
    """Ids of the pieces that share most words with the question, in the order of the text.

    Where none fits, it is the beginning of the best one, or nothing beside rows.

    Args:
        reader: with the tokenizer.
        passage: what is asked, and of which context.
        room: tokens at most.
        before_each: is read before pieces that do not follow one another, where they stand beside
            rows.
    """
    before = reader.encode(before_each)
    pieces = [passage.context[start:end] for start, end in cut(reader, passage.context)]
    asked = passage.question or reader.decode(passage.tail)
    ranked = rank_spans([reader.decode(each) for each in pieces], asked)
    numbers = best_fitting(ranked, [len(each) + len(before) for each in pieces], room)
    if not numbers:
        return pieces[ranked[0]][: 0 if before_each else room]
    parts = []
    for number in numbers:
        follows = number - 1 in numbers
        parts += [pieces[number]] if follows else [before, pieces[number]]
    return torch.cat(parts)
