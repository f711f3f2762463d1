"""What is damaged in a store, and what can be made again.

In: a store, and to repair it the embedder that made it. Out: faults, each with the file, what is
wrong with it and what is lost; rows made again from the text, text from the tokens. Every byte that
the store committed is under a hash: names of files are the hashes of their content, a manifest has
its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from ..embedder import ExtensibleEmbedder, Progress
from ..errors import CheckpointError, MismatchError
from ..reader import Reader
from .files import hash_file, put_by_hash
from .growth import Piece, chunk_chains, made_rows, make_segments, tokenized
from .manifest import MANIFEST, Manifest, check_made_by, decode, settings_of
from .names import CONTEXTS, folder_of
from .segment import Segment, write_segment
from .store import ContextStore
from .stored import StoredContext


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A file that is not what was committed."""

    context: str
    """The context's name; of a manifest that cannot be read, its folder."""
    file: str
    what: str
    """What is wrong with it, as the end of a sentence."""
    lost: str
    """What it held."""
    mendable: bool
    """Whether the rest holds what `repair` makes it of.

    It may still fail: a text whose last character has tokens in the next segment needs these too.
    """


def verify(store: ContextStore, progress: Progress | None = None) -> list[Fault]:
    """Every fault of a local store: flipped bits, files that are truncated or missing.

    Args:
        store: to read whole.
        progress: called with (contexts done, contexts in all).

    Raises:
        InputError: the store is remote.
    """
    root = store.place.folder / CONTEXTS
    folders = sorted(root.iterdir()) if root.is_dir() else []
    faults: list[Fault] = []
    for number, folder in enumerate(folders, start=1):
        faults += _faults_in(store, folder)
        if progress is not None:
            progress(number, len(folders))
    return faults


def _faults_in(store: ContextStore, folder: Path) -> list[Fault]:
    where = f"{CONTEXTS}/{folder.name}/{MANIFEST}"
    try:
        manifest = decode((folder / MANIFEST).read_bytes(), where)
    except (OSError, CheckpointError, MismatchError) as error:
        what = "is missing" if isinstance(error, FileNotFoundError) else f"is not usable ({error})"
        if not isinstance(error, FileNotFoundError):
            return [_manifest_fault(folder.name, what)]
        return [_manifest_fault(folder.name, f"{what}, or its context was never committed")]
    here = manifest.in_folder(f"{CONTEXTS}/{folder.name}")
    if here is None:
        return [_manifest_fault(folder.name, f"is that of another context, {manifest.name!r}")]
    return faults_of(store, here)


def _manifest_fault(folder: str, what: str) -> Fault:
    return Fault(context=folder, file=MANIFEST, what=what, lost="the whole context", mendable=False)


def faults_of(store: ContextStore, manifest: Manifest) -> list[Fault]:
    """Faults of one context's files."""
    folder, first, faults = store.place.folder / folder_of(manifest.name), 0, list[Fault]()
    for segment in manifest.segments:
        last = first + segment.num_tokens
        found = {
            "rows": _fault_in(folder / segment.rows_file),
            "text": _fault_in(folder / segment.text_file),
        }
        mendable = None in found.values()
        for part, what in found.items():
            if what is not None:
                file = segment.rows_file if part == "rows" else segment.text_file
                lost = f"the {part} of tokens {first:,} to {last:,}"
                faults.append(
                    Fault(context=manifest.name, file=file, what=what, lost=lost, mendable=mendable)
                )
        first = last
    return faults


def _fault_in(path: Path) -> str | None:
    try:
        same = hash_file(path) == path.stem
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error})"
    return None if same else "has another content than was committed"


def repair(
    store: ContextStore, embedder: ExtensibleEmbedder, progress: Progress | None = None
) -> list[Fault]:
    """Makes again what can be: rows from the text, text from the tokens of the rows.

    Args:
        store: with faults.
        embedder: the one that made the contexts.
        progress: called with (contexts done, contexts in all).

    Returns:
        The faults that are left.

    Raises:
        MismatchError: a context was made by another embedder.
        StorageError: the disk refuses.
    """
    faults = verify(store)
    names = list(dict.fromkeys(each.context for each in faults if each.mendable))
    for number, name in enumerate(names, start=1):
        check_made_by(store.manifest(name), embedder)
        with store.changing(name) as folder:
            _repair_texts(store, folder, name, embedder)
            _repair_rows(store, folder, name, embedder)
        if progress is not None:
            progress(number, len(names))
    return verify(store)


def _repair_texts(
    store: ContextStore, folder: Path, name: str, embedder: ExtensibleEmbedder
) -> None:
    """Texts from tokens, where these give the same bytes as were committed."""
    manifest = store.manifest(name)
    bad = {each.file for each in faults_of(store, manifest)}
    decoded = _decoded(StoredContext(store.place, manifest), bad, embedder.reader)
    for segment, data in zip(manifest.segments, decoded, strict=True):
        if segment.text_file in bad and data is not None:
            _put_if_same(folder, segment.text_file, data)


def _decoded(stored: StoredContext, bad: set[str], reader: Reader) -> list[bytes | None]:
    """Text of each segment, from its tokens; None where the file that has them is damaged.

    All together if they can be: the tokens of a character may belong to two segments.
    """
    segments = stored.manifest.segments
    if any(each.rows_file in bad for each in segments):
        return [
            None
            if each.rows_file in bad
            else reader.decode(stored.opened(each).token_ids()).encode()
            for each in segments
        ]
    data = reader.decode(stored.token_ids()).encode()
    ends = list(accumulate(each.text_bytes for each in segments))
    return [data[end - each.text_bytes : end] for each, end in zip(segments, ends, strict=True)]


def _put_if_same(folder: Path, name: str, data: bytes) -> None:
    made, _ = put_by_hash(folder, Path(name).suffix, lambda path: path.write_bytes(data))
    if made != name:
        (folder / made).unlink()


def _repair_rows(
    store: ContextStore, folder: Path, name: str, embedder: ExtensibleEmbedder
) -> None:
    """Rows of damaged segments from the text; if its tokens came otherwise, all rows anew."""
    manifest = store.manifest(name)
    bad = {each.file for each in faults_of(store, manifest)}
    texts = {each.text_file for each in manifest.segments}
    if not bad or bad & texts:
        return
    text = b"".join((folder / each.text_file).read_bytes() for each in manifest.segments)
    piece = tokenized(embedder.reader, text.decode())
    if not _is_of(manifest, piece):
        store.commit(manifest, list(_anew(folder, embedder, manifest, piece)))
        return
    segments, first = list[Segment](), 0
    for each in manifest.segments:
        part = piece.part(first, first + each.num_tokens)
        if each.rows_file in bad:
            each = write_segment(folder, made_rows(embedder, manifest.settings, part), each.chain)
        segments.append(each)
        first += part.token_ids.numel()
    store.commit(manifest, segments)


def _is_of(manifest: Manifest, piece: Piece) -> bool:
    """Whether a context's text has the tokens that its rows were made of."""
    chains = chunk_chains(piece, manifest.settings.chunk_tokens, "")
    return chains[-1] == manifest.end_chain


def _anew(
    folder: Path,
    embedder: ExtensibleEmbedder,
    manifest: Manifest,
    piece: Piece,
    progress: Progress | None = None,
) -> Sequence[Segment]:
    return list(make_segments(folder, embedder, manifest.settings, piece, progress=progress))


def reembed(
    store: ContextStore,
    name: str,
    embedder: ExtensibleEmbedder,
    *,
    k: int | None = None,
    row_type: str | None = None,
    progress: Progress | None = None,
) -> StoredContext:
    """Makes the rows of a context anew from its text, with another embedder or other settings.

    Args:
        store: with the context.
        name: of the context.
        embedder: makes the rows.
        k: tokens per row, by default as before.
        row_type: type of rows, by default as before.
        progress: called with (tokens done, tokens in all).

    Raises:
        InputError: there is no such context, or a setting is not usable.
        CheckpointError: its text is damaged.
        StorageError: the disk refuses.
    """
    with store.changing(name) as folder:
        stored = StoredContext(store.place, store.manifest(name))
        kept = stored.settings
        settings = settings_of(embedder, k or kept.k, row_type or kept.row_type)
        manifest = dataclasses.replace(stored.manifest, settings=settings)
        text = stored.text()
        if not text:
            return store.commit(manifest, ())
        piece = tokenized(embedder.reader, text)
        return store.commit(manifest, _anew(folder, embedder, manifest, piece, progress))
