"""A disk that refuses costs the change, and nothing that was committed."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from extensible_embedding import ExtensibleEmbedder
from extensible_embedding.errors import InputError, StorageError
from extensible_embedding.store.store import ContextStore

from .conftest import TEXT, contents, folder_of, refused, text_of


@pytest.mark.parametrize("path", ["", "sto\0re", "gopher://x", "memory2://"])
def test_places_that_are_none(path: str) -> None:
    with refused(InputError, "is neither"):
        ContextStore(path)


@pytest.mark.parametrize("where", ["x" * 256, "file/store"])
def test_places_that_cannot_be_made(
    tmp_path: Path, embedder: ExtensibleEmbedder, where: str
) -> None:
    (tmp_path / "file").write_text("not a folder")
    store = ContextStore(tmp_path / where)
    with refused(StorageError, "cannot be written"):
        store.add("novel", "text", embedder)


CHANGES: dict[str, Callable[[ContextStore, ExtensibleEmbedder], object]] = {
    "add": lambda store, embedder: store.add("new", text_of(40)[3:], embedder, row_type="int8"),
    "add the same": lambda store, embedder: store.add("new", TEXT, embedder),
    "append": lambda store, embedder: store.append("novel", text_of(50), embedder),
    "rename": lambda store, embedder: store.rename("novel", "new"),
    "delete": lambda store, embedder: store.delete("novel"),
    "compact": lambda store, embedder: store.compact(),
}
WRITES = ["replace", "rename", "fsync", "mkdir", "link", "open"]
REMOVALS = ["unlink", "rmdir"]


class Disk:
    """Lets so many calls that write through, and then refuses one, or all if it is read-only."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, code: int, passed: int) -> None:
        self.code, self.left, self.refused = code, passed, 0
        self.read_only = code == errno.EROFS
        for name in WRITES + (REMOVALS if self.read_only else []):
            monkeypatch.setattr(os, name, self.broken(getattr(os, name)))
        monkeypatch.setattr(Path, "write_bytes", self.broken(Path.write_bytes))

    def broken(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            if real is OPEN and not args[1] & (os.O_WRONLY | os.O_RDWR):
                return real(*args, **more)
            self.left -= 1
            if self.left == -1 or (self.read_only and self.left < 0):
                self.refused += 1
                raise OSError(self.code, os.strerror(self.code), str(args[0]))
            return real(*args, **more)

        return call


OPEN = os.open


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("code", "step"), [(errno.ENOSPC, 1), (errno.EROFS, 4)])
def test_a_disk_that_refuses_any_call_leaves_the_store_whole(
    full: ContextStore,
    embedder: ExtensibleEmbedder,
    tmp_path: Path,
    change: str,
    code: int,
    step: int,
) -> None:
    (folder_of(full, "novel") / ".tmp-left").write_text("for compact to remove")
    before, root = contents(full), full.place.folder
    done = ContextStore(shutil.copytree(root, tmp_path / "done"))
    CHANGES[change](done, embedder)
    after, number, ended = contents(done), 0, False
    while not ended:
        copy = ContextStore(shutil.copytree(root, tmp_path / str(number)))
        with pytest.MonkeyPatch.context() as monkeypatch:
            disk = Disk(monkeypatch, code, number)
            failed = fails(lambda copy=copy: CHANGES[change](copy, embedder))  # type: ignore[misc]
        assert contents(copy) in ([before, after] if failed else [after])
        copy.append("other", "x", embedder)
        ended = not disk.refused
        assert not (failed and ended)
        number += step
    assert number > step


def fails(change: Callable[[], object]) -> bool:
    """Whether a change ends in the error for disks, or does not end in one."""
    try:
        change()
    except StorageError as error:
        return "cannot be written" in str(error)
    return False


@pytest.mark.parametrize("limit", [0, 50, 500, 1000])
def test_a_disk_that_is_full_within_a_file(
    full: ContextStore, embedder: ExtensibleEmbedder, limit: int
) -> None:
    resource = pytest.importorskip("resource")
    before = contents(full)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for change in ("add", "append"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with refused(StorageError, "cannot be written .*File too large.* free some space"):
                CHANGES[change](full, embedder)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert contents(full) == before
        assert not list(full.place.folder.rglob(".tmp-*"))


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(full: ContextStore, embedder: ExtensibleEmbedder) -> None:
    before = contents(full)
    folders = [full.place.folder, *(path for path in full.place.folder.rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(0o555)
    try:
        assert contents(full) == before
        full.compact()  # which has nothing to do
        for change in set(CHANGES) - {"compact"}:
            with refused(StorageError, "cannot be written .*Permission denied"):
                CHANGES[change](full, embedder)
    finally:
        for path in folders:
            path.chmod(0o755)
    assert contents(full) == before


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read anything")
def test_files_that_may_not_be_read(full: ContextStore) -> None:
    folder = folder_of(full, "novel")
    for path in folder.iterdir():
        path.chmod(0)
        with refused(StorageError, "who may read it"):
            full.open("novel")
        path.chmod(0o644)
    assert full["novel"].text() == TEXT


@pytest.mark.skipif(sys.platform == "win32", reason="it has other permissions")
def test_whoever_may_read_the_manifest_may_read_the_rows(full: ContextStore) -> None:
    files = [path for path in folder_of(full, "novel").iterdir() if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors", ".txt"}
    assert len({path.stat().st_mode for path in files}) == 1
