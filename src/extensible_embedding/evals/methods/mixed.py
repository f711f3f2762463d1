"""Mixed precision: what matters to the question raw, the rest of the older text as rows."""

from __future__ import annotations

import torch
from torch import Tensor

from ...spans import rank_spans
from .base import EmbedsReading, Passage, Reading, raw_reading, room_for_context
from .following import PIECE_TOKENS, FollowingReading
from .rows import Extensible


class ExtensibleMixed(Extensible):
    """Extensible embeddings, with the best spans raw: rows, then spans, then recent tokens.

    Spans are those that share most words with what is read after the context (BM25): about a third
    of the room before a question. Where none follows, the end of the text asks, again and again as
    it goes on (`FollowingReading`), half of the room is recent text and a sixth spans, since rows
    tell more of what comes than any passage does. The rest is rows of the older text. With k="auto"
    it is the smallest k at which all older text fits. What does not fit is left out, oldest first.
    """

    name = "extensible-mixed"
    version = 5
    reads_all = False
    asked_share = 1 / 3
    """Part of the room for the context that is spans read raw, where a question asks for them."""
    following_share = 1 / 6
    """The same where the end of the text asks."""

    def read(self, passage: Passage, room: int) -> Reading:
        """Head, rows, spans, recent tokens, tail."""
        context, left = passage.context, room_for_context(passage, room)
        if len(context) <= left:
            return raw_reading(self.reader, passage, context)
        recent = int(self.recent_of(passage) * left)
        split = len(context) - recent
        share = self.asked_share if len(passage.tail) else self.following_share
        most = min(round(share * left / PIECE_TOKENS), (left - recent) // PIECE_TOKENS)
        left -= recent + most * PIECE_TOKENS
        k = self.k or self._smallest_k(split, left)
        rows = self._fitting_rows(passage, split, k, left)  # once: they stay as spans change

        def prompt(spans: Tensor, new_ids: Tensor) -> EmbedsReading:
            return self._joined(passage, rows, k, torch.cat([spans, context[split:], new_ids]))

        if not len(passage.tail):
            return FollowingReading(
                reader=self.reader, context=context, split=split, num_pieces=most, prompt=prompt
            )
        return prompt(self._asked_for(passage, split, most), context[:0])

    def _asked_for(self, passage: Passage, split: int, most: int) -> Tensor:
        """The pieces that share most words with the question, in the order of the text."""
        pieces = passage.context[:split].split(PIECE_TOKENS)
        texts = [self.reader.decode(piece) for piece in pieces]
        best = rank_spans(texts, self.reader.decode(passage.tail))
        return torch.cat([*(pieces[each] for each in sorted(best[:most])), passage.context[:0]])
