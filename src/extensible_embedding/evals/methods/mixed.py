"""Mixed precision: what matters to the question raw, the rest of the older text as rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...embedder import ExtensibleEmbedder
from ...expand import room_of_spans, tokens_of_spans
from ...pieces import PIECE_TOKENS
from ...prompt import BETWEEN_SPANS
from .base import EmbedsReading, Passage, Reading, raw_reading, room_for_context
from .following import FollowingReading
from .retrieve import asked_for
from .rows import Extensible


class ExtensibleMixed(Extensible):
    """Extensible embeddings, with the best spans raw: rows, then spans, then recent tokens.

    Spans are those that share most words with the question (BM25), as many as `expand="auto"` takes
    and parted as there. Where no question follows, the end of the text asks, again and again as it
    goes on (`FollowingReading`); then `recent_share` of the room is recent text, and spans get
    less, since rows tell more of a story than any passage of it. The rest is rows of the older
    text. With k="auto" it is the smallest k at which all older text fits. What does not fit is
    left out, oldest first.

    Args:
        embedder: as of `Extensible`.
        k: as of `Extensible`.
        following_share: part of the room that is spans where the end of the text asks.
        settings: of `Extensible`.
    """

    name = "extensible-mixed"
    version = 11
    reads_all = False

    def __init__(
        self,
        embedder: ExtensibleEmbedder,
        k: int | None = None,
        *,
        following_share: float = 1 / 6,
        **settings: Any,
    ) -> None:
        super().__init__(embedder, k, **settings)
        self.following_share = following_share

    def read(self, passage: Passage, room: int) -> Reading:
        """Head, rows, spans, recent tokens, tail."""
        context, left = passage.context, room_for_context(passage, room)
        if len(context) <= left:
            return raw_reading(self.reader, passage, context)
        recent = int(self.recent_of(passage) * left)
        split = len(context) - recent
        spans_room = self._spans_room(passage, split, left, left - recent)
        left -= recent + spans_room
        k = self.k or self._smallest_k(split, left)
        rows = self._fitting_rows(passage, split, k, left)  # once: they stay as spans change

        def prompt(spans: Tensor, new_ids: Tensor) -> EmbedsReading:
            return self._joined(passage, rows, k, torch.cat([spans, context[split:], new_ids]))

        if not len(passage.tail):
            return FollowingReading(
                reader=self.reader, context=context, split=split, room=spans_room, prompt=prompt
            )
        spans = asked_for(self.reader, passage, spans_room, BETWEEN_SPANS)
        return prompt(spans, context[:0])

    def _spans_room(self, passage: Passage, split: int, room: int, most: int) -> int:
        """Tokens of spans, and of what parts them, in a room for the context.

        Before a question rows come first, as in `ask`: spans get what is left beside those of all
        older text, at k or at the largest there is.
        """
        if len(passage.tail):
            mark_tokens = len(self.reader.encode(BETWEEN_SPANS))
            asked = room_of_spans(tokens_of_spans(room), mark_tokens, split)
            fewest_rows = self._num_rows(split, self.k or self._largest_k)
            return max(0, min(asked, most - fewest_rows))
        pieces = min(round(self.following_share * room / PIECE_TOKENS), most // PIECE_TOKENS)
        return pieces * PIECE_TOKENS
