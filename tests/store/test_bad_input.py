"""Whatever a store finds, it serves what was committed or says in one sentence why not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_embedder
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from extensible_embedding import ExtensibleEmbedder, Reader
from extensible_embedding.errors import CheckpointError, InputError, MismatchError
from extensible_embedding.store.manifest import MANIFEST
from extensible_embedding.store.store import ContextStore

from .conftest import OTHER, TEXT, contents, files_in, folder_of, refused


def signed(values: dict[str, Any]) -> bytes:
    """A manifest with the checksum that these values have."""
    values = {key: value for key, value in values.items() if key != "checksum"}
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    values["checksum"] = hashlib.sha256(canonical.encode()).hexdigest()
    return (json.dumps(values, indent=1) + "\n").encode()


def change_manifest(store: ContextStore, change: Callable[[dict[str, Any]], object]) -> None:
    """Writes another manifest for the novel, with the right checksum."""
    path = folder_of(store, "novel") / MANIFEST
    values = json.loads(path.read_text())
    change(values)
    path.write_bytes(signed(values))


def change_tensors(
    store: ContextStore, change: Callable[[dict[str, torch.Tensor]], object], segment: int = 0
) -> None:
    """Writes other rows for the novel, under the right name and with the right checksum."""
    folder = folder_of(store, "novel")
    values = json.loads((folder / MANIFEST).read_text())
    entry = values["segments"][segment]
    old = folder / entry["rows_file"]
    with safe_open(old, framework="pt") as file:
        metadata = file.metadata()
    tensors = {name: tensor.clone() for name, tensor in load_file(old).items()}
    change(tensors)
    save_file(tensors, folder / "new", metadata=metadata)
    data = (folder / "new").read_bytes()
    entry["rows_file"] = f"{hashlib.sha256(data).hexdigest()}.safetensors"
    entry["rows_file_bytes"] = len(data)
    (folder / "new").rename(folder / entry["rows_file"])
    (folder / MANIFEST).write_bytes(signed(values))


CORRUPT: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "truncated": lambda data: data[: len(data) // 2],
    "no object": lambda data: b"[]",
    "another object": lambda data: b'{"format": "a cake"}',
    "another name": lambda data: data.replace(b"novel", b"hovel"),
    "fewer tokens": lambda data: data.replace(b'"num_tokens": 96', b'"num_tokens": 95'),
    "not ASCII": lambda data: data.replace(b"novel", b"nov\xffl"),
    "deep": lambda data: b"[" * 200_000,
    "no checksum": lambda data: data.replace(b'"checksum"', b'"chequesum"'),
}


@pytest.mark.parametrize("damage", CORRUPT)
def test_a_corrupt_manifest_costs_one_context(
    full: ContextStore, embedder: ExtensibleEmbedder, damage: str
) -> None:
    path = folder_of(full, "novel") / MANIFEST
    data = CORRUPT[damage](path.read_bytes())
    assert data != path.read_bytes()
    path.write_bytes(data)
    before = files_in(path.parent)
    for refuse in (
        lambda: full.open("novel"),
        lambda: list(full),
        lambda: full.append("novel", "x", embedder),
        lambda: full.rename("novel", "new"),
    ):
        with refused(CheckpointError, f"{path.parent.name}.* but "):
            refuse()
    full.compact()
    assert files_in(path.parent) == before
    assert full["other"].text() == OTHER
    full.append("other", "x", embedder)
    full.add("new", TEXT, embedder)  # the same text: is not taken from the damaged one
    full.delete("novel")
    full.add("novel", TEXT, embedder)
    assert full["novel"].text() == full["new"].text() == TEXT


CRAFTED: dict[str, Callable[[dict[str, Any]], object]] = {
    "a path out": lambda values: values["segments"][0].update(rows_file="../../x.safetensors"),
    "an absolute path": lambda values: values["segments"][0].update(text_file="/etc/passwd"),
    "no path": lambda values: values["segments"][0].update(rows_file=3),
    "no list": lambda values: values.update(segments=5),
    "no object": lambda values: values.update(segments=["x"]),
    "an unknown key": lambda values: values["segments"][0].update(colour="red"),
    "a missing key": lambda values: values.pop("title"),
    "no settings": lambda values: values.update(settings=None),
    "no number": lambda values: values["segments"][0].update(num_tokens="many"),
    "another name": lambda values: values.update(name="other"),
    "no name": lambda values: values.update(name=7),
    "another type": lambda values: values["settings"].update(row_type="int4"),
    "no k": lambda values: values["settings"].update(k=0),
    "other counts": lambda values: values["segments"][0].update(num_rows=-1),
    "other bytes": lambda values: values["segments"][0].update(rows_file_bytes=7),
    "another down-sampling": lambda values: values["settings"].update(down_sampling="magic"),
}


@pytest.mark.parametrize("change", CRAFTED)
def test_a_manifest_that_lies_is_refused(full: ContextStore, change: str) -> None:
    change_manifest(full, CRAFTED[change])
    with refused(CheckpointError, "but "):
        full["novel"].context(8)
    assert full["other"].text() == OTHER


@pytest.mark.parametrize(
    ("version", "advice"),
    [(2, "install a newer"), (999, "install a newer"), (0, "add the text"), (None, "add the text")],
)
def test_other_format_versions_are_refused(
    full: ContextStore, embedder: ExtensibleEmbedder, version: object, advice: str
) -> None:
    change_manifest(full, lambda values: values.update(format_version=version, more="fields"))
    before = files_in(full.place.folder)
    for refuse in (
        lambda: full.open("novel"),
        lambda: full.append("novel", "x", embedder),
        lambda: list(full.manifests()),
    ):
        with refused(MismatchError, f"version 1 can be read, but .* version {version}; {advice}"):
            refuse()
    full.compact()
    assert files_in(full.place.folder) == before
    full.append("other", "x", embedder)
    full.add("new", TEXT, embedder)
    assert full["other"].text() == OTHER + "x"


def test_rows_of_the_wrong_width(full: ContextStore) -> None:
    change_tensors(full, lambda tensors: tensors.update(rows=tensors["rows"][:, :-1].clone()))
    with refused(CheckpointError, "24 rows of 32 numbers in bfloat16, but .* has not; repair"):
        full.open("novel")


@pytest.mark.parametrize("name", ["rows", "token_ids", "row_bytes"])
def test_tensors_of_the_wrong_type(full: ContextStore, name: str) -> None:
    change_tensors(full, lambda tensors: tensors.update({name: tensors[name].float()}))
    with refused(CheckpointError, "but .* has not; repair"):
        full.open("novel")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_that_are_no_numbers(full: ContextStore, value: float) -> None:
    change_tensors(full, lambda tensors: tensors["rows"][7].fill_(value))
    for k in (4, 16):
        with refused(CheckpointError, "rows of finite numbers, but .* has NaN or infinity"):
            full["novel"].context(k)
    assert full["novel"].text() == TEXT
    full["other"].context()


def test_scales_that_are_no_numbers(store: ContextStore, embedder: ExtensibleEmbedder) -> None:
    store.add("novel", TEXT, embedder, row_type="int8")
    change_tensors(store, lambda tensors: tensors["scales"][7].fill_(float("nan")))
    with refused(CheckpointError, "has NaN or infinity"):
        store["novel"].context()


def test_an_embedder_that_makes_no_numbers(
    store: ContextStore, embedder: ExtensibleEmbedder
) -> None:
    with torch.no_grad():
        embedder.projection.weight.fill_(float("nan"))
    with refused(InputError, "this embedder makes NaN or infinity"):
        store.add("novel", TEXT, embedder)
    assert len(store) == 0


def swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def test_segments_swapped_within_a_context(
    full: ContextStore, embedder: ExtensibleEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("extensible_embedding.store.growth.MERGED_TOKENS", 0)
    full.add("log", "", embedder)
    for start in (0, 32):
        full.append("log", TEXT[start : start + 32], embedder)
    folder, manifest = folder_of(full, "log"), full.manifest("log")
    swap(*(folder / each.rows_file for each in manifest.segments))
    with refused(CheckpointError, "rows of its own text and settings, but .* another"):
        full.open("log")
    swap(*(folder / each.rows_file for each in manifest.segments))
    swap(*(folder / each.text_file for each in manifest.segments))
    with refused(CheckpointError, "that file holds another"):
        full["log"].text()


@pytest.mark.parametrize("what", ["text", "embedder"])
def test_segments_swapped_between_contexts(
    store: ContextStore, embedder: ExtensibleEmbedder, tiny_reader: Reader, what: str
) -> None:
    """Of the same size and shape; with the same text, but rows of another embedder."""
    other = make_embedder(tiny_reader, chunk_tokens=32)
    if what == "embedder":
        with torch.no_grad():
            other.projection.weight.add_(1.0)
    store.add("one", TEXT[:64], embedder)
    store.add("two", TEXT[:64] if what == "embedder" else TEXT[1:65], other)
    swap(
        *(
            folder_of(store, name) / store[name].manifest.segments[0].rows_file
            for name in ("one", "two")
        )
    )
    for name in ("one", "two"):
        with refused(CheckpointError, "rows of its own text and settings, but .* another"):
            store.open(name)


def test_a_manifest_swapped_with_anothers(full: ContextStore) -> None:
    swap(*(folder_of(full, name) / MANIFEST for name in ("novel", "other")))
    for name in ("novel", "other"):
        with refused(CheckpointError, "is that of another context"):
            full.open(name)


@pytest.mark.parametrize("ending", ["rows_file", "text_file"])
@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_damage_is_not_shared_by_a_second_name(
    full: ContextStore, embedder: ExtensibleEmbedder, ending: str, damage: str
) -> None:
    expected = full["novel"].context().rows
    path = folder_of(full, "novel") / getattr(full.manifest("novel").segments[0], ending)
    data = bytearray(path.read_bytes())
    path.unlink()
    if damage == "flipped":
        data[-1] ^= 1
        path.write_bytes(bytes(data))
    second = full.add("second", TEXT, embedder)
    assert torch.equal(second.context().rows, expected)
    assert second.text() == TEXT


def test_an_empty_context_lives_as_any_other(
    store: ContextStore, embedder: ExtensibleEmbedder
) -> None:
    for name in ("one", "two"):
        store.add(name, "", embedder)
    store.compact()
    store.rename("one", "three")
    store.append("three", TEXT, embedder)
    store.delete("two")
    assert contents(store).keys() == {"three"}
    assert store["three"].text() == TEXT
