"""What killed processes left in a store, and what others put there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from extensible_embedding import ExtensibleEmbedder
from extensible_embedding.store.names import folder_of
from extensible_embedding.store.store import ContextStore

from .conftest import text_of


def half_written(folder: Path) -> None:
    """What safetensors leaves: a file for its owner alone."""
    left = folder / ".tmpIxuO9L"
    left.write_text("half")
    left.chmod(0o600)


def tree(store: ContextStore) -> list[str]:
    root = Path(store.place.name)
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_what_a_killed_change_left_is_removed_by_the_next(
    store: ContextStore, embedder: ExtensibleEmbedder
) -> None:
    store.add("novel", text_of(40), embedder)
    before = tree(store)
    folder = next((store.place.folder / "contexts").iterdir())
    (folder / ".tmp-1").write_text("half")
    half_written(folder)
    (folder / f"{'0' * 64}.txt").write_text("orphan")
    lost = folder.with_name("1" * 40)
    lost.mkdir()
    (lost / f"{'2' * 64}.txt").write_text("of a context that was never committed")
    assert len(store) == 1
    store.compact()
    assert tree(store) == before
    assert not lost.exists()


def test_a_name_whose_first_context_was_killed_as_it_was_written_can_be_given(
    store: ContextStore, embedder: ExtensibleEmbedder
) -> None:
    store.add("novel", text_of(40), embedder)
    killed = store.place.folder / folder_of("tale")
    killed.mkdir()
    half_written(killed)
    assert store.rename("novel", "tale").text() == text_of(40)
    assert not list(killed.glob(".tmp*"))


@pytest.mark.skipif(sys.platform == "win32", reason="files have no modes there")
def test_what_others_put_there_stays(store: ContextStore, embedder: ExtensibleEmbedder) -> None:
    store.add("novel", text_of(40), embedder)
    folder = next((store.place.folder / "contexts").iterdir())
    (folder / ".tmp.notes").write_text("of another name")
    (folder / ".tmpbackup").write_text("named as safetensors does, but for others to read")
    (folder / ".tmpbackup").chmod(0o644)
    (folder / ".tmpabcdef").mkdir()
    (folder / ".tmp-folder").mkdir()
    (folder / ".tmplinked").symlink_to(folder / ".tmpbackup")
    there = {path.name for path in folder.iterdir() if path.name.startswith(".tmp")}
    store.append("novel", text_of(40), embedder)
    store.compact()
    assert {path.name for path in folder.iterdir() if path.name.startswith(".tmp")} == there
    assert store.open("novel").text() == 2 * text_of(40)
