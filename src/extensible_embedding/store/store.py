"""The store: a folder of compressed contexts that can be kept, grown and read at any k.

In: texts and an embedder. Out: contexts by name. One process changes a context at a time, others
change others, and any number read all of them meanwhile. A change is committed by the rename of one
manifest: whoever is killed before has changed nothing, whoever is killed after has changed all.
What a broken change leaves behind is removed by the next one of that context, and by `compact`.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..embedder import ExtensibleEmbedder, Progress
from ..errors import CheckpointError, ExtensibleError, InputError, MismatchError
from ..folders import flush
from .contents import shared_segments
from .files import Place, disk_faults, make_folder, may_go, write_whole
from .growth import chunk_chains, make_segments, merged, reopened, tokenized, unfinished
from .locks import keys_of_locks, locked_contexts, locked_if_free, locked_store
from .manifest import (
    LATEST_S,
    MANIFEST,
    Manifest,
    check_made_by,
    check_text,
    checked_metadata,
    decode,
    encode,
    settings_of,
)
from .names import CONTEXTS, check_name, folder_of, is_folder, is_name
from .segment import Segment
from .stored import LostFileError, StoredContext

_TRIES = 5
"""Times that a reader looks again, if a context changes between its manifest and its files."""


class ContextStore:
    """Contexts in a folder, by name.

    Args:
        path: of the folder, which is made by the first change; or a URL of fsspec, to read.
        wait_s: seconds to wait while another process changes the same context.

    Raises:
        InputError: the path is a file, or a URL that cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str], *, wait_s: float = 60.0) -> None:
        self.place, self.wait_s = Place(path), wait_s
        if self.place.local is not None and os.path.isfile(self.place.local):
            raise InputError(f"A store is a folder, but {str(path)!r} is a file; give another.")

    def __len__(self) -> int:
        return len(self._folders())

    def __contains__(self, name: str) -> bool:
        return is_name(name) and self.place.exists(f"{folder_of(name)}/{MANIFEST}")

    def __getitem__(self, name: str) -> StoredContext:
        return self.open(name)

    def __iter__(self) -> Iterator[StoredContext]:
        """Contexts by name, in order; raises as `open`, but for files other than manifests."""
        found = [StoredContext(self.place, each) for each in self.manifests()]
        return iter(sorted(found, key=lambda each: each.name))

    def open(self, name: str) -> StoredContext:
        """A context, to read: its files are checked for size, shape and that they are its own.

        What another process then changes is not seen: on Unix the files stay, on Windows they
        cannot be removed.

        Raises:
            InputError: there is no such context.
            CheckpointError: a file is missing or damaged.
            MismatchError: it is of another format version.
        """
        for _ in range(_TRIES):
            stored = StoredContext(self.place, self.manifest(name))
            try:
                stored.open_files()
            except LostFileError:
                if self.manifest(name) == stored.manifest:
                    raise
            else:
                return stored
        raise CheckpointError(f"Context {name!r} changes faster than it can be read; try again.")

    def manifest(self, name: str) -> Manifest:
        """What the store says of a context; raises as `open`."""
        found = self._manifest_in(folder_of(check_name(name)))
        if found is None:
            raise self._unknown(name)
        if found.name != name:
            raise InputError(
                f"A store tells names apart by more than case and form, and {name!r} would be "
                f"{found.name!r}, which it has; give that, or another name."
            )
        return found

    def manifests(self) -> Iterator[Manifest]:
        """What the store says of each of its contexts; raises as `open`."""
        for found in self.survey():
            if isinstance(found, ExtensibleError):
                raise found
            yield found

    def survey(self) -> Iterator[Manifest | CheckpointError | MismatchError]:
        """As `manifests`, but an unreadable one is the error that says why, in its place."""
        for folder in self._folders():
            try:
                found = self._manifest_in(folder)
            except (CheckpointError, MismatchError) as error:
                yield error
            else:
                if found is not None:  # else deleted meanwhile
                    yield found

    def add(
        self,
        name: str,
        text: str,
        embedder: ExtensibleEmbedder,
        *,
        k: int = 4,
        row_type: str = "bfloat16",
        title: str = "",
        metadata: Mapping[str, Any] | None = None,
        replace: bool = False,
        progress: Progress | None = None,
    ) -> StoredContext:
        """Compresses a text and keeps it; the same text with the same settings is not read again.

        Args:
            name: to find it by.
            text: of the context; empty for one that is to grow.
            embedder: makes the rows.
            k: tokens per row, as kept: it can be read at every multiple.
            row_type: bfloat16, float16, float32, or int8 with a scale for each row.
            title: a name to show, by default `name`.
            metadata: anything that JSON can hold.
            replace: take the place of a context of that name, which stays until this one is whole.
            progress: called with (tokens done, tokens in all).

        Raises:
            InputError: an argument is not usable, or there is such a context.
            StorageError: the disk refuses.
            BusyError: another process keeps changing a context of that name.
        """
        check_text("A context's text", text)
        check_text("A context's title", title)
        now = _now()
        manifest = Manifest(
            name=check_name(name),
            title=title or name,
            metadata=checked_metadata(metadata or {}),
            settings=settings_of(embedder, k, row_type),
            created=now,
            changed=now,
        )
        piece = tokenized(embedder.reader, text) if text else None
        with self.changing(name, new=True, replace=replace) as folder:
            segments: Sequence[Segment] = ()
            if piece is not None:
                end = chunk_chains(piece, manifest.settings.chunk_tokens, "")[-1]
                shared = shared_segments(self.place.folder, folder, end, manifest.settings)
                segments = shared or list(
                    make_segments(folder, embedder, manifest.settings, piece, progress=progress)
                )
            return self.commit(manifest, segments)

    def append(
        self,
        name: str,
        text: str,
        embedder: ExtensibleEmbedder,
        *,
        progress: Progress | None = None,
    ) -> StoredContext:
        """Goes on with a context: new chunks are read, and the last one if it was unfinished.

        Raises:
            InputError: there is no such context, or the text is empty.
            MismatchError: it was made with another embedder, reader or tokenizer.
            StorageError, BusyError: as `add`.
        """
        check_text("What is appended", text)
        if not text:
            raise InputError("What is appended holds text, but it is empty; give some.")
        with self.changing(name) as folder:
            stored = self.open(name)
            check_made_by(stored.manifest, embedder, self.place.name)
            kept = list(stored.manifest.segments)
            if unfinished(kept, stored.settings.chunk_tokens):
                piece = reopened(embedder.reader, stored.segments[-1], text)
                kept.pop()
            else:
                piece = tokenized(embedder.reader, text)
            before = kept[-1].chain if kept else ""
            new = make_segments(folder, embedder, stored.settings, piece, before, progress)
            return self.commit(stored.manifest, merged(stored, [*kept, *new]))

    def delete(self, name: str) -> None:
        """Removes a context, be it damaged.

        Raises:
            InputError: there is no such context.
            StorageError, BusyError: as `add`.
        """
        with self._locked(name) as root:
            # A manifest that cannot be read is of this name all the same: it stands in its folder.
            with suppress(CheckpointError, MismatchError):
                self.manifest(name)
            self._remove(_own(root / folder_of(name)))

    def rename(self, name: str, new_name: str) -> StoredContext:
        """Gives a context another name.

        Raises:
            InputError: there is no such context, or already one of the new name.
            StorageError, BusyError: as `add`.
        """
        check_name(new_name)
        with self.changing(name, also=new_name) as folder:
            manifest = self.manifest(name)
            target = self.place.folder / folder_of(new_name)
            if target != folder:
                self._check_new(new_name)
                self._clean(_own(target))
                _check_free(target)
                moving = dataclasses.replace(manifest, new_name=new_name)
                write_whole(folder / MANIFEST, encode(moving))
                os.rename(folder, target)  # commits
                flush(target.parent)
            renamed = dataclasses.replace(manifest, name=new_name)
            return self.commit(renamed, manifest.segments)

    def compact(self) -> None:
        """Removes what changes that were broken off have left behind; those that go on stay.

        Raises:
            StorageError: the disk refuses.
            BusyError: another process does this for long.
        """
        with self._made() as root, locked_store(root, self.wait_s):
            folders = {path.name for path in (root / CONTEXTS).iterdir()}
            for key in sorted({*filter(is_folder, folders), *keys_of_locks(root)}):
                with locked_if_free(root, key) as free:
                    if free:
                        self._clean(root / CONTEXTS / key)

    @contextmanager
    def changing(
        self, name: str, *, new: bool = False, replace: bool = False, also: str = ""
    ) -> Iterator[Path]:
        """Yields a context's folder, for whoever changes it; others of the same wait meanwhile.

        Args:
            name: of the context.
            new: whether it is not there yet.
            replace: whether a new one may be there all the same.
            also: another name that is taken by this change.

        Raises:
            InputError: there is no such context, or, if it is to be a new one, there is.
            StorageError, BusyError: as `add`.
        """
        with self._locked(*filter(None, (name, also))) as root:
            if new and not (replace and name in self):
                self._check_new(name)
            else:
                self.manifest(name)
            folder = _own(root / folder_of(name))
            self._clean(folder)
            make_folder(folder)
            try:
                yield folder
            finally:
                self._clean(folder)

    def commit(self, manifest: Manifest, segments: Sequence[Segment]) -> StoredContext:
        """Puts a context in place whose segments are in its folder, and opens it."""
        self.put(manifest, segments)
        return self.open(manifest.name)

    def put(self, manifest: Manifest, segments: Sequence[Segment]) -> None:
        """As `commit`, but opens nothing: other segments may be lost; within `changing`."""
        folder = folder_of(manifest.name)
        before = self._manifest_in(folder)
        times = (_now(), manifest.changed, before.changed if before else 0.0)
        made = dataclasses.replace(
            manifest, segments=tuple(segments), changed=max(times), new_name=""
        )
        data = encode(made)
        decode(data, f"{folder}/{MANIFEST}")  # raises now, and not when it is in the other's place
        write_whole(self.place.folder / folder / MANIFEST, data)

    @contextmanager
    def _made(self) -> Iterator[Path]:
        root = self.place.folder
        with disk_faults(str(root)):
            make_folder(root / CONTEXTS)
            yield root

    @contextmanager
    def _locked(self, *names: str) -> Iterator[Path]:
        with self._made() as root, locked_contexts(root, list(map(check_name, names)), self.wait_s):
            yield root

    def _clean(self, folder: Path) -> None:
        """Removes a store's files that the context's manifest does not name, or that has none.

        Nothing goes while a manifest cannot be read: its files may be whole. Nothing goes that no
        change made, such as what is behind a link.
        """
        if not is_folder(folder.name) or folder.is_symlink() or not folder.is_dir():
            return
        try:
            found = self._manifest_in(f"{CONTEXTS}/{folder.name}")
        except (CheckpointError, MismatchError):
            return
        named = set() if found is None else found.files
        for path in folder.iterdir():
            if path.name not in named and may_go(path):
                path.unlink(missing_ok=True)
        if found is None and not any(folder.iterdir()):
            folder.rmdir()

    def _remove(self, folder: Path) -> None:
        """The manifest goes first and for good: half of a context is none."""
        (folder / MANIFEST).unlink()
        flush(folder)
        with suppress(OSError):  # a reader may hold a file, on Windows; the next change removes it
            self._clean(folder)

    def _folders(self) -> list[str]:
        """Of contexts that are there."""
        folders = (f"{CONTEXTS}/{name}" for name in self.place.names(CONTEXTS) if is_folder(name))
        return [folder for folder in folders if self.place.exists(f"{folder}/{MANIFEST}")]

    def _manifest_in(self, folder: str) -> Manifest | None:
        where = f"{folder}/{MANIFEST}"
        try:
            found = decode(self.place.read(where), where)
        except FileNotFoundError:
            return None
        if (here := found.in_folder(folder)) is None:
            raise CheckpointError(
                f"A context's folder is named by its name, but {where} is that of another context, "
                f"{found.name!r}; restore the file, or move the folder out of the store."
            )
        return here

    def _check_new(self, name: str) -> None:
        found = self._manifest_in(folder_of(check_name(name)))
        if found is not None:
            raise InputError(
                f"A name stands for one context, but the store has {found.name!r} already; append "
                f"to it, delete it, or give another name than {name!r}."
            )

    def _unknown(self, name: str) -> InputError:
        others = len(self)
        has = f"but {others} others" if others else "and none at all"
        return InputError(
            f"A store is asked for contexts that it has, but {self.place.name!r} has no {name!r} "
            f"{has}; list them, for example with `extensible store list`."
        )


def _own(folder: Path) -> Path:
    """The folder of a context, if it is one to write into and remove: what links show stays."""
    if folder.is_symlink():
        raise InputError(
            f"A context is changed in a folder of its own, but {str(folder)!r} is a link; put the "
            "folder itself there."
        )
    return folder


def _check_free(folder: Path) -> None:
    """Raises InputError if a context cannot move into a folder for what else is in it."""
    if folder.is_dir() and (strange := sorted(folder.iterdir())):
        raise InputError(
            f"A context moves into a folder of its own, but {str(strange[0])!r} is in there; move "
            "that out of the store, or give another name."
        )


def _now() -> float:
    """Seconds since 1970, of a clock however wrong."""
    return min(max(time.time(), 0.0), LATEST_S)
