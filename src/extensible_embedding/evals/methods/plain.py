"""Raw reading: all of the context, none of it, or its most recent tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import WindowError
from .base import Passage, SelectionMethod


class NoContext(SelectionMethod):
    """Head and tail alone: what the reader knows without the context."""

    name = "none"

    def select(self, passage: Passage, room: int) -> Tensor:
        """Nothing."""
        return passage.context[:0]


class Raw(SelectionMethod):
    """The whole context, raw."""

    name = "raw"
    reads_every_token = True

    def select(self, passage: Passage, room: int) -> Tensor:
        """All of it, if it fits."""
        if len(passage.context) > room:
            raise WindowError(
                f"Raw context must fit in {room} rows, but it has {len(passage.context)} tokens; "
                "choose a method that shortens it."
            )
        return passage.context


class Truncate(SelectionMethod):
    """The most recent tokens that fit."""

    name = "truncate"

    def select(self, passage: Passage, room: int) -> Tensor:
        """The last `room` tokens."""
        return passage.context[max(0, len(passage.context) - room) :]


class SinksAndRecent(SelectionMethod):
    """The first tokens and the most recent ones: StreamingLLM's window, computed afresh.

    StreamingLLM (arXiv 2309.17453) keeps a few first tokens as attention sinks beside the recent
    ones. It fills its cache as text comes; here the same tokens are read in one pass, its paper's
    stronger and slower reference ("sliding window with re-computation") with sinks.
    """

    name = "streaming-llm"
    num_sinks = 4

    def select(self, passage: Passage, room: int) -> Tensor:
        """Sinks and recent tokens, `room` in all."""
        context = passage.context
        if len(context) <= room:
            return context
        sinks = min(self.num_sinks, room)
        return torch.cat([context[:sinks], context[len(context) - room + sinks :]])
