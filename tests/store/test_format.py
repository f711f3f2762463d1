"""docs/store-format.md is what a store writes, and its decoder reads it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from extensible_embedding import ExtensibleEmbedder
from extensible_embedding.chunks import chunk_spans
from extensible_embedding.errors import CheckpointError, MismatchError
from extensible_embedding.store.manifest import Manifest, Settings, decode, encode
from extensible_embedding.store.segment import ROW_TYPES, Segment
from extensible_embedding.store.store import ContextStore

from .conftest import NON_ASCII, folder_of, text_of

PAGE = (Path(__file__).parents[2] / "docs" / "store-format.md").read_text(encoding="utf-8")
TEXT = text_of(150) + NON_ASCII * 4


def decoder() -> Any:
    """The one on the page."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    scope: dict[str, Any] = {}
    exec(code, scope)
    return scope["read_context"]


@pytest.fixture(params=["bfloat16", "int8"])
def grown(
    store: ContextStore, embedder: ExtensibleEmbedder, request: pytest.FixtureRequest
) -> ContextStore:
    """A context of several segments, and others beside it."""
    store.add("another", text_of(60)[7:], embedder)
    store.add(
        "novel", TEXT[:50], embedder, row_type=request.param, metadata={"a": "\u00e9", "b": 1}
    )
    for start in range(50, len(TEXT), 40):
        store.append("novel", TEXT[start : start + 40], embedder)
    return store


def test_the_decoder_reads_what_the_store_reads(grown: ContextStore) -> None:
    rows, token_ids, text = decoder()(grown.place.folder, "novel")
    stored = grown["novel"]
    assert len(stored.manifest.segments) > 1
    assert torch.equal(rows, stored.context().rows.float())
    assert torch.equal(token_ids.long(), stored.token_ids())
    assert text == stored.text() == TEXT


def test_the_decoder_knows_no_other_context(grown: ContextStore) -> None:
    for name in ("none", "NOVEL"):
        with pytest.raises(KeyError, match=name):
            decoder()(grown.place.folder, name)


@pytest.mark.parametrize("step", ["rename", "put"])
def test_the_decoder_after_a_rename_that_was_killed(
    grown: ContextStore, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Before or after the folder has its new name, which is the commit."""

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    where = "os.rename" if step == "rename" else f"{ContextStore.__module__}.ContextStore.put"
    with monkeypatch.context() as patch:
        patch.setattr(where, killed)
        with pytest.raises(KeyboardInterrupt):
            grown.rename("novel", "tale")
    old, new = ("novel", "tale") if step == "rename" else ("tale", "novel")
    assert decoder()(grown.place.folder, old)[2] == grown[old].text() == TEXT
    with pytest.raises(KeyError, match=new):
        decoder()(grown.place.folder, new)
    assert new not in grown


def test_the_page_names_every_field() -> None:
    rows = re.findall(r"^\|(.*?)\|", PAGE, flags=re.MULTILINE)
    named = {name for row in rows for name in re.findall("`(.*?)`", row)}
    for kind in (Manifest, Settings, Segment):
        assert {each.name for each in dataclasses.fields(kind)} <= named
    assert "checksum" in named
    assert set(ROW_TYPES) <= set(re.findall("`(.*?)`", PAGE))


def canonical_hash(value: object) -> str:
    data = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(data.encode("ascii")).hexdigest()


def test_hashes_are_those_of_the_page(grown: ContextStore) -> None:
    folder = folder_of(grown, "novel")
    manifest = json.loads((folder / "manifest.json").read_text("ascii"))
    checksum = manifest.pop("checksum")
    assert checksum == canonical_hash(manifest)
    assert folder.name == hashlib.sha256(b"novel").hexdigest()[:40]
    chain = ""
    for segment in manifest["segments"]:
        data = (folder / segment["rows_file"]).read_bytes()
        text = (folder / segment["text_file"]).read_bytes()
        assert segment["rows_file"] == f"{hashlib.sha256(data).hexdigest()}.safetensors"
        assert segment["text_file"] == f"{hashlib.sha256(text).hexdigest()}.txt"
        assert (segment["rows_file_bytes"], segment["text_bytes"]) == (len(data), len(text))
        with safe_open(folder / segment["rows_file"], framework="pt") as file:
            metadata, ids = file.metadata(), file.get_tensor("token_ids")
            ends = file.get_tensor("row_bytes")
        chain = chained(chain, ids, ends, text, manifest["settings"])
        assert segment["chain"] == chain
        assert metadata == {"made_of": f"{chain} {canonical_hash(manifest['settings'])}"}


def chained(
    before: str, ids: torch.Tensor, ends: torch.Tensor, text: bytes, settings: dict[str, Any]
) -> str:
    """The chain after a segment, chunk by chunk, in the page's words."""
    first_row, start = 0, 0
    for first, last in chunk_spans(len(ids), settings["chunk_tokens"]):
        first_row += -(-(last - first) // settings["k"])
        end = int(ends[first_row - 1])
        data = before.encode("ascii") + (last - first).to_bytes(8, "little")
        data += b"".join(int(each).to_bytes(4, "little", signed=True) for each in ids[first:last])
        before, start = hashlib.sha256(data + text[start:end]).hexdigest(), end
    assert end == len(text)
    return before


def test_names_are_keyed_as_the_page_says(
    store: ContextStore, embedder: ExtensibleEmbedder
) -> None:
    store.add("\uff33tra\u00dfe", "text", embedder)
    (folder,) = (store.place.folder / "contexts").iterdir()
    assert folder.name == hashlib.sha256(b"strasse").hexdigest()[:40]


def test_the_tensors_are_those_of_the_page(grown: ContextStore) -> None:
    stored = grown["novel"]
    kept = stored.settings
    for segment in stored.manifest.segments:
        path = folder_of(grown, "novel") / segment.rows_file
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        shapes = {name: (tuple(each.shape), each.dtype) for name, each in found.items()}
        rows, tokens = segment.num_rows, segment.num_tokens
        expected = {
            "rows": ((rows, kept.row_width), ROW_TYPES[kept.row_type]),
            "token_ids": ((tokens,), torch.int32),
            "row_bytes": ((rows,), torch.int64),
        }
        if kept.row_type == "int8":
            expected["scales"] = ((rows,), torch.float32)
        assert shapes == expected
        whole, rest = divmod(tokens, kept.chunk_tokens)
        assert rows == whole * -(-kept.chunk_tokens // kept.k) + -(-rest // kept.k)
        if segment is not stored.manifest.segments[-1]:
            assert rest == 0


def test_no_bit_of_a_manifest_can_change_unseen(
    store: ContextStore, embedder: ExtensibleEmbedder
) -> None:
    """Nor one that a value does not show: a digit behind the last, a letter's case in an escape."""
    made = store.add("novel", "text", embedder, title="caf\u00ea", metadata={"x": [1.5e300, 1e-7]})
    data = encode(made.manifest)
    assert data == (folder_of(store, "novel") / "manifest.json").read_bytes()
    assert decode(data, "") == made.manifest
    for place in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        with pytest.raises((CheckpointError, MismatchError)):
            decode(bytes(flipped), "")
