"""Folders that are whole or not there.

In: a function that fills a folder. Out: that folder under its final name, put there by one rename,
so that an interrupt, a crash or a full disk leaves nothing that a later command takes for whole.
Also reads safetensors files with the library's own errors. Knows nothing of what it keeps.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import CheckpointError, StorageError

_UNSAFE = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle")


@contextmanager
def whole_folder(folder: str | Path) -> Iterator[Path]:
    """Yields a temporary folder; on success it replaces `folder`, on any failure it is removed.

    Raises:
        StorageError: the disk is full or not writable.
    """
    target = Path(folder).absolute()
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        yield temporary
        temporary.chmod(0o755)
        _replace(temporary, target)
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"Saving needs a writable place with room, but {str(folder)!r} cannot be written "
            f"({error}); free some space or choose another folder."
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _replace(temporary: Path, target: Path) -> None:
    if target.is_dir() and any(target.iterdir()):
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
        target.rename(old / "was")
        temporary.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        temporary.rename(target)


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The JSON object in a file of a saved folder.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    if not path.is_file():
        raise CheckpointError(_no_file(path, what))
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(
            f"{path} describes {what} as JSON, but it cannot be read ({error}); copy or make the "
            "folder again."
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a JSON object, but found {type(value).__name__}.")
    return value


def _no_file(path: Path, what: str) -> str:
    unsafe = [file.name for pattern in _UNSAFE for file in path.parent.glob(pattern)]
    if unsafe:
        return (
            f"Only safetensors are read, never pickles, but {str(path.parent)!r} has {unsafe[0]} "
            f"and no {path.name}; save {what} with save_pretrained()."
        )
    return (
        f"{what.capitalize()} is a folder with {path.name}, but {str(path.parent)!r} has none; "
        "check the path."
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
            f"{path} holds {what} as safetensors, but it is truncated, damaged or another format "
            f"({error}); copy or make it again."
        ) from error
