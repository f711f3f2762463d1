"""A setting of the cost benchmark -> what the reader sees.

In: an embedder, the tokens of a context, a setting. Out: a `Reading`, made as a user would have it
made: at once (online), from rows that were saved before (offline), or by a stream that holds what
the window does. Measures nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..context import Context
from ..downsampling import num_rows
from ..embedder import ExtensibleEmbedder
from ..errors import InputError, WindowError
from ..prompt import language_head
from ..stream import ContextStream
from .cost_settings import OFFLINE, STREAM, CostSetting
from .methods import (
    WITH_K,
    CannotRunError,
    EmbedsReading,
    Passage,
    Reading,
    make_method,
)
from .methods.rows import Extensible

PIECE_TOKENS = 2048
"""Tokens that a stream is given at once."""


def reading_maker(
    embedder: ExtensibleEmbedder,
    setting: CostSetting,
    context: Tensor,
    new_tokens: int,
    folder: Path | None = None,
) -> Callable[[], Reading]:
    """What makes the reading of a setting; making it is what is timed.

    Args:
        embedder: with its reader.
        setting: how to read.
        context: token ids (n,), the setting's `context_tokens` of them.
        new_tokens: rows kept free in the window.
        folder: of the rows of an offline setting; they are made and saved there if they are not.

    Raises:
        CannotRunError: the rows of the whole context do not fit the window.
    """
    reader = embedder.reader
    window = setting.window or reader.window
    if setting.mode == STREAM:
        return lambda: _stream_reading(embedder, setting.k, context, window, new_tokens)
    passage = Passage(
        head=language_head(reader), context=context, tail=context[:0], num_next=new_tokens
    )
    reads_all = setting.method in WITH_K and WITH_K[setting.method].reads_all
    whole = reads_all and setting.window is None and setting.k > 0
    if whole:
        _check_fits(embedder, setting, window - new_tokens - passage.num_frame)
    if setting.mode == OFFLINE:
        assert folder is not None
        stored = StoredRows(embedder, folder, setting.k or None, all_rows=whole)
        stored.read(passage, window - new_tokens)
        return lambda: stored.read(passage, window - new_tokens)

    def make() -> Reading:
        """By a new method each time: one may keep rows that it made before."""
        method = make_method(setting.method, embedder, k=setting.k or None, all_rows=whole)
        return method.read(passage, window - new_tokens)

    return make


class StoredRows(Extensible):
    """Reads rows that were saved before.

    Args:
        embedder: made the rows, or makes them if they are not there.
        folder: of the saved context.
        k: tokens per row, or None for auto.
        all_rows: the whole context as rows.
    """

    def __init__(
        self,
        embedder: ExtensibleEmbedder,
        folder: Path,
        k: int | None = None,
        *,
        all_rows: bool = False,
    ) -> None:
        super().__init__(embedder, k, all_rows=all_rows)
        self.folder = folder
        self._loaded: Context | None = None

    def _rows(self, token_ids: Tensor, k: int) -> Tensor:
        if len(token_ids) == 0:
            return super()._rows(token_ids, k)
        if self._loaded is None:
            if not Context.is_saved_at(self.folder):
                self.embedder.compress(token_ids, k=min(k, len(token_ids))).save(self.folder)
            self._loaded = Context.load(self.folder)
        return self._loaded.rows


@dataclass(frozen=True, kw_only=True)
class StreamReading(EmbedsReading):
    """What a stream held in the end."""

    num_dropped: int
    """Oldest tokens whose rows had to go."""


def _stream_reading(
    embedder: ExtensibleEmbedder, k: int, context: Tensor, window: int, new_tokens: int
) -> StreamReading:
    reader = embedder.reader
    reserve = len(language_head(reader)) + new_tokens
    try:
        stream = ContextStream(embedder, k=k, window=window, reserve_rows=reserve)
    except (InputError, WindowError) as error:
        raise CannotRunError(str(error)) from error
    for piece in context.split(PIECE_TOKENS):
        stream.append(piece)
    return StreamReading(
        reader=reader,
        embeds=stream.prompt().embeds(reader, 1),
        k=stream.k if stream.num_rows else 1,
        num_dropped=stream.num_dropped_tokens,
    )


def _check_fits(embedder: ExtensibleEmbedder, setting: CostSetting, room: int) -> None:
    """Rows of a whole context that do not fit are not cut: that would be another reading."""
    chunk = embedder.config.chunk_tokens
    if setting.k > chunk:
        raise CannotRunError(f"k is at most {chunk}, the tokens of a chunk")
    full, rest = divmod(setting.context_tokens, chunk)
    rows = full * num_rows(chunk, setting.k) + num_rows(rest, setting.k)
    if rows > room:
        raise CannotRunError(f"{rows:,} rows, but the window holds {room:,} of them")


CANNOT = (CannotRunError, WindowError)
"""What says that a setting cannot run, and why."""
