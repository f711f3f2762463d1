"""A store behind a URL is read as one on a disk, and not changed."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch

from extensible_embedding import ExtensibleEmbedder
from extensible_embedding.errors import CheckpointError, InputError, StorageError
from extensible_embedding.store.manifest import MANIFEST
from extensible_embedding.store.store import ContextStore

from .conftest import OTHER, TEXT, refused

MEMORY = fsspec.filesystem("memory")


@pytest.fixture
def remote(full: ContextStore) -> Iterator[ContextStore]:
    """A copy of the store in the memory file system."""
    root = f"/{uuid.uuid4().hex}"
    MEMORY.put(f"{full.place.folder}/", root, recursive=True)
    yield ContextStore(f"memory:/{root}")
    MEMORY.rm(root, recursive=True)


def path_of(remote: ContextStore, name: str, ending: str) -> str:
    """Of a file of a context."""
    folder = f"{remote.place.root}/{remote.open(name).folder}"
    (path,) = sorted(path for path in MEMORY.ls(folder, detail=False) if path.endswith(ending))[:1]
    return str(path)


def test_it_lists_and_reads_as_a_local_one(full: ContextStore, remote: ContextStore) -> None:
    assert len(remote) == 2
    assert [each.name for each in remote] == ["novel", "other"]
    assert "novel" in remote
    assert "none" not in remote
    for k in (4, 8, 32):
        local, found = full["novel"].context(k), remote["novel"].context(k)
        assert torch.equal(found.rows, local.rows)
        assert torch.equal(found.token_ids, local.token_ids)
    assert remote["novel"].text() == TEXT
    assert torch.equal(remote["novel"].row_spans(), full["novel"].row_spans())


def test_what_it_does_not_have_is_named(remote: ContextStore) -> None:
    with refused(InputError, "has no 'none' but 2 others"):
        remote.open("none")
    empty = ContextStore("memory://nowhere")
    assert list(empty) == []
    with refused(InputError, "has no 'novel' and none at all"):
        empty.open("novel")


def test_it_is_not_changed(remote: ContextStore, embedder: ExtensibleEmbedder) -> None:
    before = MEMORY.find(remote.place.root)
    for change in (
        lambda: remote.add("new", TEXT, embedder),
        lambda: remote.append("novel", "x", embedder),
        lambda: remote.rename("novel", "new"),
        lambda: remote.delete("novel"),
        lambda: remote.compact(),
    ):
        with refused(InputError, "can be read, but not changed.*change a local copy and upload it"):
            change()
    assert MEMORY.find(remote.place.root) == before


@pytest.mark.parametrize("damage", ["header", "truncated", "missing"])
def test_damaged_rows_are_named(remote: ContextStore, damage: str) -> None:
    path = path_of(remote, "novel", ".safetensors")
    data = MEMORY.cat_file(path)
    if damage == "missing":
        MEMORY.rm(path)
    else:
        MEMORY.pipe_file(path, data[:-1] if damage == "truncated" else b"\xff" * 20 + data[20:])
    with refused(CheckpointError, "repair the store"):
        remote.open("novel").context()
    assert remote["other"].text() == OTHER


def test_a_damaged_text_is_named(remote: ContextStore) -> None:
    path = path_of(remote, "novel", ".txt")
    MEMORY.pipe_file(path, MEMORY.cat_file(path).upper())
    with refused(CheckpointError, "holds another; repair the store"):
        remote["novel"].text()
    remote["novel"].context()


def test_a_connection_that_fails_is_no_missing_store(
    remote: ContextStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unreachable(Exception):
        """As libraries behind URLs have them: no OSError."""

    def fail(*args: object, **more: object) -> object:
        raise Unreachable("no route to the bucket")

    monkeypatch.setattr(type(MEMORY), "cat_file", fail)
    with refused(StorageError, "no route to the bucket.*check the disk or connection"):
        remote.open("novel")
    monkeypatch.setattr(type(MEMORY), "ls", fail)
    for read in (remote.__len__, remote.__iter__):
        with refused(StorageError, "no route to the bucket"):
            read()
    monkeypatch.setattr(type(MEMORY), "info", fail)
    with refused(StorageError, "no route to the bucket"):
        remote.__contains__("novel")


def test_a_local_url_is_a_folder(full: ContextStore, embedder: ExtensibleEmbedder) -> None:
    local = ContextStore(Path(full.place.folder).as_uri())
    local.append("novel", "x", embedder)
    assert full["novel"].text() == TEXT + "x"
    assert (full.place.folder / full["novel"].folder / MANIFEST).is_file()
