"""A context in one file, and stores that become one.

In: a store. Out: a zip file with a context's manifest and files, as they are, and a store that took
one in, or all contexts of another. What comes in is checked before it is committed.
"""

from __future__ import annotations

import dataclasses
import zipfile
from pathlib import Path

from ..errors import CheckpointError, InputError
from .checking import faults_of
from .files import disk_faults, fill_whole, put_by_hash, share
from .manifest import MANIFEST, Manifest, decode
from .names import check_name, folder_of
from .store import ContextStore
from .stored import StoredContext


def export_context(store: ContextStore, name: str, file: str | Path) -> None:
    """Writes a context to one file, which replaces an older one.

    Raises:
        InputError: there is no such context, or the store is remote.
        CheckpointError: it is damaged.
        StorageError: the disk refuses.
    """
    file = Path(file)
    manifest = store.manifest(name)
    if faults := faults_of(store, manifest):
        raise CheckpointError(
            f"Only a whole context is exported, but of {name!r} {faults[0].file!r} "
            f"{faults[0].what}; repair the store first."
        )
    folder = store.place.folder / folder_of(name)
    with (
        disk_faults(str(file)),
        fill_whole(file) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
    ):
        for member in (MANIFEST, *sorted(manifest.files)):
            archive.write(folder / member, member)


def import_context(store: ContextStore, file: str | Path, name: str | None = None) -> StoredContext:
    """Takes in what `export_context` wrote.

    Args:
        store: to take it in.
        file: that was written.
        name: of the context; by default the one that it had.

    Raises:
        InputError: the file is none, or the store has a context of that name.
        CheckpointError: the file is damaged.
        StorageError: the disk refuses.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            manifest = decode(archive.read(MANIFEST), f"{MANIFEST} in {str(file)!r}")
            manifest = dataclasses.replace(manifest, name=check_name(name or manifest.name))
            with store.changing(manifest.name, new=True) as folder:
                for member in sorted(manifest.files):
                    _extract(archive, member, folder, str(file))
                return store.commit(manifest, manifest.segments)
    except FileNotFoundError:
        raise InputError(f"An exported context is a file, but {str(file)!r} is none.") from None
    except (zipfile.BadZipFile, KeyError, IsADirectoryError, NotImplementedError) as error:
        raise CheckpointError(
            f"An exported context is a zip file with a manifest and its files, but {str(file)!r} "
            f"is not ({error}); export it again."
        ) from error


def _extract(archive: zipfile.ZipFile, member: str, folder: Path, source: str) -> None:
    """One file into a context's folder, if its content is what its name says."""
    data = archive.read(member)
    found, _ = put_by_hash(folder, Path(member).suffix, lambda path: path.write_bytes(data))
    if found != member:
        raise CheckpointError(
            f"Files of a context are named by their content, but {member!r} in {source!r} has "
            "another; export it again."
        )


def merge_stores(store: ContextStore, other: ContextStore) -> list[str]:
    """Takes in all contexts of another store; returns the names of those that were new.

    A context that both have with the same content and settings stays as it is.

    Raises:
        InputError: a name stands for different contexts; nothing is taken in then.
        CheckpointError: a context of the other store is damaged.
        StorageError: the disk refuses.
    """
    new = [manifest for manifest in other.manifests() if not _has(store, manifest)]
    for manifest in new:
        if faults := faults_of(other, manifest):
            raise CheckpointError(
                f"Only whole contexts are merged, but of {manifest.name!r} {faults[0].file!r} "
                f"{faults[0].what}; repair that store first."
            )
    for manifest in new:
        with store.changing(manifest.name, new=True) as folder:
            for member in manifest.files:
                share(other.place.folder / folder_of(manifest.name) / member, folder)
            store.commit(manifest, manifest.segments)
    return [manifest.name for manifest in new]


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
