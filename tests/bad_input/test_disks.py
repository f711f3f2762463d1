"""Disks that are full, read-only or hold something else."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from extensible_embedding import (
    Context,
    InputError,
    StorageError,
)
from extensible_embedding import folders as folders_module

from .conftest import WRITES, Save, break_write, full_disk, refusal, tree


@pytest.mark.parametrize("write", WRITES)
def test_a_full_disk(older: Path, save: Save, monkeypatch: pytest.MonkeyPatch, write: str) -> None:
    before = tree(older.parent)
    break_write(monkeypatch, write, full_disk)
    new = older.parent / "new"
    for folder in (older, new):
        message = refusal(StorageError, folder, lambda folder=folder: save(folder))
        assert "No space left on device" in message
        assert "free some space" in message
    assert tree(older.parent) == before
    monkeypatch.undo()
    save(older)
    assert tree(older.parent) != before


LIMITED = """
import resource, sys, torch
from extensible_embedding import Context, StorageError
context = Context(
    rows=torch.zeros(4000, 64), token_ids=torch.arange(4000), k=1, chunk_tokens=16,
    down_sampling="strided", embedder_fingerprint="e", reader_fingerprint="r",
)
limit = int(sys.argv[2])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    context.save(sys.argv[1])
except StorageError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def run_limited(folder: Path, limit: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LIMITED, str(folder), str(limit)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
def test_a_limit_on_the_size_of_files(saved_context: Path) -> None:
    before = tree(saved_context.parent)
    done = run_limited(saved_context, 100_000)
    assert done.returncode == StorageError.exit_code, done.stderr
    assert "cannot be written" in done.stdout
    assert tree(saved_context.parent) == before


@pytest.mark.slow
def test_a_disk_that_is_really_full(tmp_path: Path, context: Context) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        context.save(disk / "kept")
        before = tree(disk)
        done = run_limited(disk / "kept")
        assert done.returncode == StorageError.exit_code, done.stderr
        assert "cannot be written" in done.stdout
        assert tree(disk) == before
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(older: Path, save: Save) -> None:
    before = tree(older.parent)
    older.parent.chmod(0o555)
    try:
        for folder in (older, older.parent / "new"):
            refusal(StorageError, folder, lambda folder=folder: save(folder))
    finally:
        older.parent.chmod(0o755)
    assert tree(older.parent) == before


@pytest.mark.parametrize("error", [PermissionError(13, "no"), OSError(errno.EROFS, "read-only")])
def test_a_folder_that_may_not_be_written(
    older: Path, save: Save, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> str:
        raise error

    before = tree(older.parent)
    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    refusal(StorageError, error, lambda: save(older))
    assert tree(older.parent) == before


def test_a_file_where_the_folder_should_be(tmp_path: Path, save: Save) -> None:
    path = tmp_path / "place" / "file"
    path.parent.mkdir()
    path.write_text("keep me")
    before = tree(path.parent)
    for folder in (path, path / "below"):
        refusal(StorageError, folder, lambda folder=folder: save(folder))
    assert tree(path.parent) == before


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_are_as_readable_as_the_user_has_files_be(
    tmp_path: Path, save: Save, umask: int
) -> None:
    before = os.umask(umask)
    try:
        save(tmp_path / "new")
    finally:
        os.umask(before)
    for path in (tmp_path / "new").iterdir():
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask, path
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o777 & ~umask
    assert len(list((tmp_path / "new").iterdir())) == 2


def test_where_folders_cannot_be_opened_only_files_areflushed(
    tmp_path: Path, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows."""
    real = os.open

    def files_only(path: Any, flags: int, *more: Any, **others: Any) -> int:
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "a folder")
        return real(path, flags, *more, **others)

    monkeypatch.setattr(folders_module, "_FOLDERS_OPEN", False)
    monkeypatch.setattr(os, "open", files_only)
    save(tmp_path / "new")
    assert (tmp_path / "new").is_dir()


@pytest.mark.parametrize(
    ("error", "is_disk"),
    [
        (OSError(errno.ENOSPC, "full"), True),
        (OSError(errno.EROFS, "read-only"), True),
        (PermissionError(errno.EACCES, "no"), True),
        (ConnectionResetError(errno.ECONNRESET, "gone"), False),
        (FileNotFoundError(errno.ENOENT, "no such data"), False),
        (OSError("of something else"), False),
    ],
)
def test_only_the_disks_own_errors_are_the_disks(
    tmp_path: Path, error: OSError, is_disk: bool
) -> None:
    with (
        pytest.raises(StorageError if is_disk else type(error)) as caught,
        folders_module.whole_folder(tmp_path / "new"),
    ):
        raise error
    assert (caught.value is error) is not is_disk
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_files_is_not_replaced(
    tmp_path: Path, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    (home / "photos").mkdir(parents=True)
    (home / "photos" / "one.jpg").write_bytes(b"1")
    before = tree(tmp_path)
    monkeypatch.chdir(home)
    for folder in (home, Path(".")):
        message = refusal(InputError, "'photos'", lambda folder=folder: save(folder))
        assert str(home) in message
    assert tree(tmp_path) == before
