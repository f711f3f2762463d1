"""What is damaged in a store.

In: a store. Out: faults, each with the file, what is wrong with it and what is lost. Every byte
that the store committed is under a hash: names of files are the hashes of their content, a manifest
has its own. What the files hold is compared with what the manifest says, too, so that a context
without faults can be read. Writers need not stop: a context that they change is looked at again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ..embedder import Progress
from ..errors import CheckpointError, MismatchError
from .files import hash_file, is_left_over
from .manifest import MANIFEST, Manifest, decode
from .names import CONTEXTS, is_folder
from .segment import Segment
from .store import ContextStore
from .stored import StoredContext

_TRIES = 20
"""Times that a context is looked at again: each time, only segments that are new are read."""
_State = TypeVar("_State")
Sound = set[tuple[str, Segment]]
"""Segments without fault, each with the chain before it."""


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

    A context whose manifest is gone is none, be its other files there: see `left_over`.

    Args:
        store: to read whole.
        progress: called with (contexts done, contexts in all).

    Raises:
        InputError: the store is remote.
        CheckpointError: a context changes faster than it can be read.
    """
    folders = _folders(store)
    faults: list[Fault] = []
    for number, folder in enumerate(folders, start=1):
        faults += _faults_in(store, folder)
        if progress is not None:
            progress(number, len(folders))
    return faults


def left_over(store: ContextStore) -> list[str]:
    """Folders that hold only what a change has left that was broken off, or is going on.

    Raises:
        InputError: the store is remote.
    """
    found = []
    for folder in _folders(store):
        names = [path.name for path in folder.iterdir()]
        if MANIFEST not in names and any(map(is_left_over, names)):
            found.append(folder.name)
    return found


def _folders(store: ContextStore) -> list[Path]:
    """Those that contexts have, or may have; anything else is not the store's."""
    root = store.place.folder / CONTEXTS
    folders = sorted(root.iterdir()) if root.is_dir() else []
    return [folder for folder in folders if is_folder(folder.name) and folder.is_dir()]


def _faults_in(store: ContextStore, folder: Path) -> list[Fault]:
    sound = Sound()

    def look(manifest: bytes | str | None) -> list[Fault]:
        return [] if manifest is None else _seen(store, folder, manifest, sound)

    return settled(lambda: _manifest_in(folder), look, folder.name)


def settled(
    state: Callable[[], _State], look: Callable[[_State], list[Fault]], name: str
) -> list[Fault]:
    """What is seen of a context that nobody changes meanwhile: faults of an older state are none.

    Args:
        state: of the context.
        look: finds the faults of a state.
        name: for the message.

    Raises:
        CheckpointError: it changes each time.
    """
    for _ in range(_TRIES):
        before = state()
        faults = look(before)
        if not faults or state() == before:
            return faults
    raise CheckpointError(
        f"A context is checked while it stays as it is, but {name!r} changes faster than it can be "
        "read; try again when less is written."
    )


def _manifest_in(folder: Path) -> bytes | str | None:
    """A manifest's bytes, or why they cannot be read; None if there is no context."""
    try:
        return (folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        return str(error)


def _seen(store: ContextStore, folder: Path, manifest: bytes | str, sound: Sound) -> list[Fault]:
    if isinstance(manifest, str):
        return [_manifest_fault(folder.name, f"cannot be read ({manifest})")]
    try:
        found = decode(manifest, f"{CONTEXTS}/{folder.name}/{MANIFEST}")
    except (CheckpointError, MismatchError) as error:
        return [_manifest_fault(folder.name, f"is not usable ({error})")]
    here = found.in_folder(f"{CONTEXTS}/{folder.name}")
    if here is None:
        return [_manifest_fault(folder.name, f"is that of another context, {found.name!r}")]
    return faults_of(store, here, sound)


def _manifest_fault(folder: str, what: str) -> Fault:
    return Fault(context=folder, file=MANIFEST, what=what, lost="the whole context", mendable=False)


def faults_of(store: ContextStore, manifest: Manifest, sound: Sound | None = None) -> list[Fault]:
    """Faults of one context's files.

    Args:
        store: with the context.
        manifest: of the context.
        sound: what was found to be so before, and is not read again; gets what is found now.
    """
    stored, known = StoredContext(store.place, manifest), Sound() if sound is None else sound
    faults, before, first = list[Fault](), "", 0
    for segment in manifest.segments:
        if (before, segment) not in known:
            found = _faults_of_segment(stored, segment, before, first)
            faults += found
            known |= set() if found else {(before, segment)}
        before, first = segment.chain, first + segment.num_tokens
    return faults


def _faults_of_segment(
    stored: StoredContext, segment: Segment, before: str, first: int
) -> list[Fault]:
    """Faults of a segment's two files, `first` tokens from the beginning."""
    folder = stored.place.folder / stored.folder
    rows, text = _fault_in(folder / segment.rows_file), _fault_in(folder / segment.text_file)
    mendable = rows is None or text is None
    if rows is None and text is None:
        rows = _fault_within(stored, segment, before)
    of = f"of tokens {first:,} to {first + segment.num_tokens:,}"
    found = (("rows", segment.rows_file, rows), ("text", segment.text_file, text))
    return [
        Fault(context=stored.name, file=file, what=what, lost=f"the {part} {of}", mendable=mendable)
        for part, file, what in found
        if what is not None
    ]


def _fault_in(path: Path) -> str | None:
    try:
        same = hash_file(path) == path.stem
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error})"
    return None if same else "has another content than was committed"


def _fault_within(stored: StoredContext, segment: Segment, before: str) -> str | None:
    """Of files that are what their names say."""
    kept = stored.settings
    try:
        stored.opened(segment).check_whole(before, kept.chunk_tokens, kept.k)
    except FileNotFoundError:
        return "is missing"
    except CheckpointError as error:
        return f"is not what its manifest says ({error})"
    return None
