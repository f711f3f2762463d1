"""Files of a store: whole or not there, here or behind a URL.

In: bytes, or a function that writes a file. Out: that file under its final name, put there by one
rename after it was flushed; the same files read through fsspec, where the place is a URL. Knows
nothing of what the files hold.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import torch
from fsspec.implementations.local import LocalFileSystem
from safetensors import SafetensorError

from ..errors import InputError, StorageError
from ..folders import flush

_OWN_TEMPORARY = ".tmp-"
_TEMPORARY = re.compile(r"\.tmp(-.*|[0-9A-Za-z]{6})")
"""What is being written, by the store and by safetensors, which makes files of its own."""
_BLOCK = 1 << 20
_BY_HASH = re.compile(r"[0-9a-f]{64}\.(safetensors|txt)")


class Place:
    """The folder of a store. A local one can be written, a remote one only read.

    Args:
        path: a folder, or a URL that fsspec knows, such as s3://bucket/store.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = str(path)
        try:
            if not self.name or "\0" in self.name:
                raise ValueError("no folder has this name")
            system, root = fsspec.core.url_to_fs(self.name)
        except (ImportError, ValueError) as error:
            raise InputError(
                f"A store is a folder or a URL that fsspec can open, but {self.name!r} is neither "
                f"({error}); check it, or install the package that it names."
            ) from error
        self.system, self.root = system, str(root)
        self.local = Path(self.root) if isinstance(system, LocalFileSystem) else None
        # Libraries behind URLs raise what they like.
        self._faults = OSError if self.local is not None else Exception

    @property
    def folder(self) -> Path:
        """The local folder, for whatever writes.

        Raises:
            InputError: the store is remote.
        """
        if self.local is None:
            raise InputError(
                f"A store behind a URL can be read, but not changed, and {self.name!r} is one; "
                "change a local copy and upload it."
            )
        return self.local

    def exists(self, name: str) -> bool:
        """Whether there is such a file or folder."""
        try:
            self._info(name)
        except FileNotFoundError:
            return False
        return True

    def names(self, folder: str) -> list[str]:
        """Files of a folder, in order, without what is being written."""
        try:
            with self.reading(folder):
                found = self.system.ls(f"{self.root}/{folder}", detail=False)
        except FileNotFoundError:
            return []
        names = sorted(str(path).rstrip("/").rpartition("/")[2] for path in found)
        return [name for name in names if not _TEMPORARY.fullmatch(name)]

    def read(self, name: str) -> bytes:
        """A whole file.

        Raises:
            FileNotFoundError: there is none.
            StorageError: it cannot be read.
        """
        with self.reading(name):
            return bytes(self.system.cat_file(f"{self.root}/{name}"))

    def opened(self, name: str) -> Callable[[], bytes]:
        """A file to read later, whether or not it is removed meanwhile, if it is local.

        Raises:
            FileNotFoundError: there is none.
            StorageError: it cannot be read.
        """
        size = self.size(name)
        if self.local is None:
            return partial(self.read, name)
        with self.reading(name), opening(self.local / name):
            data = torch.from_file(str(self.local / name), size=size, dtype=torch.uint8)
        return lambda: data.numpy().tobytes()

    def size(self, name: str) -> int:
        """Bytes of a file.

        Raises:
            FileNotFoundError: there is none.
            StorageError: it cannot be read.
        """
        return int(self._info(name)["size"])

    def _info(self, name: str) -> dict[str, Any]:
        with self.reading(name):
            return dict(self.system.info(f"{self.root}/{name}"))

    @contextmanager
    def reading(self, name: str) -> Iterator[None]:
        """Turns every refusal to read, but that there is no such file, into one sentence."""
        try:
            yield
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(errno.ENOENT, "no such file", name) from error
        except self._faults as error:
            raise StorageError(
                f"A store is a place whose files can be read, but {name!r} in {self.name!r} cannot "
                f"be ({error}); check the disk or connection, and who may read it."
            ) from error


@contextmanager
def opening(path: Path) -> Iterator[None]:
    """Says what is true of a file that libraries cannot open, be it removed while they try."""
    try:
        yield
    except (RuntimeError, SafetensorError, FileNotFoundError):
        path.open("rb").close()  # raises that it is missing, or that it may not be read
        raise


@contextmanager
def disk_faults(what: str) -> Iterator[None]:
    """Turns a disk's refusal into one sentence."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # the latter also stands for a full disk
        raise StorageError(
            f"A store needs a writable place with room, but {what!r} cannot be written ({error}); "
            "free some space or choose another folder: what was committed before is whole."
        ) from error


def make_folder(folder: Path) -> None:
    """Makes a folder that stays, whatever happens to power."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        flush(folder.parent)


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file that is there completely, whatever happens, or as it was before."""
    with fill_whole(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def fill_whole(path: Path) -> Iterator[Path]:
    """Yields a temporary file to fill; on success it takes the place of `path`."""
    temporary = _temporary(path.parent)
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def put_by_hash(folder: Path, ending: str, fill: Callable[[Path], object]) -> tuple[str, int]:
    """Writes a file whose name is the SHA-256 of its bytes; returns (name, bytes).

    Files of the same content are one file, written once.
    """
    temporary = _temporary(folder)
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        fill(temporary)
        temporary.chmod(mode)  # safetensors lets nobody but the owner read
        name, size = f"{hash_file(temporary)}{ending}", temporary.stat().st_size
        flush(temporary)
        os.replace(temporary, folder / name)
        flush(folder)
        return name, size
    finally:
        temporary.unlink(missing_ok=True)


def share(file: Path, folder: Path) -> None:
    """Has a file in another folder too, without a copy where the disk can do that."""
    target = folder / file.name
    if target.exists():
        return
    try:
        os.link(os.path.realpath(file), target)
    except OSError:
        with fill_whole(target) as temporary:
            shutil.copyfile(file, temporary)
    flush(folder)


def is_left_over(name: str) -> bool:
    """Whether a file may be what a change left: it is named by a hash, or was being written."""
    return (_TEMPORARY.fullmatch(name) or _BY_HASH.fullmatch(name)) is not None


def may_go(path: Path) -> bool:
    """Whether this is what a change left over, and not what somebody else gave such a name.

    safetensors makes its files for their owner alone.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:  # it went meanwhile
        return False
    if not (stat.S_ISREG(mode) and is_left_over(path.name)):
        return False
    of_the_store = path.name.startswith(_OWN_TEMPORARY) or _BY_HASH.fullmatch(path.name)
    return bool(of_the_store) or sys.platform == "win32" or stat.S_IMODE(mode) == 0o600


def is_whole(path: Path) -> bool:
    """Whether a file is there whose name is the hash of its content."""
    try:
        return hash_file(path) == path.stem
    except OSError:
        return False


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _temporary(folder: Path) -> Path:
    return folder / f"{_OWN_TEMPORARY}{uuid.uuid4().hex}"
