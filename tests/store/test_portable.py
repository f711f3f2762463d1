"""One context in one file, and several stores in one."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from conftest import make_embedder

from extensible_embedding import ExtensibleEmbedder, Reader
from extensible_embedding.errors import CheckpointError, InputError, StorageError
from extensible_embedding.store.checking import verify
from extensible_embedding.store.portable import export_context, import_context, merge_stores
from extensible_embedding.store.store import ContextStore

from .conftest import text_of


@pytest.fixture
def embedder(tiny_reader: Reader) -> ExtensibleEmbedder:
    return make_embedder(tiny_reader, chunk_tokens=32)


@pytest.fixture
def other(tmp_path: Path) -> ContextStore:
    return ContextStore(tmp_path / "other", wait_s=0.2)


@pytest.fixture
def exported(store: ContextStore, embedder: ExtensibleEmbedder, tmp_path: Path) -> Path:
    store.add("novel", text_of(100), embedder, title="A novel", metadata={"year": 1817})
    export_context(store, "novel", tmp_path / "novel.zip")
    return tmp_path / "novel.zip"


def test_a_context_comes_in_as_it_went_out(
    store: ContextStore, other: ContextStore, exported: Path
) -> None:
    found, kept = import_context(other, exported), store["novel"]
    assert (found.name, found.title, found.metadata) == ("novel", "A novel", {"year": 1817})
    assert torch.equal(found.context(8).rows, kept.context(8).rows)
    assert found.text() == kept.text()
    assert verify(other) == []
    assert import_context(store, exported, "copy").text() == kept.text()


def test_it_grows_on(other: ContextStore, exported: Path, embedder: ExtensibleEmbedder) -> None:
    import_context(other, exported, "log")
    assert other.append("log", " More.", embedder).text() == text_of(100) + " More."


def test_a_name_that_is_taken(store: ContextStore, exported: Path) -> None:
    with pytest.raises(InputError, match="has 'novel' already"):
        import_context(store, exported)


def test_files_that_are_no_export(other: ContextStore, tmp_path: Path, exported: Path) -> None:
    with pytest.raises(InputError, match=r"'none.zip' is none"):
        import_context(other, "none.zip")
    for name, data in (("text", b"text"), ("cut", exported.read_bytes()[:-30])):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CheckpointError, match=f"{name}' is not"):
            import_context(other, tmp_path / name)
    with pytest.raises(CheckpointError, match="is not"):
        import_context(other, tmp_path)
    assert len(other) == 0


@pytest.mark.parametrize("change", ["content", "missing", "outside"])
def test_exports_that_were_changed(
    other: ContextStore, tmp_path: Path, exported: Path, change: str
) -> None:
    changed = tmp_path / "changed.zip"
    with zipfile.ZipFile(exported) as source, zipfile.ZipFile(changed, "w") as target:
        for member in source.namelist():
            data = source.read(member)
            if member.endswith(".txt") and change == "content":
                data = data.replace(b"heron", b"stork")
            if not (member.endswith(".txt") and change == "missing"):
                target.writestr(member, data)
        if change == "outside":
            target.writestr("../../outside", b"never read")
    if change == "outside":
        import_context(other, changed)
        assert not (tmp_path.parent / "outside").exists()
        assert not (tmp_path / "outside").exists()
        return
    with pytest.raises(CheckpointError, match="export it again"):
        import_context(other, changed)
    assert len(other) == 0


def test_only_whole_contexts_go_out(
    store: ContextStore, other: ContextStore, exported: Path
) -> None:
    stored = store["novel"]
    path = store.place.folder / stored.folder / stored.manifest.segments[0].text_file
    path.write_bytes(path.read_bytes().replace(b"heron", b"stork"))
    before = exported.read_bytes()
    with pytest.raises(CheckpointError, match="Only a whole context .* repair the store first"):
        export_context(store, "novel", exported)
    assert exported.read_bytes() == before
    with pytest.raises(CheckpointError, match="Only whole contexts are merged"):
        merge_stores(other, store)
    assert len(other) == 0


def test_a_place_that_cannot_be_written(store: ContextStore, exported: Path) -> None:
    with pytest.raises(StorageError, match="cannot be written"):
        export_context(store, "novel", exported / "below")
    with pytest.raises(InputError, match="has no 'none'"):
        export_context(store, "none", exported)


def test_stores_are_merged(
    store: ContextStore, other: ContextStore, exported: Path, embedder: ExtensibleEmbedder
) -> None:
    import_context(other, exported)
    other.add("letters", text_of(50), embedder)
    other.add("diary", text_of(60), embedder)
    assert sorted(merge_stores(store, other)) == ["diary", "letters"]
    assert [each.name for each in store] == ["diary", "letters", "novel"]
    assert merge_stores(store, other) == []
    assert verify(store) == []
    other.append("diary", " More.", embedder)
    assert store["diary"].text() == text_of(60)


def test_names_that_clash_stop_a_merge(
    store: ContextStore, other: ContextStore, embedder: ExtensibleEmbedder
) -> None:
    store.add("novel", text_of(100), embedder)
    other.add("a letter", text_of(30), embedder)
    other.add("novel", text_of(50), embedder)
    with pytest.raises(InputError, match="both have 'novel' with another content"):
        merge_stores(store, other)
    assert [each.name for each in store] == ["novel"]
