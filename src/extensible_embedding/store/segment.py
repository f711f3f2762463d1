"""A segment: a run of chunks of one context, in two files that never change.

In: rows, token ids, and the text that these stand for. Out: `<SHA-256>.safetensors` and
`<SHA-256>.txt` in the context's folder, and from them rows, token ids and places of rows in the
text. Rows come from a memory map: only those that are asked for are read. Knows nothing of other
segments.

Axes: R row, H reader hidden size; n tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file
from torch import Tensor

from ..chunks import chunk_spans
from ..downsampling import num_rows
from ..errors import CheckpointError
from .files import Place, opening, put_by_hash

ROW_TYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "int8": torch.int8,
}
"""How rows can be kept; int8 with a scale for each row."""
RowKind = tuple[str, int, str]
"""Type and width of rows, and the key of the settings that they were made with."""
_INT8_STEPS = 127


@dataclass(frozen=True, kw_only=True)
class Segment:
    """What a manifest says of a segment."""

    rows_file: str
    rows_file_bytes: int
    text_file: str
    text_bytes: int
    num_tokens: int
    num_rows: int
    chain: str
    """Of all chunks up to the end of this segment, see `chain`."""


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a segment holds."""

    rows: Tensor
    """(R, H), in the type they are kept in."""
    token_ids: Tensor
    """(n,)."""
    row_bytes: Tensor
    """(R,) offset in the segment's text after the last byte of each row's last token."""
    text: bytes
    """UTF-8."""
    settings_key: str
    """Of what the rows depend on, beside the text."""
    scales: Tensor | None = None
    """(R,) float32: what rows of int8 are multiplied with."""


def chain(before: str, token_ids: Tensor, text: bytes) -> str:
    """Hash of all chunks so far: that of the chunks before, and one more chunk.

    It depends on the chunks alone, not on the pieces that they came in: two contexts with the same
    chain have the same tokens and text.
    """
    digest = hashlib.sha256(before.encode())
    digest.update(len(token_ids).to_bytes(8, "little"))
    digest.update(token_ids.to(torch.int32).contiguous().numpy().tobytes())
    digest.update(text)
    return digest.hexdigest()


def keep(rows: Tensor, row_type: str) -> tuple[Tensor, Tensor | None]:
    """Rows (R, H) in the type that they are kept in, and their scales (R,) if that is int8."""
    if row_type != "int8":
        return rows.to(ROW_TYPES[row_type]), None
    scales = rows.float().abs().amax(dim=1).clamp_min(1e-12) / _INT8_STEPS
    steps = (rows.float() / scales[:, None]).round().clamp(-_INT8_STEPS, _INT8_STEPS)
    return steps.to(torch.int8), scales


def all_finite(rows: Tensor) -> bool:
    """Whether rows (r, H) hold neither NaN nor infinity: both show in the smallest and largest."""
    return not rows.numel() or bool(torch.isfinite(torch.stack(rows.aminmax())).all())


def write_segment(folder: Path, content: Content, end_chain: str) -> Segment:
    """Writes a segment's files into a context's folder."""
    tensors = {
        "rows": content.rows.contiguous(),
        "token_ids": content.token_ids.to(torch.int32),
        "row_bytes": content.row_bytes.to(torch.int64),
    }
    if content.scales is not None:
        tensors["scales"] = content.scales
    rows_file, rows_file_bytes = put_by_hash(
        folder,
        ".safetensors",
        lambda path: save_file(tensors, path, metadata=_metadata(end_chain, content.settings_key)),
    )
    text_file, text_bytes = put_by_hash(folder, ".txt", lambda path: path.write_bytes(content.text))
    return Segment(
        rows_file=rows_file,
        rows_file_bytes=rows_file_bytes,
        text_file=text_file,
        text_bytes=text_bytes,
        num_tokens=len(content.token_ids),
        num_rows=len(content.rows),
        chain=end_chain,
    )


def _metadata(end_chain: str, settings_key: str) -> dict[str, str]:
    """What ties a file to its place in a context: the text up to its end, and the settings.

    One entry: safetensors writes several in an order that changes, and the same content is to be
    the same bytes.
    """
    return {"made_of": f"{end_chain} {settings_key}"}


def open_text(place: Place, folder: str, segment: Segment, context: str) -> Callable[[], bytes]:
    """What reads a segment's text, UTF-8, without its rows, although its file may be gone by then.

    Raises:
        FileNotFoundError: the file is missing.
        CheckpointError: when it is read, it is not the text that was kept; `context` is named.
    """
    read = place.opened(f"{folder}/{segment.text_file}")

    def checked() -> bytes:
        data = read()
        if hashlib.sha256(data).hexdigest() != Path(segment.text_file).stem:
            raise CheckpointError(
                f"Context {context!r} has the text {segment.text_file!r}, but that file holds "
                "another; repair the store, for example with `extensible store repair`."
            )
        return data

    return checked


class OpenSegment:
    """A segment of a store, checked on opening against what the manifest says of it.

    Raises:
        FileNotFoundError: a file is missing.
        CheckpointError: a file is damaged or another's; `context` is named.
    """

    def __init__(
        self, place: Place, folder: str, segment: Segment, kind: RowKind, context: str
    ) -> None:
        self.segment, self.context = segment, context
        self._place, self._folder, self._kind = place, folder, kind
        self._tensors = self._open()

    def rows(self, places: Tensor | None = None) -> Tensor:
        """Rows (r, H) at places (r,), all by default: bfloat16, float16 or float32.

        Raises:
            CheckpointError: one is not finite.
        """
        picked = slice(None) if places is None else places
        rows = self._tensors["rows"][picked]
        if "scales" in self._tensors:
            rows = rows.float() * self._tensors["scales"][picked, None]
        if not all_finite(rows):
            raise self.damaged("rows of finite numbers", "has NaN or infinity")
        return rows if places is not None or "scales" in self._tensors else rows.clone()

    def check_whole(self, before: str, chunk_tokens: int, k: int) -> None:
        """Reads all of it: rows are finite and stand for just this text, chunk by chunk.

        Args:
            before: the chain of the segment before.
            chunk_tokens: tokens of a chunk.
            k: tokens of a row.

        Raises:
            CheckpointError: it is otherwise.
        """
        scales = self._tensors.get("scales", torch.zeros(1)) * _INT8_STEPS
        if not (all_finite(self._tensors["rows"]) and all_finite(scales)):
            raise self.damaged("rows of finite numbers", "has NaN or infinity")
        ids, ends, data = self.token_ids(), self.row_bytes().tolist(), self.text()
        offsets = [0, *ends]
        if int(ids.min()) < 0 or offsets != sorted(offsets) or offsets[-1] != len(data):
            raise self.damaged("token ids and offsets of rows in its text", "has others")
        row, start = 0, 0
        for first, last in chunk_spans(len(ids), chunk_tokens):
            row += num_rows(last - first, k)
            before, start = (
                chain(before, ids[first:last], data[start : ends[row - 1]]),
                ends[row - 1],
            )
        if before != self.segment.chain or len(data) != self.segment.text_bytes:
            raise self.damaged("rows of its own text", "has those of another")

    def content(self) -> Content:
        """All of it."""
        return Content(
            rows=self._tensors["rows"],
            token_ids=self.token_ids(),
            row_bytes=self._tensors["row_bytes"],
            settings_key=self._kind[2],
            scales=self._tensors.get("scales"),
            text=self.text(),
        )

    def token_ids(self) -> Tensor:
        """Token ids (n,)."""
        return self._tensors["token_ids"].long()

    def row_bytes(self) -> Tensor:
        """Offsets (R,) after the last byte of each row."""
        return self._tensors["row_bytes"]

    def text(self) -> bytes:
        """The text, UTF-8; raises as `open_text` and what it returns."""
        return open_text(self._place, self._folder, self.segment, self.context)()

    def damaged(self, rule: str, found: str) -> CheckpointError:
        """The error for a file that is not what it should be."""
        return CheckpointError(
            f"Context {self.context!r} has {rule}, but its file {self.segment.rows_file!r} {found};"
            " repair the store, for example with `extensible store repair`."
        )

    def _open(self) -> dict[str, Tensor]:
        name = f"{self._folder}/{self.segment.rows_file}"
        size = self._place.size(name)
        if size != self.segment.rows_file_bytes:
            raise self.damaged(f"a file of {self.segment.rows_file_bytes} bytes", f"has {size}")
        try:
            found, tensors = self._read(name)
        except SafetensorError as error:
            raise self.damaged("rows as safetensors", f"cannot be read so ({error})") from error
        if found != _metadata(self.segment.chain, self._kind[2]):
            raise self.damaged("rows of its own text and settings", "has those of another")
        self._check(tensors)
        return tensors

    def _read(self, name: str) -> tuple[dict[str, str], dict[str, Tensor]]:
        """A file's metadata and tensors: mapped if it is local."""
        if self._place.local is None:
            data = self._place.read(name)
            tensors = load(data)  # checks the header
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            return header.get("__metadata__", {}), tensors
        path = self._place.local / name
        with (
            self._place.reading(name),
            opening(path),
            safe_open(path, framework="pt") as file,
        ):
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return file.metadata() or {}, tensors

    def _check(self, tensors: dict[str, Tensor]) -> None:
        rows, tokens = self.segment.num_rows, self.segment.num_tokens
        row_type, width, _ = self._kind
        expected: dict[str, tuple[tuple[int, ...], torch.dtype, str]] = {
            "rows": ((rows, width), ROW_TYPES[row_type], f"rows of {width} numbers in {row_type}"),
            "token_ids": ((tokens,), torch.int32, "token ids"),
            "row_bytes": ((rows,), torch.int64, "offsets of rows"),
        }
        if row_type == "int8":
            expected["scales"] = ((rows,), torch.float32, "scales of rows")
        for name, (shape, dtype, what) in expected.items():
            found = tensors.get(name)
            if found is None or found.shape != shape or found.dtype != dtype:
                raise self.damaged(f"{shape[0]} {what}", "has not")
