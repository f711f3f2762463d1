"""Folders that are whole or not there.

In: a function that fills a folder. Out: that folder under its final name, put there by one rename,
so that an interrupt, a crash or a full disk leaves nothing that a later command takes for whole.
Also reads JSON and safetensors files with the library's own errors. Knows nothing of what it keeps.

A folder that is replaced stands for an instant under `.NAME.previous`. Whoever is killed in that
instant loses nothing: readers then name that folder, and the next save puts it back first.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import CheckpointError, InputError, StorageError

_FOLDERS_OPEN = os.name != "nt"
"""Whether a folder can be opened, and so flushed."""
_DISK_FAULTS = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO", "ENAMETOOLONG")
    if hasattr(errno, name)  # Windows lacks some
}
_UNSAFE = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle")
# A bare pickle from protocol 2 on, and the zip archive around one that torch.save writes.
_PICKLE_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")


@contextmanager
def whole_folder(folder: str | Path) -> Iterator[Path]:
    """Yields a temporary folder; on success it replaces `folder`, on any failure it is removed.

    Raises:
        StorageError: the disk is full or not writable.
        InputError: `folder` holds a file that the new one does not: it is no older save.
    """
    # Through a link, so that what it points to is replaced and not the link.
    target = Path(os.path.realpath(folder))
    temporary: Path | None = None
    filled = True
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _settle(target)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        filled = False
        yield temporary
        filled = True
        _apply_umask(temporary)
        _check_replaceable(target, temporary)
        flush(*temporary.iterdir(), temporary)
        _replace(temporary, target)
        flush(target.parent)
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and not filled and error.errno not in _DISK_FAULTS:
            raise  # of what fills the folder, such as a download
        raise StorageError(
            f"Saving needs a writable place with room, but {str(folder)!r} cannot be written "
            f"({error}); free some space or choose another folder."
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _apply_umask(folder: Path) -> None:
    """Gives a folder and its files the mode of any other: some libraries make them private."""
    probe = folder / ".mode"  # asking the process for its umask would change it for an instant
    probe.touch()
    mode = probe.stat().st_mode & 0o666
    probe.unlink()
    for file in folder.iterdir():
        file.chmod(mode)
    folder.chmod(mode | (mode & 0o444) >> 2)


def _check_replaceable(target: Path, temporary: Path) -> None:
    """Whatever the new folder has no file for would be lost: this is how a home folder is kept."""
    old = {entry.name for entry in target.iterdir()} if target.is_dir() else set()
    strange = sorted(old - {entry.name for entry in temporary.iterdir()})
    if strange:
        raise InputError(
            f"A save replaces only an older save of its kind, but {str(target)!r} also holds "
            f"{strange[0]!r}; choose another folder."
        )


def flush(*paths: Path) -> None:
    """Has the disk hold these files and folders before the rename, whatever happens to power."""
    for path in paths:
        is_folder = path.is_dir()
        if is_folder and not _FOLDERS_OPEN:
            continue
        descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _replace(temporary: Path, target: Path) -> None:
    try:
        if target.is_dir() and any(target.iterdir()):
            target.rename(_previous(target))
        temporary.rename(target)
    finally:
        _settle(target)


def _settle(target: Path) -> None:
    """After one rename of two: the old folder goes back. After both: it goes."""
    previous = _previous(target)
    if not previous.is_dir():
        return
    if target.exists():
        shutil.rmtree(previous, ignore_errors=True)
    else:
        previous.rename(target)


def _previous(target: Path) -> Path:
    return target.with_name(f".{target.name}.previous")


def check_settled(folder: Path) -> None:
    """Raises CheckpointError if a save was killed while it replaced this folder."""
    target = Path(os.path.realpath(folder))
    previous = _previous(target) if target.name else target
    if previous.is_dir() and not target.exists():
        raise CheckpointError(
            f"A save was cut off while it replaced {str(folder)!r}, and the older save is whole "
            f"in {str(previous)!r}; put it back with `mv '{previous}' '{target}'`."
        )


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes what `read_json` reads, in ASCII: a title may hold halves of characters."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="ascii")


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The JSON object in a file of a saved folder.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    if not path.is_file():
        raise CheckpointError(_no_file(path, what))
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(
            f"{path} describes {what} as JSON, but it cannot be read ({error}); copy or make the "
            "folder again."
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{path} describes {what} as a JSON object, but it holds a {type(value).__name__}; "
            "copy or make the folder again."
        )
    return value


def _no_file(path: Path, what: str) -> str:
    check_settled(path.parent)
    unsafe = sorted(file.name for pattern in _UNSAFE for file in path.parent.glob(pattern))
    if unsafe:
        return (
            f"Only safetensors are read, never pickles, but {str(path.parent)!r} has {unsafe[0]} "
            f"and no {path.name}; save {what} with save_pretrained()."
        )
    return (
        f"{what.capitalize()} is a folder with {path.name}, but {str(path.parent)!r} has none; "
        "check the path, or copy or make the folder again."
    )


def read_tensors(path: Path, what: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name.

    Raises:
        CheckpointError: it is missing, truncated, damaged or another format.
    """
    if not path.is_file():
        raise CheckpointError(_no_file(path, what))
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} holds {what} as safetensors, but it is {_fault(path)} ({error}); copy or "
            "make it again."
        ) from error


def _fault(path: Path) -> str:
    try:
        with path.open("rb") as file:
            is_pickle = file.read(4).startswith(_PICKLE_STARTS)
    except OSError:
        return "unreadable"
    return "a pickle" if is_pickle else "truncated, damaged or another format"
