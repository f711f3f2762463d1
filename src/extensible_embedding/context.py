"""A context: rows with their provenance.

In: rows from an embedder, with the token ids that they stand for. Out: the same rows at any
multiple of their scale factor, saved and loaded. Knows nothing of models.

Axes: R row, H reader hidden size; n tokens.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from .chunks import chunk_spans
from .downsampling import check_scale_factor, down_sampling, num_rows, row_ends
from .errors import CheckpointError, InputError
from .folders import read_json, read_tensors, whole_folder

FORMAT_VERSION = 1
MANIFEST = "context.json"
TENSORS = "rows.safetensors"


@dataclass(frozen=True, kw_only=True)
class Context:
    """Rows of a long text, and what they stand for."""

    rows: Tensor
    """(R, H), in the reader's dtype."""
    token_ids: Tensor
    """(n,) the tokens that the rows stand for."""
    k: int
    """Tokens per row."""
    chunk_tokens: int
    """Tokens that the embedder saw at once."""
    down_sampling: str
    """How rows were picked from the embedder's outputs."""
    embedder_fingerprint: str
    """Of the embedder that made the rows."""
    reader_fingerprint: str
    """Of the reader that the rows are for."""
    max_k: int = 64
    """Largest scale factor that k="auto" may choose."""
    title: str = ""
    """A name to show."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the context."""
        return len(self.token_ids)

    @property
    def num_rows(self) -> int:
        """Rows that stand for it."""
        return len(self.rows)

    def rows_at(self, k: int) -> int:
        """Rows that this context takes at scale factor k (raw tokens at k=1)."""
        return sum(num_rows(end - start, k) for start, end in self._spans())

    def row_ends(self) -> Tensor:
        """Token offset after the last token of each row, (R,)."""
        return torch.cat([row_ends(end - start, self.k) + start for start, end in self._spans()])

    def at(self, k: int) -> Context:
        """The same context at a multiple of its scale factor, without reading the text again.

        Raises:
            InputError: k is not a multiple, or the down-sampling does not nest.
        """
        if check_scale_factor(k) == self.k:
            return self
        if k % self.k or self.k == 1:
            raise InputError(
                f"Rows can be read at multiples of the scale factor (2 or more) that they were made at, {self.k}, "
                f"but k is {k}; compress the text again at a divisor of {k}."
            )
        sampler, factor, first, parts = down_sampling(self.down_sampling), k // self.k, 0, []
        for start, end in self._spans():
            count = num_rows(end - start, self.k)
            part = self.rows[first : first + count]
            parts.append(sampler.coarser(part, end - start, self.k, factor))
            first += count
        return dataclasses.replace(self, rows=torch.cat(parts), k=k)

    def save(self, folder: str | Path) -> None:
        """Writes the context as a folder: context.json and rows.safetensors.

        Raises:
            StorageError: the disk is full or not writable; nothing is left then.
        """
        manifest = {
            "format_version": FORMAT_VERSION,
            "num_tokens": self.num_tokens,
            "num_rows": self.num_rows,
            "row_width": self.rows.shape[-1],
            **{field: getattr(self, field) for field in _SAVED_FIELDS},
        }
        with whole_folder(folder) as temporary:
            tensors = {"rows": self.rows.contiguous(), "token_ids": self.token_ids.contiguous()}
            save_file(tensors, temporary / TENSORS)
            text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
            (temporary / MANIFEST).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Context:
        """Reads what `save` wrote.

        Raises:
            CheckpointError: it is missing, incomplete, damaged or of another version.
        """
        folder = Path(folder)
        manifest = read_json(folder / MANIFEST, "a compressed context")
        version = manifest.get("format_version")
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"Contexts of format version {FORMAT_VERSION} can be read, but {str(folder)!r} has "
                f"version {version}; compress the text again, or use the version that made it."
            )
        tensors = read_tensors(folder / TENSORS, "a compressed context")
        try:
            fields = {field: manifest[field] for field in _SAVED_FIELDS}
            context = cls(rows=tensors["rows"], token_ids=tensors["token_ids"], **fields)
            shape = (manifest["num_rows"], manifest["row_width"])
        except KeyError as error:
            raise CheckpointError(
                f"{str(folder)!r} lacks {error}; compress the text again."
            ) from error
        if tuple(context.rows.shape) != shape or context.rows_at(context.k) != shape[0]:
            raise CheckpointError(
                f"{str(folder)!r} promises {shape[0]} rows of width {shape[1]} for "
                f"{context.num_tokens} tokens, but holds {tuple(context.rows.shape)}; compress the "
                "text again."
            )
        return context

    @staticmethod
    def is_saved_at(folder: str | Path) -> bool:
        """Whether the folder holds a whole saved context."""
        return (Path(folder) / MANIFEST).is_file()

    def _spans(self) -> list[tuple[int, int]]:
        return chunk_spans(self.num_tokens, self.chunk_tokens)


_SAVED_FIELDS = (
    "title",
    "k",
    "chunk_tokens",
    "down_sampling",
    "max_k",
    "embedder_fingerprint",
    "reader_fingerprint",
)
