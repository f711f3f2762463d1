"""Online reading: the context as it comes, older text as rows that grow coarser with its length."""

from __future__ import annotations

import copy
import dataclasses

from ...embedder import ExtensibleEmbedder
from ...errors import InputError
from ...prompt import Prompt
from ...stream import ContextStream
from .base import CannotRunError, EmbedsReading, Passage, Reading, raw_reading, room_for_context
from .rows import Extensible

_FIRST_K = 2
_LEAST_RECENT = 4
"""At least one part in so many of the room is recent text, as in a stream's own default."""


class ExtensibleOnline(Extensible):
    """Extensible embeddings through a `ContextStream`: nothing of the context is known ahead.

    With k="auto" the stream begins at k=2 and doubles it whenever the window is full; with a fixed
    k its oldest rows go. It keeps `recent_share` of the room raw, less where two chunks need the
    rest. Where two chunks and a quarter of recent text do not fit at all, it reads in chunks of
    half the length, or a quarter, ...: embedders are trained on shorter chunks too.

    Args:
        embedder: with its reader.
        k: tokens per row, or None for auto.
        recent_share: part of the room for the context that is always read raw.
        all_rows: not possible here; the recovery protocol has no window that fills up.
    """

    name = "extensible-online"
    version = 1
    reads_all = False
    usual_recent_share = 0.5

    def read(self, passage: Passage, room: int) -> Reading:
        """Head, rows and recent tokens as the stream left them, tail."""
        left = room_for_context(passage, room)
        if len(passage.context) <= left:
            return raw_reading(self.reader, passage, passage.context)
        stream = self._stream(passage, room, left)
        stream.append(passage.context)
        rows_and_recent = stream.prompt().parts[1:]
        prompt = Prompt(parts=(passage.head, *rows_and_recent, passage.tail))
        k = stream.k if stream.num_rows else 1
        return EmbedsReading(reader=self.reader, embeds=prompt.embeds(self.reader, k), k=k)

    def _stream(self, passage: Passage, room: int, left: int) -> ContextStream:
        embedder = self._fitting_embedder(left)
        most_recent = left - 2 * embedder.config.chunk_tokens
        try:
            return ContextStream(
                embedder,
                k=self.k or _FIRST_K,
                max_k=self.k,
                window=room,
                reserve_rows=passage.num_frame,
                recent_tokens=max(1, min(int(self.recent_share * left), most_recent)),
            )
        except InputError as error:  # of the down-sampling, or of k in such chunks
            raise CannotRunError(str(error)) from error

    def _fitting_embedder(self, left: int) -> ExtensibleEmbedder:
        """The embedder, with chunks of which two fit beside recent text."""
        chunk = self.embedder.config.chunk_tokens
        while chunk >= _FIRST_K and left - 2 * chunk < max(1, left // _LEAST_RECENT):
            chunk //= 2
        if chunk < _FIRST_K:
            raise CannotRunError(f"two chunks and recent text do not fit in {left} rows")
        return _with_chunks(self.embedder, chunk)


def _with_chunks(embedder: ExtensibleEmbedder, chunk_tokens: int) -> ExtensibleEmbedder:
    """The same weights, read in chunks of another length."""
    if chunk_tokens == embedder.config.chunk_tokens:
        return embedder
    other = copy.copy(embedder)
    other.config = dataclasses.replace(embedder.config, chunk_tokens=chunk_tokens)
    return other
