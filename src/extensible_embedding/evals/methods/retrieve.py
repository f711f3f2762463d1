"""Retrieval: the pieces of the context that share most words with what is read after it."""

from __future__ import annotations

import torch
from torch import Tensor

from ...reader import Reader
from ...spans import rank_spans
from .base import Passage, SelectionMethod


class Retrieve(SelectionMethod):
    """BM25 over pieces of the context, read raw in their order.

    The query is the tail; where a task has none (language modelling), it is the last piece of the
    context, which is then always read. Where the best piece that is left is longer than the room
    that is left, its end is read.

    Args:
        reader: its tokenizer cuts and decodes.
        piece_tokens: tokens of a piece.
    """

    name = "retrieve"

    def __init__(self, reader: Reader, piece_tokens: int = 128) -> None:
        super().__init__(reader)
        self.piece_tokens = piece_tokens

    def select(self, passage: Passage, room: int) -> Tensor:
        """Best pieces that fit, in the order of the text."""
        context = passage.context
        if len(context) <= room:
            return context
        pieces = list(context.split(self.piece_tokens))
        chosen = self._chosen(passage, pieces, room)
        kept = [chosen[number] for number in sorted(chosen)]
        return torch.cat([*kept, context[:0]])

    def _chosen(self, passage: Passage, pieces: list[Tensor], room: int) -> dict[int, Tensor]:
        """Pieces by number, best first, until the room is full."""
        texts = [self.reader.decode(piece) for piece in pieces]
        fixed = [] if len(passage.tail) else [len(pieces) - 1]
        query = self.reader.decode(passage.tail) if len(passage.tail) else texts[-1]
        chosen: dict[int, Tensor] = {}
        for number in dict.fromkeys([*fixed, *rank_spans(texts, query)]):
            if room > 0:
                chosen[number] = pieces[number][-room:]
                room -= len(chosen[number])
        return chosen
