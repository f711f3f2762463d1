"""Compressed reading: older context as rows, the most recent part raw."""

from __future__ import annotations

import torch
from torch import Tensor

from ...downsampling import down_sampling, num_rows
from ...embedder import ExtensibleEmbedder
from ...errors import WindowError
from ...raw_end import raw_end
from .base import EmbedsReading, Method, Passage, Reading, raw_reading, room_for_context
from .cache import RowCache


class Extensible(Method):
    """Extensible embeddings: rows of everything older, then the recent tokens raw.

    With a fixed k as many recent tokens stay raw as fit beside the rows of all that is older. With
    k="auto" it is the smallest k at which `recent_share` of the room stays raw. Where the rows do
    not fit, `recent_share` stays raw all the same and the oldest text is left out. Where a question
    follows, which may be about any part, nothing is kept raw for being recent.

    Args:
        embedder: with its reader.
        k: tokens per row, or None for auto.
        recent_share: part of the room for the context that is read raw, see above; by default
            `usual_recent_share`.
        all_rows: no recent part: the whole context as rows (the recovery protocol).
        cache: of rows, shared with other methods; by default nothing is kept.
    """

    name = "extensible"
    version = 2
    reads_all = True
    """It can read a whole context without a window that limits it, as recovery asks."""
    for_recovery = False
    """It is of use there alone."""
    usual_recent_share = 2 / 3
    """Finer rows of older text do not make up for the recent text whose places they take."""

    def __init__(
        self,
        embedder: ExtensibleEmbedder,
        k: int | None = None,
        *,
        recent_share: float | None = None,
        all_rows: bool = False,
        cache: RowCache | None = None,
    ) -> None:
        super().__init__(embedder.reader)
        self.embedder, self.k = embedder, k
        self.recent_share = self.usual_recent_share if recent_share is None else recent_share
        self.all_rows = all_rows
        self.cache = cache

    def read(self, passage: Passage, room: int) -> Reading:
        """Head, rows, recent tokens, tail."""
        context, left = passage.context, room_for_context(passage, room)
        if len(context) <= left and self.k is None:
            return raw_reading(self.reader, passage, context)
        split, k = self._split(passage, left)
        rows = self._fitting_rows(passage, split, k, left - (len(context) - split))
        return self._joined(passage, rows, k, context[split:])

    def _fitting_rows(self, passage: Passage, split: int, k: int, room: int) -> Tensor:
        """Rows (R, H) of what stands before `split`, as far as they fit."""
        return self._rows(passage.context[self._dropped(split, k, room) : split], k)

    def _joined(self, passage: Passage, rows: Tensor, k: int, raw: Tensor) -> EmbedsReading:
        """Head, rows, raw tokens, tail."""
        parts = [
            self.reader.embed_tokens(passage.head),
            rows,
            self.reader.embed_tokens(torch.cat([raw, passage.tail])),
        ]
        embeds = torch.cat([part.to(self.reader.device, self.reader.dtype) for part in parts])
        return EmbedsReading(reader=self.reader, embeds=embeds, k=k)

    def recent_of(self, passage: Passage) -> float:
        """Part of the room that recent text takes: none before a question about all of it."""
        return 0.0 if len(passage.tail) else self.recent_share

    def _split(self, passage: Passage, room: int) -> tuple[int, int]:
        """Where the raw part begins, and k."""
        num_tokens = len(passage.context)
        recent = int(self.recent_of(passage) * room)
        if self.k is None:
            return num_tokens - recent, self._smallest_k(num_tokens - recent, room - recent)
        if not self.all_rows and self._num_rows(num_tokens, self.k) > room:
            return num_tokens - recent, self.k
        return self._latest_split(num_tokens, room, self.k), self.k

    def _smallest_k(self, num_tokens: int, room: int) -> int:
        """The smallest k whose rows fit, or the largest there is."""
        largest = self._largest_k
        fitting = (k for k in range(2, largest) if self._num_rows(num_tokens, k) <= room)
        return next(fitting, largest)

    @property
    def _largest_k(self) -> int:
        return min(self.embedder.config.max_k, self.embedder.config.chunk_tokens)

    def _latest_split(self, num_tokens: int, room: int, k: int) -> int:
        """The smallest older part whose rows leave room for the rest, raw."""
        if self.all_rows:
            return num_tokens
        low, high = 0, num_tokens  # at `high` all is rows
        while low < high:
            middle = (low + high) // 2
            if self._num_rows(middle, k) + num_tokens - middle <= room:
                high = middle
            else:
                low = middle + 1
        return low

    def _dropped(self, split: int, k: int, room: int) -> int:
        """Oldest tokens whose rows do not fit, in whole chunks."""
        if room < 0:
            raise WindowError(f"Recent tokens must fit the window, but {-room} rows are missing.")
        if self.all_rows and self._num_rows(split, k) > room:
            raise WindowError(
                f"Rows of the whole context must fit in {room} rows, but they take "
                f"{self._num_rows(split, k)} at k={k}; give a larger k or less context."
            )
        chunk, dropped = self.embedder.config.chunk_tokens, 0
        while self._num_rows(split - dropped, k) > room:
            dropped += chunk
        return min(dropped, split)

    def _num_rows(self, num_tokens: int, k: int) -> int:
        chunk = self.embedder.config.chunk_tokens
        whole, rest = divmod(num_tokens, chunk)
        return whole * num_rows(chunk, k) + num_rows(rest, k)

    def _rows(self, token_ids: Tensor, k: int) -> Tensor:
        if len(token_ids) == 0:
            return torch.empty(0, self.reader.hidden_size)
        k = min(k, len(token_ids))
        if self.cache is not None:
            return self.cache.rows(token_ids, k)
        return self.embedder.compress(token_ids, k=k).rows


class ExtensibleRawEnd(Extensible):
    """As `Reader.generate` reads: rows at 2k, the end raw, in as many places as rows at k."""

    name = "extensible-raw-end"
    version = 1
    for_recovery = True

    def read(self, passage: Passage, room: int) -> Reading:
        """Head, rows, the end."""
        config, num_tokens = self.embedder.config, len(passage.context)
        assert self.k is not None
        sampler = down_sampling(config.down_sampling)
        end = raw_end(num_tokens, config.chunk_tokens, self.k, sampler, config.max_k)
        if end is None:
            return super().read(passage, room)
        left = room_for_context(passage, room) - (num_tokens - end.start)
        rows = self._fitting_rows(passage, end.num_older, end.k, left)
        return self._joined(passage, rows, self.k, passage.context[end.start :])


class MeanPool(Extensible):
    """Averaged token embeddings in place of rows: the compression that needs no training."""

    name = "mean-pool"

    def _rows(self, token_ids: Tensor, k: int) -> Tensor:
        embeds = self.reader.embed_tokens(token_ids).float()
        means = [part.mean(0, keepdim=True) for part in embeds.split(k) if len(part)]
        return torch.cat([*means, embeds[:0]])


class Recent(Extensible):
    """The most recent tokens raw, as many as rows would stand for all: what rows have to beat."""

    name = "recent"
    version = 1
    for_recovery = True

    def _rows(self, token_ids: Tensor, k: int) -> Tensor:
        count = self._num_rows(len(token_ids), k)
        return self.reader.embed_tokens(token_ids[len(token_ids) - count :])
