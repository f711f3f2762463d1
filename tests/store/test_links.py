"""What a store did not make, it neither changes nor removes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from extensible_embedding import ExtensibleEmbedder
from extensible_embedding.errors import BusyError, InputError, StorageError
from extensible_embedding.store.locks import locked_store
from extensible_embedding.store.manifest import MANIFEST
from extensible_embedding.store.store import ContextStore

from .conftest import OTHER, TEXT, files_in, folder_of, refused, text_of


def test_the_store_itself_may_be_a_link(
    full: ContextStore, embedder: ExtensibleEmbedder, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(full.place.folder)
    linked = ContextStore(tmp_path / "link")
    linked.append("novel", "x", embedder)
    linked.rename("other", "another")
    assert full["novel"].text() == TEXT + "x"
    assert full["another"].text() == OTHER
    assert (tmp_path / "link").is_symlink()


def test_a_context_behind_a_link_is_read_and_never_changed(
    full: ContextStore, embedder: ExtensibleEmbedder, tmp_path: Path
) -> None:
    folder = folder_of(full, "novel")
    folder.rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / f"{'0' * 64}.txt").write_text("precious")
    folder.symlink_to(tmp_path / "elsewhere")
    before = files_in(tmp_path / "elsewhere")
    assert full["novel"].text() == TEXT
    for refuse in (
        lambda: full.append("novel", "x", embedder),
        lambda: full.delete("novel"),
        lambda: full.rename("novel", "new"),
    ):
        with refused(InputError, "is a link; put the folder itself there"):
            refuse()
    full.compact()
    assert files_in(tmp_path / "elsewhere") == before


def test_links_to_precious_folders_are_not_cleaned(
    full: ContextStore, embedder: ExtensibleEmbedder, tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / f"{'0' * 64}.txt").write_text("mine")
    for name in ("0" * 40, "notes"):
        (full.place.folder / "contexts" / name).symlink_to(precious)
    full.compact()
    full.append("novel", "x", embedder)
    assert files_in(precious) == {f"{'0' * 64}.txt": b"mine"}
    assert {each.name for each in full} == {"novel", "other"}


def test_strange_files_stay(full: ContextStore, embedder: ExtensibleEmbedder) -> None:
    root = full.place.folder
    strange = [
        root / "README.txt",
        root / "contexts" / "notes.txt",
        root / "contexts" / "backup" / f"{'0' * 64}.txt",
        root / "contexts" / ("0" * 40) / "mine.txt",
        folder_of(full, "novel") / "mine.txt",
        folder_of(full, "novel") / "folder" / "mine.txt",
    ]
    for path in strange:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    full.compact()
    full.append("novel", "x", embedder)
    assert [path.read_text() for path in strange] == ["mine"] * len(strange)
    assert {each.name for each in full} == {"novel", "other"}
    folder = folder_of(full, "novel")
    full.delete("novel")
    assert [path.read_text() for path in strange] == ["mine"] * len(strange)
    assert sorted(path.name for path in folder.iterdir()) == ["folder", "mine.txt"]
    with refused(InputError, "is in there; move that out of the store, or give another name"):
        full.rename("other", "novel")
    full.add("novel", TEXT, embedder)  # they are not in its way
    assert full["novel"].text() == TEXT
    assert [path.read_text() for path in strange] == ["mine"] * len(strange)


def test_a_file_named_lock_keeps_what_it_holds(
    tmp_path: Path, embedder: ExtensibleEmbedder
) -> None:
    (tmp_path / "lock").write_text("my door codes")
    store = ContextStore(tmp_path, wait_s=0.1)
    store.add("novel", TEXT, embedder)
    with locked_store(tmp_path, 0.1), refused(BusyError, "for 0.1 seconds"):
        store.append("novel", "x", embedder)
    store.append("novel", "x", embedder)
    assert (tmp_path / "lock").read_text() == "my door codes"


def test_a_file_that_is_a_link_is_replaced_and_not_followed(
    full: ContextStore, embedder: ExtensibleEmbedder, tmp_path: Path
) -> None:
    folder, before = folder_of(full, "novel"), {}
    for path in list(folder.iterdir()):
        target = tmp_path / path.name
        before[target] = path.read_bytes()
        path.rename(target)
        path.symlink_to(target)
    full.append("novel", text_of(50), embedder)
    assert full["novel"].text() == TEXT + text_of(50)
    full.add("twin", OTHER, embedder)
    full.delete("novel")
    assert {path: path.read_bytes() for path in before} == before


def test_a_lock_that_is_a_link_is_not_followed(
    full: ContextStore, embedder: ExtensibleEmbedder, tmp_path: Path
) -> None:
    (tmp_path / "precious").write_text("mine")
    (full.place.folder / "lock").unlink()
    (full.place.folder / "lock").symlink_to(tmp_path / "precious")
    with refused(StorageError, "is a link.* move it away"):
        full.append("novel", "x", embedder)
    assert (tmp_path / "precious").read_text() == "mine"
    assert full["novel"].text() == TEXT


def _link_to_nothing(path: Path) -> None:
    path.symlink_to(path.parent / "nothing")


def _link_to_an_empty_file(path: Path) -> None:
    (path.parent / "precious").touch()
    path.symlink_to(path.parent / "precious")


@pytest.mark.parametrize("put", [_link_to_nothing, _link_to_an_empty_file, Path.mkdir, os.mkfifo])
def test_what_is_no_lock_but_is_named_so_stays_and_is_told(
    full: ContextStore, embedder: ExtensibleEmbedder, put: Callable[[Path], object]
) -> None:
    root = full.place.folder
    nobodys, novels = root / f"lock.{'0' * 40}", root / f"lock.{folder_of(full, 'novel').name}"
    put(nobodys)
    full.compact()
    full.append("novel", "x", embedder)
    put(novels)
    for change in (full.compact, lambda: full.append("novel", "y", embedder)):
        with refused(StorageError, f"{novels.name}.* move it away"):
            change()
    full.append("other", "x", embedder)
    assert all(map(os.path.lexists, (nobodys, novels)))
    assert not (root / "nothing").exists()
    assert full["novel"].text() == f"{TEXT}x"


def test_a_manifest_that_is_a_folder(full: ContextStore, embedder: ExtensibleEmbedder) -> None:
    path = folder_of(full, "novel") / MANIFEST
    path.unlink()
    path.mkdir()
    with refused(StorageError, "cannot be .*Is a directory"):
        full.open("novel")
    with refused(StorageError, "cannot be .*Is a directory"):
        full.compact()
    full.append("other", "x", embedder)


def test_a_context_that_is_a_file(full: ContextStore, embedder: ExtensibleEmbedder) -> None:
    folder = folder_of(full, "novel")
    shutil.rmtree(folder)
    folder.write_text("not a folder")
    with refused(InputError, "has no 'novel'"):
        full.open("novel")
    with refused(StorageError, "cannot be written"):
        full.add("novel", TEXT, embedder)
    full.compact()
    assert [each.name for each in full] == ["other"]
