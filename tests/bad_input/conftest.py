"""Whatever a user, a disk or a signal does: one sentence, one exit code, nothing half-written.

A sentence gives the rule, the value received and, after a semicolon, what to do next.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import make_embedder

from extensible_embedding import (
    CheckpointError,
    Context,
    ExtensibleEmbedder,
    ExtensibleError,
    InputError,
    MismatchError,
    Reader,
    StorageError,
)

EXIT_CODES = {InputError: 2, CheckpointError: 4, MismatchError: 5, StorageError: 6}
IDS = list(range(40))


def refusal(kind: type[ExtensibleError], value: object, call: Callable[[], object]) -> str:
    """The sentence with which the call is refused."""
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    assert caught.value.exit_code == EXIT_CODES[kind]
    message = str(caught.value)
    assert str(value) in message
    assert "\n" not in message
    assert message.endswith((".", "`.")), message
    assert "; " in message, message
    return message


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, and every folder (as an empty file)."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }


@pytest.fixture
def context(tiny_embedder: ExtensibleEmbedder) -> Context:
    return tiny_embedder.compress(IDS, k=4, title="Old")


@pytest.fixture
def saved_context(context: Context, tmp_path: Path) -> Path:
    context.save(tmp_path / "context")
    return tmp_path / "context"


@pytest.fixture
def saved_embedder(tiny_embedder: ExtensibleEmbedder, tmp_path: Path) -> Path:
    tiny_embedder.save_pretrained(tmp_path / "embedder")
    return tmp_path / "embedder"


Save = Callable[[Path], None]


@pytest.fixture(params=["context", "embedder"])
def save(request: pytest.FixtureRequest, tiny_reader: Reader) -> Save:
    embedder = make_embedder(tiny_reader)
    if request.param == "context":
        return embedder.compress(IDS, k=2, title="New").save
    embedder.projection.weight.data.add_(1)
    return embedder.save_pretrained


@pytest.fixture
def older(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An older save of the same kind as `save` makes, alone in its parent folder."""
    kind = request.node.callspec.params["save"]
    (tmp_path / "place").mkdir()
    folder: Path = request.getfixturevalue(f"saved_{kind}")
    return folder.rename(tmp_path / "place" / "kept")


def full_disk(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


WRITES = ["save_file", "write_text", "fsync", "rename"]


def break_write(monkeypatch: pytest.MonkeyPatch, write: str, fault: Callable[..., Any]) -> None:
    if write == "save_file":
        for module in ("context", "checkpoint"):
            monkeypatch.setattr(f"extensible_embedding.{module}.save_file", fault)
    elif write == "fsync":
        monkeypatch.setattr(os, "fsync", fault)
    else:
        monkeypatch.setattr(Path, write, fault)


def press_ctrl_c(*args: Any, **kwargs: Any) -> None:
    raise KeyboardInterrupt
