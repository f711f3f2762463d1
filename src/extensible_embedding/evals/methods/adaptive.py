"""Adaptive reading: whichever way predicted the end of the context best."""

from __future__ import annotations

from typing import Any

from ...embedder import ExtensibleEmbedder
from .base import Method, Passage, Reading, room_for_context
from .cache import RowCache
from .mixed import ExtensibleMixed
from .plain import Truncate
from .rows import Extensible

TRIAL_TOKENS = 128
"""Of the context's end that a way of reading is tried on."""


class ExtensibleAdaptive(Extensible):
    """Recent text alone, rows beside it, or rows and raw spans: what the text itself favours.

    Text that repeats what stood a few hundred tokens ago needs all the recent tokens that fit; a
    story needs what lies further back. So every way of reading predicts the last tokens of the
    context from what stands before them, in the same room, and the one with the least loss reads
    all of it. Nothing after the context is looked at. Where a question follows, the end of the
    context says nothing about it, and `extensible-mixed` reads.

    The price is one pass of the reader over the room for each way; rows of whole chunks are made
    once.
    """

    name = "extensible-adaptive"
    reads_all = False

    def __init__(
        self,
        embedder: ExtensibleEmbedder,
        k: int | None = None,
        *,
        cache: RowCache | None = None,
        **settings: Any,
    ) -> None:
        cache = cache or RowCache(embedder)
        super().__init__(embedder, k, cache=cache, **settings)
        self._for_questions = ExtensibleMixed(embedder, k, cache=cache)
        self._ways: tuple[Method, ...] = (
            Truncate(embedder.reader),
            Extensible(embedder, k, recent_share=2 / 3, cache=cache),
            self._for_questions,
        )

    def read(self, passage: Passage, room: int) -> Reading:
        """As the way reads that predicted the last tokens of the context best."""
        room_for_context(passage, room)
        if len(passage.tail) or len(passage.context) <= 2 * TRIAL_TOKENS:
            return self._for_questions.read(passage, room)
        early = Passage(
            head=passage.head, context=passage.context[:-TRIAL_TOKENS], tail=passage.tail
        )
        end = passage.context[-TRIAL_TOKENS:]
        losses = [float(way.read(early, room).nll(end).mean()) for way in self._ways]
        return self._ways[losses.index(min(losses))].read(passage, room)
