"""Mixed precision: what matters to the question raw, the rest of the older text as rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...spans import rank_spans
from .base import Passage, Reading, raw_reading, room_for_context
from .rows import Extensible

PIECE_TOKENS = 64
"""Of a span that is read raw."""
_QUERY_TOKENS = 64
"""Of the context's end that asks where a task has no question (language modelling)."""


class ExtensibleMixed(Extensible):
    """Extensible embeddings, with the best spans raw: rows, then spans, then recent tokens.

    A third of the room is spans that share most words with what is read after the context (BM25),
    half is recent text where no question follows, and the rest rows of the older text. Where none
    follows, a span is read together with the next one: what came after the like of the context's
    end is what may come again. With k="auto" it is the smallest k at which all older text fits.
    What does not fit is left out, oldest first.
    """

    name = "extensible-mixed"
    version = 2
    reads_all = False
    span_share = 1 / 3
    """Part of the room for the context that is spans read raw."""

    def read(self, passage: Passage, room: int) -> Reading:
        """Head, rows, spans, recent tokens, tail."""
        context, left = passage.context, room_for_context(passage, room)
        if len(context) <= left:
            return raw_reading(self.reader, passage, context)
        split = len(context) - int(self.recent_of(passage) * left)
        spans = self._spans(passage, split, int(self.span_share * left))
        raw = torch.cat([spans, context[split:]])
        left -= len(raw)
        return self._reading(passage, split, self.k or self._smallest_k(split, left), left, raw)

    def _spans(self, passage: Passage, split: int, room: int) -> Tensor:
        """The best pieces of the older text that fit, in the order of the text."""
        pieces = list(passage.context[:split].split(PIECE_TOKENS))
        texts = [self.reader.decode(piece) for piece in pieces]
        asks = len(passage.tail) > 0
        asking = passage.tail if asks else passage.context[-_QUERY_TOKENS:]
        best = rank_spans(texts, self.reader.decode(asking))
        if not asks:
            best = _with_next(best, len(pieces))
        chosen = sorted(best[: room // PIECE_TOKENS])
        return torch.cat([*(pieces[number] for number in chosen), passage.context[:0]])


def _with_next(numbers: Sequence[int], count: int) -> list[int]:
    """Each number with the next one after it, once, of `count`."""
    both = (each for number in numbers for each in (number, number + 1) if each < count)
    return list(dict.fromkeys(both))
