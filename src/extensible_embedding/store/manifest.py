"""A manifest: all that a store says of one context, in one file that changes at once.

In: settings and segments. Out: `manifest.json` in the context's folder, with a checksum of itself,
and the same read back, or one sentence about what is wrong with it. A context is there if its
manifest is.
Knows nothing of rows.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ..downsampling import DOWN_SAMPLINGS, num_rows
from ..embedder import ExtensibleEmbedder
from ..errors import CheckpointError, InputError, MismatchError
from .names import folder_of
from .segment import ROW_TYPES, Segment

FORMAT = "extensible-embedding-context"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
LATEST_S = 2.5e11
"""The latest time that is kept, in seconds since 1970: of later ones no calendar has a date."""
MAX_METADATA_DEPTH = 100
"""Lists and objects within each other: more could not be read where little stack is left."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What rows depend on, beside the text."""

    k: int
    """Tokens per row, as kept."""
    chunk_tokens: int
    down_sampling: str
    max_k: int
    row_width: int
    row_type: str
    """One of `ROW_TYPES`."""
    embedder_fingerprint: str
    reader_fingerprint: str
    tokenizer_fingerprint: str

    @property
    def key(self) -> str:
        """The same for the same settings alone."""
        return _checksum(dataclasses.asdict(self))


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A context of a store."""

    name: str
    title: str
    metadata: dict[str, Any]
    settings: Settings
    segments: tuple[Segment, ...] = ()
    """In order; all but the last end with a whole chunk."""
    created: float
    """Seconds since 1970, UTC."""
    changed: float
    """Never before `created` or the change before, whatever the clock says."""
    new_name: str = ""
    """Of a context that is being renamed: its name as soon as its folder is that of this name."""
    format: str = field(default=FORMAT, init=False)
    format_version: int = field(default=FORMAT_VERSION, init=False)

    def in_folder(self, folder: str) -> Manifest | None:
        """As a context of this folder of the store; None if it belongs to another."""
        for name in (self.name, self.new_name):
            if name and folder_of(name) == folder:
                return dataclasses.replace(self, name=name, new_name="")
        return None

    @property
    def num_tokens(self) -> int:
        """Tokens of the context."""
        return sum(each.num_tokens for each in self.segments)

    @property
    def num_rows(self) -> int:
        """Rows as kept."""
        return sum(each.num_rows for each in self.segments)

    @property
    def text_bytes(self) -> int:
        """Bytes of its text."""
        return sum(each.text_bytes for each in self.segments)

    @property
    def end_chain(self) -> str:
        """Of all chunks; empty for a context without any."""
        return self.segments[-1].chain if self.segments else ""

    @property
    def files(self) -> set[str]:
        """Names of its segments' files."""
        return {name for each in self.segments for name in (each.rows_file, each.text_file)}


def encode(manifest: Manifest) -> bytes:
    """The file: JSON in ASCII, its checksum last."""
    values = {each.name: getattr(manifest, each.name) for each in dataclasses.fields(manifest)}
    values["settings"] = dataclasses.asdict(manifest.settings)
    values["segments"] = [dataclasses.asdict(each) for each in manifest.segments]
    return _written({**values, "checksum": _checksum(values)})


def _written(values: dict[str, Any]) -> bytes:
    """Values have one way to be written: then no byte can change that the checksum does not see."""
    return (json.dumps(values, indent=1) + "\n").encode("ascii")


def decode(data: bytes, where: str) -> Manifest:
    """What `encode` wrote.

    Args:
        data: of the file.
        where: its name, for messages.

    Raises:
        MismatchError: it is of another format version.
        CheckpointError: it is damaged.
    """
    fault = partial(_fault, where)
    try:
        values = json.loads(data.decode("ascii"))
    except (ValueError, RecursionError) as error:
        raise fault(f"it is no JSON ({error})") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise fault("it describes no context")
    _check_version(values.get("format_version"), where)
    try:
        same = data == _written(values)
        checksum = values.pop("checksum", None)
        if not same or checksum != _checksum(values):
            raise fault("its checksum does not fit it")
        return _manifest(values)
    except (TypeError, ValueError, KeyError, RecursionError) as error:
        raise fault(f"it is not of this form ({error})") from error


def _check_version(version: object, where: str) -> None:
    if version == FORMAT_VERSION:
        return
    newer = isinstance(version, int) and version > FORMAT_VERSION
    advice = "install a newer extensible-embedding" if newer else "add the text again"
    raise MismatchError(
        f"Stored contexts of format version {FORMAT_VERSION} can be read, but {where} has version "
        f"{version!r}; {advice}."
    )


def _manifest(values: dict[str, Any]) -> Manifest:
    known = {each.name: values[each.name] for each in dataclasses.fields(Manifest) if each.init}
    known["settings"] = Settings(**values["settings"])
    known["segments"] = tuple(Segment(**each) for each in values["segments"])
    made = Manifest(**known)
    _check_types(made)
    _check_times(made)
    _check_settings(made.settings)
    for each in made.segments:
        _check_types(each)
        _check_file(each.rows_file, ".safetensors")
        _check_file(each.text_file, ".txt")
    _check_counts(made.settings, made.segments)
    return made


def _check_types(part: Manifest | Settings | Segment) -> None:
    kinds = {"str": (str,), "int": (int,), "float": (float, int), "dict[str, Any]": (dict,)}
    for each in dataclasses.fields(part):
        value = getattr(part, each.name)
        if type(value) not in kinds.get(str(each.type), (type(value),)):
            raise ValueError(f"{each.name} is {value!r}")


def _check_times(made: Manifest) -> None:
    for name in ("created", "changed"):
        if not 0 <= getattr(made, name) <= LATEST_S:
            raise ValueError(f"{name} is {getattr(made, name)!r} seconds")


def _check_settings(settings: Settings) -> None:
    _check_types(settings)
    if settings.row_type not in ROW_TYPES or settings.down_sampling not in DOWN_SAMPLINGS:
        raise ValueError(f"rows are of {settings.row_type!r} by {settings.down_sampling!r}")
    for name in ("k", "chunk_tokens", "max_k", "row_width"):
        if getattr(settings, name) < 1:
            raise ValueError(f"{name} is {getattr(settings, name)}")


def _check_counts(settings: Settings, segments: Sequence[Segment]) -> None:
    """Chunks have as many rows as they have k tokens, and only the last segment's may be short."""
    for number, each in enumerate(segments, start=1):
        whole, rest = divmod(each.num_tokens, settings.chunk_tokens)
        rows = whole * num_rows(settings.chunk_tokens, settings.k) + num_rows(rest, settings.k)
        if each.num_tokens < 1 or each.num_rows != rows or (rest and number < len(segments)):
            raise ValueError(f"segment {number} has {each.num_rows} rows of {each.num_tokens}")


def _check_file(name: str, ending: str) -> None:
    """A segment's file is named by a hash: no name leads out of the store."""
    digits = name.removesuffix(ending)
    if not name.endswith(ending) or len(digits) != 64 or set(digits) - set("0123456789abcdef"):
        raise ValueError(f"a segment's file is named {name!r}")


def _checksum(values: dict[str, Any]) -> str:
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def _fault(where: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"{where} describes a stored context, but {what}; restore the file, or delete the context "
        "and add its text again."
    )


def settings_of(embedder: ExtensibleEmbedder, k: int, row_type: str) -> Settings:
    """What rows of an embedder depend on, beside the text.

    Raises:
        InputError: k or the type of rows is not usable.
    """
    if row_type not in ROW_TYPES:
        raise InputError(
            f"Rows are kept as one of {', '.join(ROW_TYPES)}, but {row_type!r} was asked; give one."
        )
    if isinstance(k, bool) or not isinstance(k, int) or not 2 <= k <= embedder.config.chunk_tokens:
        raise InputError(
            f"Rows are kept at a k from 2 to a chunk of {embedder.config.chunk_tokens} tokens, but "
            f"k is {k!r}; give for example k=4."
        )
    reader = embedder.reader
    return Settings(
        k=k,
        chunk_tokens=embedder.config.chunk_tokens,
        down_sampling=embedder.config.down_sampling,
        max_k=embedder.config.max_k,
        row_width=reader.hidden_size,
        row_type=row_type,
        embedder_fingerprint=embedder.fingerprint,
        reader_fingerprint=reader.fingerprint,
        tokenizer_fingerprint=reader.tokenizer_fingerprint,
    )


def check_made_by(manifest: Manifest, embedder: ExtensibleEmbedder, place: str) -> None:
    """Raises MismatchError unless the embedder would make the same rows of a context of `place`."""
    kept = manifest.settings
    now = settings_of(embedder, kept.k, kept.row_type)
    same = {
        "reader": embedder.reader.is_same(kept.reader_fingerprint),
        "tokenizer": now.tokenizer_fingerprint == kept.tokenizer_fingerprint,
        "embedder": now.embedder_fingerprint == kept.embedder_fingerprint,
    }
    reembed = shlex.join(["extensible", "store", "reembed", place, manifest.name])
    for what in (what for what, holds in same.items() if not holds):
        raise MismatchError(
            f"Context {manifest.name!r} was made with another {what} than the one given; give that "
            f"one, or make its rows anew, for example with `{reembed}`."
        )


def checked_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of what JSON can hold.

    Raises:
        InputError: it cannot.
    """
    try:
        kept: dict[str, Any] = json.loads(json.dumps(dict(metadata), allow_nan=False))
        depth = _depth(kept)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"Metadata are what JSON can hold, but these are not ({error}); give texts, numbers, "
            "lists and objects."
        ) from error
    if depth > MAX_METADATA_DEPTH:
        raise InputError(
            f"Metadata hold at most {MAX_METADATA_DEPTH} lists and objects within each other, but "
            f"these hold {depth}; give flatter ones."
        )
    return kept


def _depth(value: Any) -> int:
    """Lists and objects within each other."""
    if not isinstance(value, (dict, list)):
        return 0
    inner = value.values() if isinstance(value, dict) else value
    return 1 + max(map(_depth, inner), default=0)


def check_text(what: str, value: object) -> None:
    """Raises InputError unless a value is a text; `what` begins the sentence."""
    if not isinstance(value, str):
        raise InputError(
            f"{what} is a text, but a value of type {type(value).__name__} was given; give a str."
        )
