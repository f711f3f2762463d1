"""Every damaged byte is found and named; what can be made again is made as it was."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_embedder

from extensible_embedding import ExtensibleEmbedder, Reader
from extensible_embedding.errors import CheckpointError, InputError, MismatchError
from extensible_embedding.store import checking, growth
from extensible_embedding.store.checking import left_over, verify
from extensible_embedding.store.manifest import MANIFEST
from extensible_embedding.store.mending import reembed, repair
from extensible_embedding.store.store import ContextStore
from extensible_embedding.store.stored import StoredContext

from .conftest import NON_ASCII, folder_of, text_of
from .test_bad_input import change_manifest, change_tensors

TEXT = text_of(90) + NON_ASCII * 5


@pytest.fixture
def embedder(tiny_reader: Reader) -> ExtensibleEmbedder:
    return make_embedder(tiny_reader, chunk_tokens=32)


@pytest.fixture
def full(store: ContextStore, embedder: ExtensibleEmbedder) -> ContextStore:
    """A context of several segments, and another one."""
    store.add("novel", TEXT[:70], embedder)
    for start in range(70, len(TEXT), 50):
        store.append("novel", TEXT[start : start + 50], embedder)
    store.add("other", text_of(40), embedder)
    return store


def files(store: ContextStore, ending: str) -> list[Path]:
    manifest = store.manifest("novel")
    folder = store.place.folder / store.open("novel").folder
    return sorted(folder / name for name in manifest.files if name.endswith(ending))


def flip(path: Path, seed: int = 0) -> None:
    data = bytearray(path.read_bytes())
    place = random.Random(seed).randrange(len(data))
    data[place] ^= 1 << seed % 8
    path.write_bytes(bytes(data))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_a_whole_store_has_no_faults(full: ContextStore, embedder: ExtensibleEmbedder) -> None:
    assert verify(full) == []
    assert repair(full, embedder) == []
    assert verify(ContextStore(str(full.place.folder / "empty"))) == []


@pytest.mark.parametrize("seed", range(20))
def test_every_flipped_bit_is_found(full: ContextStore, seed: int) -> None:
    folder = full.place.folder / full.open("novel").folder
    path = sorted(folder.iterdir())[seed % len(list(folder.iterdir()))]
    flip(path, seed)
    faults = verify(full)
    assert [fault.file for fault in faults] == [path.name]


def test_damage_is_found_after_segments_were_merged_and_not_given_a_hash_of_its_own(
    store: ContextStore, embedder: ExtensibleEmbedder
) -> None:
    """A bit of the rows alone: it spoils neither size, nor header, nor token ids."""
    text = text_of(320)
    store.add("novel", text[:64], embedder)
    (path,) = files(store, ".safetensors")
    whole = store["novel"].context().rows
    data = bytearray(path.read_bytes())
    header_bytes = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + header_bytes])
    data[8 + header_bytes + header["rows"]["data_offsets"][0]] ^= 1
    path.write_bytes(data)
    for start in range(64, len(text), 32):
        store.append("novel", text[start : start + 32], embedder)
        assert [fault.file for fault in verify(store)] == [path.name]
    assert repair(store, embedder) == []
    assert torch.equal(store["novel"].context().rows[: len(whole)], whole)
    store.append("novel", text_of(40), embedder)
    assert verify(store) == []


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
@pytest.mark.parametrize("ending", [".txt", ".safetensors"])
def test_one_of_two_files_is_made_again_as_it_was(
    full: ContextStore, embedder: ExtensibleEmbedder, ending: str, damage: object
) -> None:
    manifest = full.manifest("novel")
    before = full["novel"].context()
    for path in files(full, ending):
        damage(path)  # type: ignore[operator]
    found = verify(full)
    assert {each.file for each in found} == {path.name for path in files_of(manifest, ending)}
    part = "text" if ending == ".txt" else "rows"
    assert all(each.mendable and each.lost.startswith(f"the {part} of tokens") for each in found)
    assert repair(full, embedder) == []
    assert full["novel"].text() == TEXT
    assert torch.equal(full["novel"].context().rows, before.rows)
    assert full.manifest("novel").segments == manifest.segments


def files_of(manifest: object, ending: str) -> set[Path]:
    return {Path(name) for name in manifest.files if name.endswith(ending)}  # type: ignore[attr-defined]


def test_rows_here_and_text_there(store: ContextStore, embedder: ExtensibleEmbedder) -> None:
    """Text of one segment from its own tokens, then rows of the other from the text."""
    store.add("novel", text_of(70), embedder)
    first, second = store.manifest("novel").segments
    folder = store.place.folder / store.open("novel").folder
    flip(folder / first.text_file)
    flip(folder / second.rows_file)
    assert len(verify(store)) == 2
    assert repair(store, embedder) == []
    assert store["novel"].text() == text_of(70)


def test_what_is_lost_for_good_is_named(full: ContextStore, embedder: ExtensibleEmbedder) -> None:
    segment = full.manifest("novel").segments[0]
    folder = full.place.folder / full.open("novel").folder
    flip(folder / segment.text_file)
    (folder / segment.rows_file).unlink()
    left = repair(full, embedder)
    assert {each.file for each in left} == {segment.text_file, segment.rows_file}
    assert not any(each.mendable for each in left)
    assert all(each.lost.endswith(f"tokens 0 to {segment.num_tokens:,}") for each in left)
    assert full["other"].text() == text_of(40)


def test_a_segment_that_is_lost_costs_no_other(
    store: ContextStore, embedder: ExtensibleEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth, "SEGMENT_CHUNKS", 1)
    store.add("novel", text_of(150), embedder)
    before, folder = store["novel"].context().rows, folder_of(store, "novel")
    segments = store.manifest("novel").segments
    assert len(segments) == 5
    for file in (segments[1].rows_file, segments[1].text_file, segments[3].rows_file):
        flip(folder / file)
    flip(folder / segments[4].text_file)
    assert [each.mendable for each in verify(store)] == [False, False, True, True]
    left = repair(store, embedder)
    assert {each.file for each in left} == {segments[1].rows_file, segments[1].text_file}
    found = store.manifest("novel").segments
    assert [each.chain for each in found] == [each.chain for each in segments]
    kept = StoredContext(store.place, store.manifest("novel"))
    assert torch.equal(kept.opened(found[3]).rows(), before[24:32])


def test_what_repair_could_not_mend_it_does_not_promise_again(
    full: ContextStore, embedder: ExtensibleEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a tokenizer that does not give back the text that it took."""
    flip(files(full, ".txt")[0])
    monkeypatch.setattr(Reader, "decode", lambda *a: "another text")
    assert [each.mendable for each in verify(full)] == [True]
    assert [each.mendable for each in repair(full, embedder)] == [False]


def test_manifests_that_are_lost(full: ContextStore, embedder: ExtensibleEmbedder) -> None:
    novel, other = (
        full.place.folder / full.open(name).folder / MANIFEST for name in ("novel", "other")
    )
    flip(novel)
    other.rename(other.with_name("moved"))
    faults = verify(full)
    assert [each.context for each in faults] == [novel.parent.name]
    assert not any(each.mendable for each in faults)
    assert len(repair(full, embedder)) == 1
    assert files_left(novel.parent)  # nothing was removed that might be whole
    assert left_over(full) == [other.parent.name]  # as if its context had never been committed


def test_what_is_not_the_stores_is_no_fault(
    full: ContextStore, embedder: ExtensibleEmbedder
) -> None:
    root = full.place.folder / "contexts"
    (root / ".DS_Store").write_text("x")
    (root / ("1" * 40)).write_text("x")
    for folder in (root / "notes", root / ("0" * 40), root / ("2" * 40)):
        folder.mkdir()
    (root / ("0" * 40) / f"{'0' * 64}.txt").write_text("left by a killed change")
    (root / ("2" * 40) / "mine.txt").write_text("x")
    assert verify(full) == repair(full, embedder) == []
    assert left_over(full) == ["0" * 40]
    full.compact()
    assert left_over(full) == []


def test_a_change_beside_a_check_is_no_fault(
    full: ContextStore, embedder: ExtensibleEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the manifest and its files, all that a writer can do to a context is done."""
    changes = [
        lambda: full.append("novel", text_of(40), embedder),
        lambda: full.add("novel", text_of(80), embedder, replace=True),
        lambda: full.rename("novel", "new"),
        lambda: full.delete("other"),
    ]
    real = checking.faults_of

    def late(*args: Any) -> object:
        if changes:
            changes.pop(0)()
        return real(*args)

    monkeypatch.setattr(checking, "faults_of", late)
    assert verify(full) == []
    assert verify(full) == []
    assert not changes
    monkeypatch.setattr(checking, "_TRIES", 2)
    changes[:] = [lambda: full.append("new", text_of(40), embedder) for _ in range(2)]
    with pytest.raises(CheckpointError, match="changes faster than it can be read; try again"):
        verify(full)


LIES: dict[str, Callable[[dict[str, Any]], object]] = {
    "rows": lambda segment: segment.update(num_rows=segment["num_rows"] + 1),
    "rows and tokens": lambda segment: segment.update(num_rows=1, num_tokens=4),
    "chain": lambda segment: segment.update(chain="0" * 64),
    "text bytes": lambda segment: segment.update(text_bytes=segment["text_bytes"] + 1),
    "file bytes": lambda segment: segment.update(rows_file_bytes=7),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_manifest_that_lies_with_a_valid_checksum(full: ContextStore, lie: str) -> None:
    change_manifest(full, lambda values: LIES[lie](values["segments"][-1]))
    (fault,) = verify(full)
    assert fault.what.startswith("is not ")
    assert fault.lost


@pytest.mark.parametrize("name", ["rows", "token_ids", "row_bytes"])
def test_rows_that_are_not_of_the_text(
    store: ContextStore, embedder: ExtensibleEmbedder, name: str
) -> None:
    store.add("novel", text_of(90), embedder)
    value = float("nan") if name == "rows" else 7
    change_tensors(store, lambda tensors: tensors[name][-1].fill_(value))
    (fault,) = verify(store)
    assert fault.what.startswith("is not what its manifest says")
    assert fault.mendable
    assert repair(store, embedder) == []
    assert store["novel"].text() == text_of(90)


def files_left(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.suffix == ".safetensors"]


def test_a_manifest_in_anothers_place(full: ContextStore) -> None:
    novel, other = (
        full.place.folder / full.open(name).folder / MANIFEST for name in ("novel", "other")
    )
    other.write_bytes(novel.read_bytes())
    assert [each.what for each in verify(full)] == ["is that of another context, 'novel'"]


def test_repair_needs_the_same_embedder(
    full: ContextStore, embedder: ExtensibleEmbedder, tiny_reader: Reader
) -> None:
    flip(files(full, ".safetensors")[0])
    other = make_embedder(tiny_reader, chunk_tokens=32)
    with torch.no_grad():
        other.projection.weight.add_(1.0)
    with pytest.raises(MismatchError, match="another embedder"):
        repair(full, other)


def test_tokens_that_came_otherwise_are_all_made_anew(
    full: ContextStore, embedder: ExtensibleEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where pieces met, a tokenizer may have split otherwise than it splits the whole."""
    flip(files(full, ".safetensors")[0])
    monkeypatch.setattr("extensible_embedding.store.mending._made_of", lambda *a: None)
    assert repair(full, embedder) == []
    assert full["novel"].text() == TEXT
    assert torch.equal(full["novel"].token_ids(), embedder.reader.encode(TEXT))


def test_reembedding_with_another_embedder_and_k(
    full: ContextStore, tiny_reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_embedder(tiny_reader, chunk_tokens=16)
    calls: list[tuple[int, int]] = []
    made = reembed(
        full, "novel", other, k=2, row_type="int8", progress=lambda *at: calls.append(at)
    )
    assert made.settings.k == 2
    assert made.settings.chunk_tokens == 16
    assert made.text() == TEXT
    assert calls[-1][0] == calls[-1][1] == made.num_tokens
    full.append("novel", "more", other)
    assert verify(full) == []


def test_reembedding_needs_no_rows(full: ContextStore, embedder: ExtensibleEmbedder) -> None:
    for path in files(full, ".safetensors"):
        path.unlink()
    assert reembed(full, "novel", embedder).text() == TEXT


def test_reembedding_needs_the_text(full: ContextStore, embedder: ExtensibleEmbedder) -> None:
    path = files(full, ".txt")[0]
    flip(path)
    with pytest.raises(CheckpointError, match=f"'{path.name}', but that file holds another"):
        reembed(full, "novel", embedder)
    path.unlink()
    with pytest.raises(CheckpointError, match=f"'{path.name}', but that file is missing"):
        reembed(full, "novel", embedder)
    with pytest.raises(InputError, match="has no 'none'"):
        reembed(full, "none", embedder)


def test_an_empty_context_is_reembedded(store: ContextStore, embedder: ExtensibleEmbedder) -> None:
    store.add("log", "", embedder)
    assert reembed(store, "log", embedder, k=8).settings.k == 8


def test_merged_segments_are_whole(
    full: ContextStore, embedder: ExtensibleEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth, "MERGED_TOKENS", 10_000)
    for _ in range(10):
        full.append("novel", text_of(33), embedder)
    assert verify(full) == []
