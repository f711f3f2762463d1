"""One context in one file, and several stores in one."""

from __future__ import annotations

import json
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_embedder

from extensible_embedding import ExtensibleEmbedder, Reader
from extensible_embedding.errors import CheckpointError, InputError, MismatchError, StorageError
from extensible_embedding.store import portable
from extensible_embedding.store.checking import verify
from extensible_embedding.store.manifest import MANIFEST
from extensible_embedding.store.portable import export_context, import_context, merge_stores
from extensible_embedding.store.store import ContextStore

from .conftest import refused, text_of
from .test_bad_input import signed


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
    for none in ("none.zip", str(tmp_path)):
        with pytest.raises(InputError, match=f"'{none}' is none; name a file that"):
            import_context(other, none)
    for name, data in (("text", b"text"), ("cut", exported.read_bytes()[:-30])):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CheckpointError, match=f"{name}' is not"):
            import_context(other, tmp_path / name)
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


def test_an_export_depends_on_the_context_alone(
    store: ContextStore, exported: Path, tmp_path: Path
) -> None:
    """Not on the times of its files, some of which no zip file can have."""
    for path in (store.place.folder / store["novel"].folder).iterdir():
        os.utime(path, (0, 0))
    export_context(store, "novel", tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == exported.read_bytes()


def test_an_export_beside_a_change(
    store: ContextStore,
    other: ContextStore,
    exported: Path,
    embedder: ExtensibleEmbedder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, late = portable.faults_of, ["more", "and more"]

    def found(*args: Any) -> Any:
        faults = real(*args)
        if late:
            store.append("novel", late.pop(), embedder)
        return faults

    monkeypatch.setattr(portable, "faults_of", found)
    export_context(store, "novel", exported)
    assert import_context(other, exported).text() == store["novel"].text()
    assert not late


def changed(
    exported: Path,
    change: Callable[[dict[str, Any]], object] = lambda values: None,
    how: int = zipfile.ZIP_STORED,
) -> Path:
    """An export with another manifest, whose checksum is right, packed in another way."""
    target = exported.with_name("changed.zip")
    with zipfile.ZipFile(exported) as source, zipfile.ZipFile(target, "w", how) as archive:
        for member in source.namelist():
            data = source.read(member)
            if member == MANIFEST:
                values = json.loads(data)
                change(values)
                data = signed(values)
            archive.writestr(member, data)
    return target


LIES: dict[str, Callable[[dict[str, Any]], object]] = {
    "rows": lambda values: values["segments"][0].update(num_rows=25),
    "chain": lambda values: values["segments"][1].update(chain="0" * 64),
    "width": lambda values: values["settings"].update(row_width=31),
    "text": lambda values: values["segments"][0].update(text_bytes=95),
    "created": lambda values: values.update(created=1e20),
    "changed": lambda values: values.update(changed=float("nan")),
    "early": lambda values: values.update(created=-1e12),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_could_not_be_read_is_not_taken_in(
    other: ContextStore, exported: Path, lie: str
) -> None:
    with refused(CheckpointError, "but "):
        import_context(other, changed(exported, LIES[lie]))
    assert list(other) == []
    assert not any((other.place.folder / "contexts").glob("*"))


@pytest.mark.parametrize("how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_flipped_bits_of_an_export_end_in_a_sentence(
    other: ContextStore, exported: Path, how: int
) -> None:
    path, ended = changed(exported, how=how), set()
    data = path.read_bytes()
    for seed in range(150):
        draw, flipped = random.Random(seed), bytearray(data)
        flipped[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped if seed % 3 else data[: draw.randrange(len(data))])
        try:
            import_context(other, path)
            other.delete("novel")
        except (CheckpointError, InputError, MismatchError) as error:
            ended.add(type(error))
    assert CheckpointError in ended
    assert len(other) == 0


def test_exports_that_are_too_large(
    other: ContextStore, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(portable, "RATIO_FREE_BYTES", 1000)
    monkeypatch.setattr(portable, "MAX_RATIO", 0)
    with refused(InputError, "would unpack to .* zip bomb"):
        import_context(other, changed(exported, how=zipfile.ZIP_DEFLATED))
    monkeypatch.setattr(portable, "MAX_MANIFEST_BYTES", 1000)
    with refused(CheckpointError, "its manifest takes"):
        import_context(other, exported)


def test_names_of_files_that_are_none(store: ContextStore, exported: Path) -> None:
    with refused(CheckpointError, "is not .*null"):
        import_context(store, "a\0b")
    with refused(InputError, "has no NUL"):
        export_context(store, "novel", "a\0b")


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


def test_a_merge_that_fails_takes_in_nothing(
    store: ContextStore,
    other: ContextStore,
    embedder: ExtensibleEmbedder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store.add("mine", text_of(20), embedder)
    for number in range(3):
        other.add(f"letter {number}", text_of(30 + number), embedder)
    real, left = portable.share, iter(range(3))

    def full_disk(*paths: Path) -> None:
        if next(left, None) is None:
            raise OSError(28, "No space left on device")
        real(*paths)

    monkeypatch.setattr(portable, "share", full_disk)
    with refused(StorageError, "cannot be written"):
        merge_stores(store, other)
    assert [each.name for each in store] == ["mine"]
    monkeypatch.setattr(portable, "share", real)
    assert len(merge_stores(store, other)) == 3


def test_a_merge_beside_a_change(
    store: ContextStore,
    other: ContextStore,
    embedder: ExtensibleEmbedder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other.add("a log", text_of(40), embedder)
    other.add("novel", text_of(50), embedder)
    real, late = portable.share, ["more", "and more"]

    def shared(*paths: Path) -> None:
        if late:
            other.append("a log", late.pop(), embedder)
        real(*paths)

    monkeypatch.setattr(portable, "share", shared)
    assert merge_stores(store, other) == [each.name for each in other.manifests()]
    assert store["a log"].text() == other["a log"].text() == text_of(40) + "and moremore"
    assert verify(store) == []
