"""A context in one file, and stores that become one.

In: a store. Out: a zip file with a context's manifest and files, as they are, and a store that took
one in, or all contexts of another. What comes in is checked before it is committed.
"""

from __future__ import annotations

import dataclasses
import lzma
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ..archive import MAX_RATIO, RATIO_FREE_BYTES
from ..errors import CheckpointError, ExtensibleError, InputError, StorageError
from .checking import faults_of
from .files import disk_faults, fill_whole, put_by_hash, share
from .manifest import MANIFEST, Manifest, decode, encode
from .names import check_name, folder_of
from .store import ContextStore
from .stored import StoredContext

MAX_MANIFEST_BYTES = 1 << 26
"""A context of a billion tokens stays far below; the rest is the user's metadata."""
_BLOCK = 1 << 20
_TRIES = 5
"""Times that a context is exported again, if it changes meanwhile."""


def export_context(store: ContextStore, name: str, file: str | Path) -> None:
    """Writes a context to one file, which replaces an older one.

    The same context always gives the same bytes.

    Raises:
        InputError: there is no such context, the store is remote, or the file's name is none.
        CheckpointError: it is damaged.
        StorageError: the disk refuses.
    """
    if "\0" in str(file):
        raise InputError(f"A file's name has no NUL, but {str(file)!r} has; give another name.")
    for _ in range(_TRIES):
        manifest = store.manifest(name)
        try:
            return _export(store, manifest, Path(file))
        except (CheckpointError, StorageError):
            if store.manifest(name) == manifest:
                raise
    raise CheckpointError(f"Context {name!r} changes faster than it can be exported; try again.")


def _export(store: ContextStore, manifest: Manifest, file: Path) -> None:
    if faults := faults_of(store, manifest):
        raise CheckpointError(
            f"Only a whole context is exported, but of {manifest.name!r} {faults[0].file!r} "
            f"{faults[0].what}; repair the store first."
        )
    folder = store.place.folder / folder_of(manifest.name)
    with (
        disk_faults(str(file)),
        fill_whole(file) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
    ):
        archive.writestr(_member(MANIFEST), encode(manifest))
        for member in sorted(manifest.files):
            info = _member(member, (folder / member).stat().st_size)
            with (folder / member).open("rb") as source, archive.open(info, "w") as target:
                shutil.copyfileobj(source, target, _BLOCK)


def _member(name: str, num_bytes: int = 0) -> zipfile.ZipInfo:
    """Of an archive: without the time and the rights of a file, which are not the context's."""
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.create_system, info.external_attr, info.file_size = 3, 0o644 << 16, num_bytes
    return info


def import_context(store: ContextStore, file: str | Path, name: str | None = None) -> StoredContext:
    """Takes in what `export_context` wrote.

    Args:
        store: to take it in.
        file: that was written.
        name: of the context; by default the one that it had.

    Raises:
        InputError: the file is none, may not be read or unpacks to too much, or the store has a
            context of that name.
        CheckpointError: the file is damaged, or what is in it could not be read.
        StorageError: the disk refuses.
    """
    source = str(file)
    with _opened(source) as archive:
        manifest = decode(_manifest_in(archive, source), f"{MANIFEST} in {source!r}")
        members = _members(archive, manifest, source)
        manifest = dataclasses.replace(manifest, name=name or manifest.name, new_name="")
        with store.changing(check_name(manifest.name), new=True) as folder:
            for member in members:
                _extract(archive, member, folder, source)
            if faults := faults_of(store, manifest):
                raise _no_export(source, f"{faults[0].file} {faults[0].what}")
            return store.commit(manifest, manifest.segments)


@contextmanager
def _opened(source: str) -> Iterator[zipfile.ZipFile]:
    with ExitStack() as stack:
        with _unzipping(source):
            try:
                archive = stack.enter_context(zipfile.ZipFile(source))
            except (FileNotFoundError, IsADirectoryError):
                raise InputError(
                    f"An exported context is a file, but {source!r} is none; name a file that "
                    "`extensible store export` made."
                ) from None
            except PermissionError as error:
                raise InputError(
                    f"An exported context is a file that you may read, but {source!r} cannot be "
                    f"({error}); change its permissions."
                ) from error
        yield archive


@contextmanager
def _unzipping(source: str) -> Iterator[None]:
    """Turns whatever `zipfile` raises of a file that is damaged into one sentence."""
    try:
        yield
    except ExtensibleError:
        raise
    except (
        zipfile.BadZipFile,  # and its kin, by what is damaged
        zlib.error,
        lzma.LZMAError,
        EOFError,
        LookupError,  # a member is missing
        OSError,
        RuntimeError,  # encrypted, or compressed in an unknown way
        ValueError,
        struct.error,
    ) as error:
        raise _no_export(source, str(error)) from error


def _no_export(source: str, why: str) -> CheckpointError:
    return CheckpointError(
        f"An exported context is a zip file with a manifest and its files, but {source!r} is not "
        f"({why}); export it again."
    )


def _manifest_in(archive: zipfile.ZipFile, source: str) -> bytes:
    with _unzipping(source):
        info = archive.getinfo(MANIFEST)
        if info.file_size > MAX_MANIFEST_BYTES:
            raise _no_export(source, f"its manifest takes {info.file_size:,} bytes")
        return archive.read(info)


def _members(archive: zipfile.ZipFile, manifest: Manifest, source: str) -> list[zipfile.ZipInfo]:
    """The files that a manifest names, if they are as large as it says, and that is no bomb.

    `zipfile` never yields more of a member than its declared size.
    """
    sizes = {each.rows_file: each.rows_file_bytes for each in manifest.segments}
    sizes |= {each.text_file: each.text_bytes for each in manifest.segments}
    with _unzipping(source):
        members = [archive.getinfo(name) for name in sorted(sizes)]
        packed = os.path.getsize(source)
    for info in members:
        if info.file_size != sizes[info.filename]:
            raise _no_export(source, f"{info.filename} takes {info.file_size:,} bytes")
    unpacked = sum(info.file_size for info in members)
    if unpacked > RATIO_FREE_BYTES and unpacked > MAX_RATIO * packed:
        raise InputError(
            f"An exported context unpacks to at most {MAX_RATIO} times its own size, but "
            f"{source!r} would unpack to {unpacked >> 20} MiB (a zip bomb?); export it again."
        )
    return members


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path, source: str) -> None:
    """One file into a context's folder, if its content is what its name says."""

    def fill(path: Path) -> None:
        with path.open("wb") as target:
            for block in _blocks(archive, member, source):
                target.write(block)

    found, _ = put_by_hash(folder, Path(member.filename).suffix, fill)
    if found != member.filename:
        raise CheckpointError(
            f"Files of a context are named by their content, but {member.filename!r} in {source!r} "
            "has another; export it again."
        )


def _blocks(archive: zipfile.ZipFile, member: zipfile.ZipInfo, source: str) -> Iterator[bytes]:
    """A member, so much at once."""
    with ExitStack() as stack:
        with _unzipping(source):
            file = stack.enter_context(archive.open(member))
        while True:
            with _unzipping(source):
                block = file.read(_BLOCK)
            if not block:
                return
            yield block


def merge_stores(store: ContextStore, other: ContextStore) -> list[str]:
    """Takes in all contexts of another store; returns the names of those that were new.

    A context that both have with the same content and settings stays as it is. If it fails at one,
    those that it has taken in go again; if it is killed, they stay, and it can be done again.

    Raises:
        InputError: a name stands for different contexts; nothing is taken in then.
        CheckpointError: a context of the other store is damaged.
        StorageError: the disk refuses.
    """
    for _ in range(_TRIES):
        new = _new(store, other)
        try:
            return _merge(store, other, new)
        except (CheckpointError, StorageError):
            if _new(store, other) == new:
                raise
    raise CheckpointError(
        f"Stores are merged while one stays as it is, but {other.place.name!r} changes faster than "
        "it can be read; try again when less is written."
    )


def _new(store: ContextStore, other: ContextStore) -> list[Manifest]:
    return [manifest for manifest in other.manifests() if not _has(store, manifest)]


def _merge(store: ContextStore, other: ContextStore, new: Sequence[Manifest]) -> list[str]:
    for manifest in new:
        if faults := faults_of(other, manifest):
            raise CheckpointError(
                f"Only whole contexts are merged, but of {manifest.name!r} {faults[0].file!r} "
                f"{faults[0].what}; repair that store first."
            )
    made: list[Manifest] = []
    try:
        for manifest in new:
            with store.changing(manifest.name, new=True) as folder:
                for member in manifest.files:
                    share(other.place.folder / folder_of(manifest.name) / member, folder)
                made.append(store.commit(manifest, manifest.segments).manifest)
    except BaseException:
        _take_back(store, made)
        raise
    return [manifest.name for manifest in made]


def _take_back(store: ContextStore, made: Sequence[Manifest]) -> None:
    """Deletes what a merge has added, unless somebody has changed it since."""
    for manifest in made:
        with suppress(ExtensibleError):
            if store.manifest(manifest.name) == manifest:
                store.delete(manifest.name)


def _has(store: ContextStore, manifest: Manifest) -> bool:
    if manifest.name not in store:
        return False
    mine = store.manifest(manifest.name)
    if (mine.end_chain, mine.settings) == (manifest.end_chain, manifest.settings):
        return True
    raise InputError(
        f"Stores are merged where a name stands for one context, but both have {mine.name!r} with "
        "another content or other settings; rename one of the two."
    )
