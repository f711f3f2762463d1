"""Whose the cells of llama.cpp's cache are: running requests and kept prefixes.

In: how large a request is and what it shares. Out: a sequence for it, with whatever of the shared
rows is there already. It counts, and says what to copy and what to remove; of models it knows
nothing.

A cell keeps one row's keys and values. Copying a sequence copies no cell: both then own the same
cells, and a cell is free once no sequence owns it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from .prefix_cache import Shared


class Sequences(Protocol):
    """What owns cells, by number."""

    def copy(self, source: int, target: int, num_rows: int) -> None:
        """Makes an empty sequence own another's first cells, too."""

    def remove(self, sequence: int) -> None:
        """Makes a sequence own nothing."""


@dataclass(frozen=True, eq=False)
class Segment:
    """Cells that are owned by the same sequences."""

    num_rows: int


@dataclass(eq=False)
class Held:
    """A sequence and the segments whose cells it owns, or will: of a request, the last are its."""

    sequence: int
    segments: tuple[Segment, ...]
    num_reused: int = 0
    """Rows that were there when the request began."""


class Cells:
    """Gives cells to requests, and keeps prefixes in those that nobody needs.

    Args:
        sequences: numbered from 0, empty; as many as requests and prefixes together.
        num_cells: of all sequences. There must be one more for each request: the last row of a
            prompt is read again even where all of it is kept.
        num_requests: the most that hold cells at a time.
        num_prefixes: the most that are kept.
    """

    def __init__(
        self, sequences: Sequences, *, num_cells: int, num_requests: int, num_prefixes: int
    ) -> None:
        self.num_cells = num_cells
        self._sequences = sequences
        self._num_requests = num_requests
        self._num_prefixes = num_prefixes
        self._free = list(range(num_requests + num_prefixes))
        self._running: set[Held] = set()
        self._prefixes: OrderedDict[bytes, Held] = OrderedDict()  # the least recently used first

    @property
    def num_used(self) -> int:
        """Cells that are owned, or set apart for new tokens."""
        return _size([*self._running, *self._prefixes.values()])

    @property
    def num_kept(self) -> int:
        """Prefixes that are kept."""
        return len(self._prefixes)

    def take(self, num_rows: int, num_new: int, prefixes: Sequence[Shared]) -> Held | None:
        """A sequence for a prompt and its new tokens, or None as long as others hold too much."""
        if len(self._running) == self._num_requests:
            return None
        known = [prefix for prefix in prefixes if prefix.key in self._prefixes]
        found = self._prefixes[known[-1].key] if known else None
        inherited = found.segments if found else ()
        there = sum(segment.num_rows for segment in inherited)
        held = Held(-1, (*inherited, Segment(num_rows + num_new - there)), min(there, num_rows - 1))
        if _size([held, *self._running]) > self.num_cells:
            return None
        if found is not None:
            self._prefixes.move_to_end(known[-1].key)
        while _size([held, *self._running, *self._prefixes.values()]) > self.num_cells:
            self._forget_oldest()
        held.sequence = self._free.pop()
        self._running.add(held)
        if found is not None and held.num_reused:
            self._sequences.copy(found.sequence, held.sequence, held.num_reused)
        return held

    def keep(self, held: Held, prefix: Shared) -> None:
        """Keeps the first rows of a request, which have been read."""
        if not self._num_prefixes:
            return
        if prefix.key in self._prefixes:
            self._prefixes.move_to_end(prefix.key)
            return
        *inherited, own = held.segments
        rest = prefix.num_rows - sum(segment.num_rows for segment in inherited)
        if rest > 0:
            inherited.append(Segment(rest))
            held.segments = (*inherited, Segment(own.num_rows - rest))
        if len(self._prefixes) == self._num_prefixes:
            self._forget_oldest()
        kept = Held(self._free.pop(), tuple(inherited))
        self._sequences.copy(held.sequence, kept.sequence, prefix.num_rows)
        self._prefixes[prefix.key] = kept

    def release(self, held: Held) -> None:
        """Frees what a request held; what is kept of it stays."""
        self._running.remove(held)
        self._remove(held)

    def _forget_oldest(self) -> None:
        _, held = self._prefixes.popitem(last=False)
        self._remove(held)

    def _remove(self, held: Held) -> None:
        self._sequences.remove(held.sequence)
        self._free.append(held.sequence)


def _size(holders: Iterable[Held]) -> int:
    """Cells of all, those that several own counted once."""
    return sum(segment.num_rows for segment in {each for held in holders for each in held.segments})
