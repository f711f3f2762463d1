"""A stored context, to read: rows at any multiple of k, text and places of any row.

In: a manifest and the place of its files. Out: a `Context` as if it had just been compressed, and
the text that rows stand for. Opening reads headers alone; rows come from a memory map when they are
asked for. Knows nothing of models.

Axes: R row, H reader hidden size; n tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..context import Context
from ..downsampling import Picked, check_scale_factor, down_sampling
from ..errors import CheckpointError, InputError
from .files import Place
from .manifest import Manifest, Settings
from .names import folder_of
from .segment import OpenSegment, Segment, open_text

if TYPE_CHECKING:
    from ..reader import Reader


class LostFileError(CheckpointError):
    """A file is missing that a manifest names: lost, or removed since the manifest was read."""


class StoredContext:
    """One context of a store, as it was when it was opened.

    Attributes:
        manifest: what the store says of it.
        folder: where its files are, in the store.
    """

    def __init__(self, place: Place, manifest: Manifest) -> None:
        self.place, self.manifest = place, manifest
        self.folder = folder_of(manifest.name)

    name = property(lambda self: self.manifest.name, doc="The name that the store has it under.")
    title = property(lambda self: self.manifest.title, doc="A name to show.")

    @property
    def metadata(self) -> dict[str, Any]:
        """What was kept with it."""
        return self.manifest.metadata

    @property
    def settings(self) -> Settings:
        """What its rows depend on."""
        return self.manifest.settings

    @property
    def num_tokens(self) -> int:
        """Tokens of the context."""
        return self.manifest.num_tokens

    @property
    def num_rows(self) -> int:
        """Rows as kept, at the k of its settings."""
        return self.manifest.num_rows

    @cached_property
    def segments(self) -> list[OpenSegment]:
        """Its segments, opened.

        Raises:
            LostFileError: one is missing.
            CheckpointError: one is damaged.
        """
        with self._missing():
            return [self.opened(each) for each in self.manifest.segments]

    @cached_property
    def texts(self) -> list[Callable[[], bytes]]:
        """What reads the text of each of its segments, though their files may be gone by then.

        Raises:
            LostFileError: one is missing.
        """
        with self._missing():
            return [
                open_text(self.place, self.folder, each, self.name)
                for each in self.manifest.segments
            ]

    def open_files(self) -> None:
        """Opens all of its files: what is done to the store from now on, it does not see.

        Raises:
            LostFileError: one is missing.
            CheckpointError: one is damaged.
        """
        _ = self.segments, self.texts

    @contextmanager
    def _missing(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            file = str(error.filename).rpartition("/")[2]
            raise LostFileError(
                f"Context {self.name!r} has the file {file!r}, but that file is missing; open it "
                "again if it was changed meanwhile, or repair the store, for example with "
                "`extensible store repair`."
            ) from error

    def opened(self, segment: Segment) -> OpenSegment:
        """A segment in the context's folder."""
        kept = self.settings
        kind = (kept.row_type, kept.row_width, kept.key)
        return OpenSegment(self.place, self.folder, segment, kind, self.name)

    def context(self, k: int | None = None) -> Context:
        """The context at a multiple of the k that it is kept at, by default at that.

        Rows are those that `compress` makes with `batch_chunks=1`, in the type they are kept in.

        Raises:
            InputError: k is no such multiple, or the down-sampling does not nest.
            CheckpointError: a file is damaged.
        """
        kept = self.settings
        k = kept.k if k is None else check_scale_factor(k)
        sampler = down_sampling(kept.down_sampling)
        if k % kept.k or k > kept.chunk_tokens or (k != kept.k and not sampler.nests):
            raise InputError(
                f"Context {self.name!r} is kept at k={kept.k} and can be read at multiples of it "
                f"up to a chunk of {kept.chunk_tokens} tokens, but k is {k}; give one, or add the "
                "text again at another k."
            )
        if not self.num_tokens:
            raise InputError(
                f"A context is read when it holds text, but {self.name!r} is empty; append some."
            )
        rows = [self._rows(segment, k) for segment in self.segments]
        return Context(
            rows=torch.cat(rows),
            token_ids=self.token_ids(),
            k=k,
            chunk_tokens=kept.chunk_tokens,
            down_sampling=kept.down_sampling,
            embedder_fingerprint=kept.embedder_fingerprint,
            reader_fingerprint=kept.reader_fingerprint,
            max_k=kept.max_k,
            title=self.title,
            tokenizer_fingerprint=kept.tokenizer_fingerprint,
            source=self,
        )

    def _rows(self, segment: OpenSegment, k: int) -> Tensor:
        """Rows (r, H) of a segment at k; of a down-sampling that picks, only those are read."""
        kept, factor = self.settings, k // self.settings.k
        if factor == 1:
            return segment.rows()
        sampler = down_sampling(kept.down_sampling)
        sizes = segment.segment.num_tokens, kept.chunk_tokens, kept.k, factor
        if isinstance(sampler, Picked):
            return segment.rows(sampler.context_kept(*sizes))
        return sampler.context_coarser(segment.rows(), *sizes)

    def token_ids(self) -> Tensor:
        """Token ids (n,)."""
        ids = [segment.token_ids() for segment in self.segments]
        return torch.cat([torch.zeros(0, dtype=torch.long), *ids])

    def text(self) -> str:
        """The whole text.

        Raises:
            CheckpointError: it is damaged or missing.
        """
        with self._missing():
            return b"".join(read() for read in self.texts).decode()

    def row_spans(self) -> Tensor:
        """First and last byte (after) of the text that each row stands for, (R, 2)."""
        ends = torch.cat([torch.zeros(0, dtype=torch.long), *self._ends()])
        starts = torch.cat([ends.new_zeros(1), ends])[:-1]
        return torch.stack([starts, ends], dim=1)

    def places(self, reader: Reader, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens that end a row as kept, and the bytes of the text after these: (R,) each."""
        lengths = [each.segment.num_tokens for each in self.segments]
        starts, kept = torch.tensor([0, *lengths]).cumsum(0), self.settings
        sampler = down_sampling(kept.down_sampling)
        numbers = [
            sampler.context_row_ends(length, kept.chunk_tokens, kept.k) + int(first)
            for length, first in zip(lengths, starts, strict=False)
        ]
        return torch.cat(numbers), self.row_spans()[:, 1]

    def _ends(self) -> Iterator[Tensor]:
        offset = 0
        for segment in self.segments:
            yield segment.row_bytes() + offset
            offset += segment.segment.text_bytes
