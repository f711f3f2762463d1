"""Raw spans that follow the text: its end asks for them, again and again as it goes on.

In: a context, where its recent text begins, and how a prompt is put together. Out: a `Reading`
whose prompt is another one whenever other spans are best. Knows nothing of rows.

Axes: n context token, t new token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import torch
from torch import Tensor

from ...generation import end_tokens
from ...pieces import best_fitting, cut
from ...reader import Reader
from ...spans import SpanIndex
from .base import EmbedsReading, greedy_ids

BLOCK_TOKENS = 32
"""Of the text that follows, after which its end asks again."""
_QUERY_TOKENS = 64
"""Of the text's end that asks."""


@dataclass(frozen=True, kw_only=True)
class FollowingReading:
    """A context whose older pieces are read raw where they share most words with the text's end.

    Before each block of new tokens they are picked anew, by what stands before the block, and the
    prompt is read again if they are others. A piece is read together with the next one
    (`best_fitting`): what came after the like of the end is what may come again. New tokens take
    places of their own, as with every method.

    Retrieval while the text goes on: Ram et al. 2023 (In-Context RALM), section 4.
    """

    reader: Reader
    context: Tensor
    """Token ids (n,)."""
    split: int
    """Where recent text begins; pieces are of what stands before it."""
    room: int
    """Tokens for all pieces that are read."""
    prompt: Callable[[Tensor, Tensor], EmbedsReading]
    """Ids of the spans and of the new tokens (t,) -> what the reader sees."""

    def __post_init__(self) -> None:
        _ = self.first  # it is made when the context is read, and not by the first token

    @cached_property
    def first(self) -> EmbedsReading:
        """As it is read before anything new."""
        new_ids = self.context[:0]
        return self.prompt(self._spans(self._picked(new_ids)), new_ids)

    @property
    def num_rows(self) -> int:
        """Rows before anything new."""
        return self.first.num_rows

    @property
    def k(self) -> int:
        """Tokens that a row of the compressed part stands for."""
        return self.first.k

    def after(self, new_ids: Tensor) -> EmbedsReading:
        """As it is read once these tokens (t,) have followed it."""
        if not len(new_ids):
            return self.first
        return self.prompt(self._spans(self._picked(new_ids)), new_ids)

    def nll(self, target_ids: Tensor) -> Tensor:
        """Loss in nats of each target token, (t,)."""
        blocks, done, losses = target_ids.split(BLOCK_TOKENS), 0, []
        picked = [self._picked(target_ids[: each * BLOCK_TOKENS]) for each in range(len(blocks))]
        for numbers, run in groupby(zip(picked, blocks, strict=True), key=lambda pair: pair[0]):
            block = torch.cat([each for _, each in run])
            before = target_ids[:done]
            reading = self.prompt(self._spans(numbers), before) if done else self.first
            losses.append(reading.nll(block))
            done += len(block)
        return torch.cat(losses)

    def generate(self, max_new_tokens: int) -> str:
        """Greedy continuation."""
        ids, ends = self.context[:0], end_tokens(self.reader)
        while len(ids) < max_new_tokens:
            count = min(BLOCK_TOKENS, max_new_tokens - len(ids))
            more = greedy_ids(self.reader, self.after(ids).embeds, count)
            ids = torch.cat([ids, more])
            if len(more) < count or int(more[-1]) in ends:
                break
        return self.reader.decode(ids)

    @cached_property
    def _pieces(self) -> list[Tensor]:
        older = self.context[: self.split]
        return [older[start:end] for start, end in cut(self.reader, older)]

    @cached_property
    def _index(self) -> SpanIndex:
        return SpanIndex([self.reader.decode(piece) for piece in self._pieces])

    def _picked(self, new_ids: Tensor) -> list[int]:
        """Numbers of the pieces to read, in the order of the text."""
        end = torch.cat([self.context[-_QUERY_TOKENS:], new_ids])[-_QUERY_TOKENS:]
        ranked = self._index.rank(self.reader.decode(end))
        return best_fitting(ranked, [len(piece) for piece in self._pieces], self.room)

    def _spans(self, numbers: Sequence[int]) -> Tensor:
        return torch.cat([*(self._pieces[number] for number in numbers), self.context[:0]])
