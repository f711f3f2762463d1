"""Retrieval: the pieces of the context that share most words with what is read after it."""

from __future__ import annotations

import bm25s
import torch
from torch import Tensor

from ...reader import Reader
from .base import Passage, SelectionMethod


class Retrieve(SelectionMethod):
    """BM25 over pieces of the context, read raw in their order.

    The query is the tail; where a task has none (language modelling), it is the last piece of the
    context, which is then always read.

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
        chosen = self._chosen(passage, pieces, room // self.piece_tokens)
        kept = [pieces[number] for number in sorted(chosen)]
        return torch.cat([*kept, context[:0]])[:room]

    def _chosen(self, passage: Passage, pieces: list[Tensor], count: int) -> set[int]:
        texts = [self.reader.decode(piece) for piece in pieces]
        fixed = [] if len(passage.tail) else [len(pieces) - 1]
        query = self.reader.decode(passage.tail) if len(passage.tail) else texts[-1]
        chosen = set(fixed[:count])
        for number in self._ranked(texts, query):
            if len(chosen) >= count:
                break
            chosen.add(number)
        return chosen

    def _ranked(self, texts: list[str], query: str) -> list[int]:
        """Numbers of the pieces, best first; without a common word, the latest first."""
        latest_first = list(range(len(texts)))[::-1]
        words = bm25s.tokenize(texts, show_progress=False)
        if not words.vocab:
            return latest_first
        index = bm25s.BM25()
        index.index(words, show_progress=False)
        asked = bm25s.tokenize(query, show_progress=False, return_ids=False)[0]
        scores = index.get_scores(asked) if asked else [0.0] * len(texts)
        return sorted(latest_first, key=lambda number: -scores[number])
