"""Adaptive reading: whichever way has predicted the text best so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...embedder import ExtensibleEmbedder
from .base import Method, Passage, Reading, room_for_context
from .cache import RowCache
from .mixed import ExtensibleMixed
from .plain import Truncate
from .rows import Extensible

TRIAL_TOKENS = 64
"""Of the context's end that the ways of reading are tried on, as far as the window has places."""
SWITCH_TOKENS = 32
"""Of the text that follows, after which another way may read on."""
RECENT_SHARE = 5 / 6
"""Of the room that is recent text where no spans are read: rows reach far in little of it."""
FOLLOWING_SHARE = 1 / 3
"""Of the room that is spans where they are read: it is the way of texts that repeat themselves."""
RECENT_BESIDE_SPANS = 1 / 2
"""Of the room that is recent text there."""
HALF_LIFE_TOKENS = 128
"""After so many more tokens a loss counts half: texts change."""
AHEAD_NATS = 4.0
"""By which the last way is ahead at first: a few tokens tell little. It fades as losses do."""


@dataclass(frozen=True, kw_only=True)
class AdaptiveReading:
    """A passage in several ways, of which one reads at a time.

    Text that follows is read in blocks. Before each block the way is chosen that has the least loss
    on what came before it, from the trial's beginning on, the latest tokens counting most; the last
    way is `AHEAD_NATS` ahead. No way is chosen for what it makes of text that is still to come, and
    the reader holds one window at a time.
    """

    readings: tuple[Reading, ...]
    trials: Tensor
    """Losses (ways, tokens) of the context's last tokens."""

    @property
    def first(self) -> Reading:
        """The way that reads first: the best one on the context's end."""
        return self.readings[self._best(self.trials)]

    @property
    def num_rows(self) -> int:
        """Rows before anything new, of the way that has most."""
        return max(reading.num_rows for reading in self.readings)

    @property
    def k(self) -> int:
        """Tokens that a row stands for, of the way whose rows reach furthest."""
        return max(reading.k for reading in self.readings)

    def nll(self, target_ids: Tensor) -> Tensor:
        """Loss in nats of each target token, (t,), by the way that reads its block."""
        losses = torch.stack([reading.nll(target_ids).cpu() for reading in self.readings])
        seen, chosen = self.trials, []
        for block in losses.split(SWITCH_TOKENS, dim=1):
            chosen.append(block[self._best(seen)])
            seen = torch.cat([seen, block], dim=1)
        return torch.cat(chosen)

    def _best(self, seen: Tensor) -> int:
        """Number of the way with the least loss (ways, tokens) on what was read so far."""
        num_seen = seen.shape[1]
        worth = 0.5 ** (torch.arange(num_seen).flip(0) / HALF_LIFE_TOKENS)
        sums = seen.float() @ worth
        since = num_seen - self.trials.shape[1]
        sums[-1] -= AHEAD_NATS * 0.5 ** (since / HALF_LIFE_TOKENS)
        return int(sums.argmin())

    def generate(self, max_new_tokens: int) -> str:
        """Greedy continuation, by the way that reads first."""
        return self.first.generate(max_new_tokens)


class ExtensibleAdaptive(Extensible):
    """Recent text alone, rows beside it, or rows and raw spans: what the text itself favours.

    Text that repeats what stood a few hundred tokens ago needs all the recent tokens that fit; a
    story needs what lies further back. So every way of reading predicts the last tokens of the
    context from what stands before them, in the same room, and the one with the least loss reads
    on, until another one has done better. Where a question follows, the end of the context says
    nothing about it, and `extensible-mixed` reads.

    The price is two passes of the reader over the room for each way, the trial and the text that
    follows, and with spans one more for each block of text that asks for other spans; rows of
    whole chunks are made once.
    """

    name = "extensible-adaptive"
    version = 11
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
        self._otherwise = ExtensibleMixed(embedder, k, cache=cache)
        self._ways: tuple[Method, ...] = (
            Truncate(embedder.reader),
            Extensible(embedder, k, recent_share=RECENT_SHARE, cache=cache),
            ExtensibleMixed(
                embedder,
                k,
                recent_share=RECENT_BESIDE_SPANS,
                following_share=FOLLOWING_SHARE,
                cache=cache,
            ),
        )

    def read(self, passage: Passage, room: int) -> Reading:
        """In all ways, beginning with the one that predicted the context's last tokens best."""
        room_for_context(passage, room)
        num_trial = min(TRIAL_TOKENS, passage.num_next)
        if len(passage.tail) or num_trial < 1 or len(passage.context) <= room + num_trial:
            return self._otherwise.read(passage, room)
        early = Passage(head=passage.head, context=passage.context[:-num_trial], tail=passage.tail)
        end = passage.context[-num_trial:]
        return AdaptiveReading(
            trials=torch.stack([way.read(early, room).nll(end).cpu() for way in self._ways]),
            readings=tuple(way.read(passage, room) for way in self._ways),
        )
