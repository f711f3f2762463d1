"""Keys and values of what prompts begin with, so that a second question pays only for itself.

In: the parts that a prompt shares with others, and its cache once they have been read. Out: the
keys and values of as many whole parts as are known. A part is kept once, however many prompts go
on from it, and is known by its content and by all that stands before it. The parts that were used
least recently go first; a part never goes before one that follows it.

What is kept is copied in and copied out: no request ever writes to it. It knows nothing of models
and only works for caches whose rows stand for one place each (`Passes.keeps`).

Axes: R row, D head size.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from .base import Request


@dataclass(frozen=True)
class Shared:
    """The first rows of a prompt, up to the end of a shared part."""

    key: bytes
    """A hash of them, of where parts end, and of their types."""
    num_rows: int


def shared_prefixes(request: Request) -> list[Shared]:
    """Every prefix that ends with a shared part, the shortest first."""
    found, digest, num_rows = [], hashlib.blake2b(digest_size=16), 0
    for part in request.parts[: request.num_shared]:
        digest.update(f"{part.dtype}{tuple(part.shape)}".encode())
        digest.update(part.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        num_rows += len(part)
        found.append(Shared(digest.digest(), num_rows))
    return found


@dataclass(frozen=True, eq=False)
class Segment:
    """Keys and values of one part, (1, heads, R, D) each, of every layer."""

    layers: tuple[tuple[Tensor, Tensor], ...]

    @property
    def num_bytes(self) -> int:
        """Memory that it holds."""
        return sum(tensor.nbytes for pair in self.layers for tensor in pair)


class PrefixCache:
    """Segments of recent prompts.

    Args:
        max_bytes: of all segments; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._segments: OrderedDict[bytes, Segment] = OrderedDict()  # least recently used first
        self.num_bytes = self.num_hits = self.num_misses = self.num_reused_rows = 0

    def restore(self, prefixes: Sequence[Shared], cache: Cache, most: int) -> int:
        """Writes what is known of the longest prefix into an empty cache.

        Args:
            prefixes: of a prompt, the shortest first.
            cache: of its request.
            most: rows that are wanted at most.

        Returns:
            How many rows the cache now holds.
        """
        num_known = 0
        while num_known < len(prefixes) and prefixes[num_known].key in self._segments:
            num_known += 1
        self._touch(prefixes[:num_known])
        start = 0
        for prefix in prefixes[:num_known]:
            count = min(prefix.num_rows, most) - start
            for layer, pair in zip(_layers(cache), self._segments[prefix.key].layers, strict=True):
                layer.update(*(tensor[:, :, :count] for tensor in pair))
            start += count
        self.num_hits += start > 0
        self.num_misses += start == 0 < len(prefixes)
        self.num_reused_rows += start
        return start

    def keep(self, prefixes: Sequence[Shared], cache: Cache) -> None:
        """Copies of the parts that are not known yet, from a cache that has read them all.

        Where all of them are more than may be kept, the first ones are.
        """
        start, held = 0, 0
        for number, prefix in enumerate(prefixes):
            segment = self._segments.get(prefix.key) or _segment(cache, start, prefix.num_rows)
            held += segment.num_bytes
            if held > self.max_bytes:
                prefixes = prefixes[:number]
                break
            if prefix.key not in self._segments:
                self._segments[prefix.key] = segment
                self.num_bytes += segment.num_bytes
            start = prefix.num_rows
        self._touch(prefixes)
        while self.num_bytes > self.max_bytes:
            _, oldest = self._segments.popitem(last=False)
            self.num_bytes -= oldest.num_bytes

    def clear(self) -> None:
        """Keeps nothing any longer."""
        self._segments.clear()
        self.num_bytes = 0

    def _touch(self, prefixes: Sequence[Shared]) -> None:
        """The shortest last, so that what others go on from is always the more recent."""
        for prefix in reversed(prefixes):
            self._segments.move_to_end(prefix.key)


def _segment(cache: Cache, start: int, end: int) -> Segment:
    pairs = [(layer.keys, layer.values) for layer in _layers(cache)]
    return Segment(
        tuple(
            (keys[:, :, start:end].clone(), values[:, :, start:end].clone())
            for keys, values in pairs
            if keys is not None and values is not None  # as they are in a cache that was read into
        )
    )


def _layers(cache: Cache) -> list[DynamicLayer]:
    return cast("list[DynamicLayer]", cache.layers)
