"""A context: rows with their provenance.

In: rows from an embedder, with the token ids that they stand for. Out: the same rows at any
multiple of their scale factor, saved and loaded. Knows nothing of models.

Axes: R row, H reader hidden size; n tokens.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from .chunks import chunk_spans
from .downsampling import DOWN_SAMPLINGS, check_scale_factor, down_sampling, num_rows
from .errors import CheckpointError, InputError
from .folders import read_json, read_tensors, whole_folder, write_json
from .source import Source

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
    tokenizer_fingerprint: str = ""
    """Of the tokenizer that made the tokens, where it is known; it is not saved."""
    source: Source | None = field(default=None, repr=False, compare=False)
    """The text that the tokens were made of, where it is known; it is not saved."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the context."""
        return len(self.token_ids)

    @property
    def num_rows(self) -> int:
        """Rows that stand for it."""
        return len(self.rows)

    @property
    def coarsest_k(self) -> int:
        """The largest scale factor at which k="auto" may read it."""
        if self.k == 1 or not down_sampling(self.down_sampling).nests:
            return self.k
        most = min(max(self.max_k, self.k), self.chunk_tokens)
        return most - most % self.k

    def rows_at(self, k: int) -> int:
        """Rows that this context takes at scale factor k (raw tokens at k=1)."""
        check_scale_factor(k)
        return sum(num_rows(end - start, k) for start, end in self._spans())

    def row_ends(self) -> Tensor:
        """Token offset after the last token of each row, (R,)."""
        return self.row_ends_at(self.k)

    def row_ends_at(self, k: int) -> Tensor:
        """The same of the rows that this context takes at k; at k=1 these are its tokens."""
        sampler = down_sampling(self.down_sampling)
        return sampler.context_row_ends(self.num_tokens, self.chunk_tokens, k)

    def at(self, k: int) -> Context:
        """The same context at a multiple of its scale factor, without reading the text again.

        Raises:
            InputError: k is not a multiple or more than a chunk, or the down-sampling does not
                nest.
        """
        if check_scale_factor(k) == self.k:
            return self
        if k % self.k or self.k == 1 or k > self.chunk_tokens:
            raise InputError(
                "Rows can be read at multiples of the scale factor (2 or more) that they were made "
                f"at, {self.k}, up to a chunk of {self.chunk_tokens} tokens, but k is {k}; "
                "compress the text again at another k."
            )
        rows = down_sampling(self.down_sampling).context_coarser(
            self.rows, self.num_tokens, self.chunk_tokens, self.k, k // self.k
        )
        return dataclasses.replace(self, rows=rows, k=k)

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
        tensors = {"rows": self.rows.contiguous(), "token_ids": self.token_ids.contiguous()}
        with whole_folder(folder) as temporary:
            save_file(tensors, temporary / TENSORS)
            write_json(temporary / MANIFEST, manifest)

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
        _check_manifest(manifest, folder)
        tensors = read_tensors(folder / TENSORS, "a compressed context")
        _check_tensors(tensors, manifest, folder)
        fields = {field: manifest[field] for field in _SAVED_FIELDS}
        return cls(rows=tensors["rows"], token_ids=tensors["token_ids"], **fields)

    @staticmethod
    def is_saved_at(folder: str | Path) -> bool:
        """Whether the folder holds a whole saved context."""
        return all((Path(folder) / name).is_file() for name in (MANIFEST, TENSORS))

    def _spans(self) -> list[tuple[int, int]]:
        return chunk_spans(self.num_tokens, self.chunk_tokens)


_SAVED_FIELDS: dict[str, type] = {
    "title": str,
    "k": int,
    "chunk_tokens": int,
    "down_sampling": str,
    "max_k": int,
    "embedder_fingerprint": str,
    "reader_fingerprint": str,
}
_SIZES: dict[str, type] = {"num_tokens": int, "num_rows": int, "row_width": int}
_ROW_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_PIECE_ROWS = 1 << 16  # a whole context's worth of booleans would double the memory


def _check_manifest(manifest: dict[str, Any], folder: Path) -> None:
    expected = {**_SAVED_FIELDS, **_SIZES}
    for name in sorted({*expected, *manifest} - {"format_version"}):
        if name not in manifest:
            raise _damaged(folder, f"{name!r} in its {MANIFEST}", "lacks it")
        value = manifest[name]
        if name not in expected:
            raise _damaged(folder, f"no {name!r} in its {MANIFEST}", f"has it as {value!r}")
        if type(value) is not expected[name] or (isinstance(value, int) and value < 1):
            what = "whole numbers, 1 or more," if expected[name] is int else "text"
            raise _damaged(folder, f"{what} as {name!r}", f"has {value!r}")
    k, chunk_tokens = manifest["k"], manifest["chunk_tokens"]
    if k > chunk_tokens:
        raise _damaged(folder, f"a k of at most its chunks' {chunk_tokens} tokens", f"has k={k}")
    if (name := manifest["down_sampling"]) not in DOWN_SAMPLINGS:
        raise _damaged(folder, f"a down-sampling of {', '.join(DOWN_SAMPLINGS)}", f"has {name!r}")


def _check_tensors(tensors: dict[str, Tensor], manifest: dict[str, Any], folder: Path) -> None:
    if set(tensors) != {"rows", "token_ids"}:
        raise _damaged(folder, f"rows and token_ids in its {TENSORS}", f"has {sorted(tensors)}")
    rows, token_ids = tensors["rows"], tensors["token_ids"]
    full, rest = divmod(manifest["num_tokens"], manifest["chunk_tokens"])
    count = full * num_rows(manifest["chunk_tokens"], manifest["k"]) + num_rows(rest, manifest["k"])
    if count != manifest["num_rows"]:
        raise _damaged(folder, f"{count} rows for its tokens", f"promises {manifest['num_rows']}")
    for name, tensor, shape, types in (
        ("token_ids", token_ids, (manifest["num_tokens"],), (torch.int64,)),
        ("rows", rows, (count, manifest["row_width"]), _ROW_TYPES),
    ):
        if tuple(tensor.shape) != shape or tensor.dtype not in types:
            rule = f"{name} of shape {shape} and {' or '.join(map(str, types))}"
            raise _damaged(folder, rule, f"has {tuple(tensor.shape)} and {tensor.dtype}")
    if int(token_ids.min()) < 0:
        raise _damaged(folder, "token ids of 0 or more", f"has {int(token_ids.min())}")
    if not all(bool(torch.isfinite(piece).all()) for piece in rows.split(_PIECE_ROWS)):
        raise _damaged(folder, "rows of finite numbers", "has NaN or infinity")


def _damaged(folder: Path, rule: str, found: str) -> CheckpointError:
    return CheckpointError(
        f"A compressed context has {rule}, but {str(folder)!r} {found}; copy the folder or "
        "compress the text again."
    )
