"""Retrieval: the pieces of the context that share most words with what is read after it."""

from __future__ import annotations

import torch
from torch import Tensor

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
from .following import PIECE_TOKENS, FollowingReading


class Retrieve(SelectionMethod):
    """BM25 over pieces of the context, read raw in their order.

    The tail asks. Where the best piece that is left is longer than the room that is left, its end
    is read. Where a task has no tail (language modelling), half of the room is recent text, and its
    end asks for the rest, again and again as the text goes on (`FollowingReading`).

    Args:
        reader: its tokenizer cuts and decodes.
        piece_tokens: tokens of a piece where a tail asks.
    """

    name = "retrieve"
    version = 3

    def __init__(self, reader: Reader, piece_tokens: int = 128) -> None:
        super().__init__(reader)
        self.piece_tokens = piece_tokens

    def read(self, passage: Passage, room: int) -> Reading:
        """Head, pieces, tail; or head, pieces, recent text."""
        context, left = passage.context, room_for_context(passage, room)
        if len(passage.tail) or len(context) <= left:
            return super().read(passage, room)
        num_pieces = left // 2 // PIECE_TOKENS
        split = len(context) - (left - num_pieces * PIECE_TOKENS)

        def prompt(spans: Tensor, new_ids: Tensor) -> EmbedsReading:
            raw = torch.cat([spans, context[split:], new_ids])
            return raw_reading(self.reader, passage, raw)

        return FollowingReading(
            reader=self.reader, context=context, split=split, num_pieces=num_pieces, prompt=prompt
        )

    def select(self, passage: Passage, room: int) -> Tensor:
        """Best pieces that fit, in the order of the text."""
        if len(passage.context) <= room:
            return passage.context
        pieces = passage.context.split(self.piece_tokens)
        texts = [self.reader.decode(piece) for piece in pieces]
        chosen: dict[int, Tensor] = {}
        for number in rank_spans(texts, self.reader.decode(passage.tail)):
            if room > 0:
                chosen[number] = pieces[number][-room:]
                room -= len(chosen[number])
        kept = [chosen[number] for number in sorted(chosen)]
        return torch.cat([*kept, passage.context[:0]])
