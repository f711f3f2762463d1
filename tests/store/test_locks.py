"""Several who change one store: each context by one at a time, others beside it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from extensible_embedding import BusyError, ExtensibleEmbedder, StorageError
from extensible_embedding.store import contents, growth, locks
from extensible_embedding.store import store as store_module
from extensible_embedding.store.locks import LOCK_FILE, locked_contexts, locked_store
from extensible_embedding.store.names import folder_of as name_folder
from extensible_embedding.store.store import ContextStore

from .conftest import OTHER, TEXT, files_in, folder_of, text_of


class Paused:
    """A change that stops after it has written its first segment, until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> None:
        self._here, self._go = threading.Event(), threading.Event()
        write = growth.write_segment

        def slow(*args, **kwargs):
            made = write(*args, **kwargs)
            if threading.current_thread() is self._thread:
                self._here.set()
                assert self._go.wait(20)
            return made

        monkeypatch.setattr(growth, "write_segment", slow)
        self.errors: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, args=(change,))

    def _run(self, change: Callable[[], object]) -> None:
        try:
            change()
        except BaseException as error:
            self.errors.append(error)

    def __enter__(self) -> Paused:
        self._thread.start()
        assert self._here.wait(20)
        return self

    def go_on(self) -> None:
        self._go.set()
        self._thread.join(20)

    def __exit__(self, *_: object) -> None:
        self.go_on()
        assert not self.errors


def locks_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob(f"{LOCK_FILE}*"))


def at_once(store: ContextStore) -> ContextStore:
    return ContextStore(store.place.name, wait_s=0.2)


def test_the_same_context_is_changed_by_one(
    full: ContextStore, embedder: ExtensibleEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = at_once(full)
    with Paused(monkeypatch, lambda: full.append("novel", text_of(70), embedder)):
        for change in (
            lambda: store.append("novel", "x", embedder),
            lambda: store.add("Novel", "x", embedder, replace=True),
            lambda: store.delete("novel"),
            lambda: store.rename("novel", "book"),
            lambda: store.rename("other", "novel"),
        ):
            with pytest.raises(BusyError, match=r"(?i)'novel'.* for 0.2 seconds; try again"):
                change()
        assert store["novel"].text() == TEXT
    assert full["novel"].text() == TEXT + text_of(70)


def test_other_contexts_are_changed_meanwhile(
    full: ContextStore, embedder: ExtensibleEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = at_once(full)
    with Paused(monkeypatch, lambda: full.add("long", text_of(300), embedder)) as paused:
        store.append("other", "x", embedder)
        store.add("twin", TEXT, embedder)
        store.rename("twin", "double")
        store.delete("double")
        store.compact()
        assert "long" not in store
        with pytest.raises(BusyError, match="'long'"):
            store.add("long", "x", embedder)
        paused.go_on()
    assert full["long"].text() == text_of(300)
    assert full["other"].text().endswith("x")
    assert locks_in(full.place.folder) == [LOCK_FILE]


def test_compact_removes_what_the_killed_left(
    full: ContextStore, embedder: ExtensibleEmbedder
) -> None:
    """Files of a change that died, and of its lock; those of a user stay."""
    root, folder = full.place.folder, folder_of(full, "novel")
    (folder / f"{'0' * 64}.txt").write_text("left")
    (root / f"{LOCK_FILE}.{folder.name}").touch()
    (root / f"{LOCK_FILE}.{'1' * 40}").write_text("mine")
    before = files_in(folder).keys() - {f"{'0' * 64}.txt"}
    full.compact()
    assert files_in(folder).keys() == before
    assert locks_in(root) == [LOCK_FILE, f"{LOCK_FILE}.{'1' * 40}"]
    full.append("novel", OTHER, embedder)


def test_nothing_begins_while_the_store_is_locked(
    full: ContextStore, embedder: ExtensibleEmbedder
) -> None:
    before = files_in(full.place.folder)
    with locked_store(full.place.folder, 1.0), pytest.raises(BusyError, match="changes a store"):
        at_once(full).append("novel", "x", embedder)
    with (
        locked_contexts(full.place.folder, ["novel", "other"], 1.0),
        pytest.raises(BusyError, match="changes a context"),
    ):
        at_once(full).append("other", "x", embedder)
    assert files_in(full.place.folder) == before


def test_files_of_locks_go_only_with_the_lock_of_the_store(
    full: ContextStore, embedder: ExtensibleEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else two writers would have locked a file and its successor."""
    monkeypatch.setattr(locks, "_GIVING_S", 0.1)
    root = full.place.folder
    with ExitStack() as others:
        with locked_contexts(root, ["novel"], 1.0):
            others.enter_context(locked_store(root, 1.0))
        assert len(locks_in(root)) == 2
        with pytest.raises(BusyError, match="changes a store"):
            at_once(full).compact()
        assert len(locks_in(root)) == 2
    full.append("novel", "x", embedder)
    assert locks_in(root) == [LOCK_FILE]


def test_the_same_text_while_its_twin_goes(
    full: ContextStore, embedder: ExtensibleEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are made, if the context that had them is deleted while they are taken over."""
    share = contents.share

    def deleted_before(file: Path, folder: Path) -> None:
        if "novel" in full:
            full.delete("novel")
        share(file, folder)

    monkeypatch.setattr(contents, "share", deleted_before)
    full.add("twin", TEXT, embedder)
    assert full["twin"].text() == TEXT
    assert "novel" not in full


def test_files_that_are_no_locks_stay(full: ContextStore) -> None:
    root = full.place.folder
    (root / f"{LOCK_FILE}.old").mkdir()
    (root / f"{LOCK_FILE}.txt").touch()
    full.compact()
    assert locks_in(root) == [LOCK_FILE, f"{LOCK_FILE}.old", f"{LOCK_FILE}.txt"]


@pytest.mark.skipif(sys.platform == "win32", reason="it has other locks")
def test_a_lock_that_cannot_be_taken_leaves_none_of_the_others_taken(
    full: ContextStore,
) -> None:
    root, names = full.place.folder, sorted(["novel", "new"], key=name_folder)
    (root / f"{LOCK_FILE}.{name_folder(names[1]).rpartition('/')[2]}").mkdir()
    with pytest.raises(StorageError, match="a folder or"), locked_contexts(root, names, 0.1):
        pass
    with locked_contexts(root, names[:1], 0.1):
        pass
    assert len(locks_in(root)) == 2  # that of the store, and the folder


def test_a_change_that_is_stopped_while_it_gives_its_lock_back(
    full: ContextStore, embedder: ExtensibleEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C: `chat` goes on after it, with the same context."""
    root, give = full.place.folder, locks._give_all

    def stopped(*args: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(locks, "locked_store", Mock(side_effect=KeyboardInterrupt))
            give(*args)

    with monkeypatch.context() as patch:
        patch.setattr(locks, "_give_all", stopped)
        with pytest.raises(KeyboardInterrupt):
            full.append("novel", "x", embedder)
    at_once(full).append("novel", "y", embedder)
    assert full["novel"].text() == TEXT + "xy"
    assert locks_in(root) == [LOCK_FILE]


@pytest.mark.parametrize("there", [False, True])
def test_what_is_replaced_may_come_or_go_while_one_waits(
    full: ContextStore, embedder: ExtensibleEmbedder, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    name = "novel" if there else "new"

    def after_another(*args: Any) -> AbstractContextManager[None]:
        monkeypatch.setattr(store_module, "locked_contexts", locked_contexts)
        full.delete(name) if there else full.add(name, TEXT, embedder)
        return locked_contexts(*args)

    monkeypatch.setattr(store_module, "locked_contexts", after_another)
    assert full.add(name, OTHER, embedder, replace=True).text() == OTHER
