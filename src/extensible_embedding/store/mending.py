"""What is damaged in a store is made again, or made anew.

In: a store, and an embedder. Out: rows made again from the text, text from the tokens, each segment
by itself where the rest is lost; or all rows of a context anew, with another embedder or other
settings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from ..embedder import ExtensibleEmbedder, Progress
from ..reader import Reader
from .checking import Fault, faults_of, verify
from .files import put_by_hash
from .growth import Piece, chunk_chains, made_rows, make_segments, tokenized
from .manifest import Manifest, check_made_by, settings_of
from .segment import write_segment
from .store import ContextStore
from .stored import StoredContext


def repair(
    store: ContextStore, embedder: ExtensibleEmbedder, progress: Progress | None = None
) -> list[Fault]:
    """Makes again what can be: rows from the text, text from the tokens of the rows.

    Args:
        store: with faults.
        embedder: the one that made the contexts.
        progress: called with (contexts done, contexts in all).

    Returns:
        The faults that are left; none of them is mendable, for that was tried.

    Raises:
        MismatchError: a context was made by another embedder.
        StorageError: the disk refuses.
    """
    faults = verify(store)
    names = list(dict.fromkeys(each.context for each in faults if each.mendable))
    for number, name in enumerate(names, start=1):
        if name in store:  # else deleted meanwhile
            check_made_by(store.manifest(name), embedder, store.place.name)
            with store.changing(name) as folder:
                _mend(store, folder, name, embedder)
        if progress is not None:
            progress(number, len(names))
    return [dataclasses.replace(each, mendable=False) for each in verify(store)]


def _mend(store: ContextStore, folder: Path, name: str, embedder: ExtensibleEmbedder) -> None:
    """Until nothing more can be made again: what was made may be what another file is made of."""
    bad = _bad(store, name)
    while bad:
        num_bad = len(bad)
        _mend_texts(store, folder, name, embedder.reader, bad)
        _mend_rows(store, folder, name, embedder, _bad(store, name))
        bad = _bad(store, name)
        if len(bad) >= num_bad:
            return


def _bad(store: ContextStore, name: str) -> set[str]:
    """Files of a context that have faults."""
    return {each.file for each in faults_of(store, store.manifest(name))}


def _mend_texts(
    store: ContextStore, folder: Path, name: str, reader: Reader, bad: set[str]
) -> None:
    """Texts from tokens, where these give the same bytes as were committed."""
    manifest = store.manifest(name)
    decoded = _decoded(StoredContext(store.place, manifest), bad, reader)
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


def _mend_rows(
    store: ContextStore, folder: Path, name: str, embedder: ExtensibleEmbedder, bad: set[str]
) -> None:
    """Rows of damaged segments from the text; if its tokens came otherwise, all rows anew."""
    manifest = store.manifest(name)
    texts = [
        None if each.text_file in bad else (folder / each.text_file).read_bytes()
        for each in manifest.segments
    ]
    lost = [each.rows_file in bad for each in manifest.segments]
    pieces = _pieces(embedder.reader, manifest, texts, lost)
    segments = list(manifest.segments)
    for number, (each, piece) in enumerate(zip(segments, pieces, strict=True)):
        if lost[number] and piece is not None:
            made = made_rows(embedder, manifest.settings, piece)
            segments[number] = write_segment(folder, made, each.chain)
            lost[number] = False
    if any(lost) and None not in texts:
        whole = tokenized(embedder.reader, b"".join(filter(None, texts)).decode())
        segments = list(make_segments(folder, embedder, manifest.settings, whole))
    if tuple(segments) != manifest.segments:
        store.put(manifest, segments)


def _pieces(
    reader: Reader, manifest: Manifest, texts: Sequence[bytes | None], lost: Sequence[bool]
) -> list[Piece | None]:
    """Of each segment whose rows are lost the tokens, None where the texts do not give them.

    Neighbours whose texts are whole are tokenised together, as most were; if that gives other
    tokens than the rows were made of, each by itself.
    """
    found: list[Piece | None] = [None] * len(texts)
    for first, last in _runs(texts):
        for start, end in ((first, last), *((each, each + 1) for each in range(first, last))):
            if any(lost[each] and found[each] is None for each in range(start, end)):
                data = b"".join(filter(None, texts[start:end]))
                made = _made_of(reader, manifest, start, end, data)
                found[start:end] = made or found[start:end]
    return found


def _runs(texts: Sequence[bytes | None]) -> list[tuple[int, int]]:
    """First and last (after) of the neighbours that are there."""
    gaps = [-1, *(number for number, each in enumerate(texts) if each is None), len(texts)]
    pairs = zip(gaps, gaps[1:], strict=False)
    return [(before + 1, after) for before, after in pairs if after > before + 1]


def _made_of(
    reader: Reader, manifest: Manifest, first: int, last: int, data: bytes
) -> list[Piece] | None:
    """The tokens of segments `first` to before `last`, if this text has those: their hash tells."""
    before = manifest.segments[first - 1].chain if first else ""
    try:
        piece = tokenized(reader, data.decode())
    except ValueError:  # the text begins or ends within a character, or has no token
        return None
    chains = chunk_chains(piece, manifest.settings.chunk_tokens, before)
    if chains[-1] != manifest.segments[last - 1].chain:
        return None
    ends = [0, *accumulate(each.num_tokens for each in manifest.segments[first:last])]
    return [piece.part(*pair) for pair in zip(ends, ends[1:], strict=False)]


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
        return store.commit(
            manifest, list(make_segments(folder, embedder, settings, piece, progress=progress))
        )
