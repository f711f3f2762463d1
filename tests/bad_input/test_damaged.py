"""Damaged or foreign checkpoints and contexts."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from extensible_embedding import (
    CheckpointError,
    Context,
    ExtensibleEmbedder,
    Reader,
)
from extensible_embedding import folders as folders_module
from extensible_embedding.checkpoint import CONFIG, WEIGHTS
from extensible_embedding.context import MANIFEST, TENSORS

from .conftest import refusal


def test_an_embedder_that_is_a_file(tmp_path: Path, tiny_reader: Reader) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"x")
    refusal(CheckpointError, path, lambda: ExtensibleEmbedder.from_pretrained(path, tiny_reader))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[: len(data) // 2], "truncated"),
        (lambda data: data[:6], "truncated"),
        (lambda data: b"", "truncated"),
        (lambda data: b"\xff" * 8 + data[8:], "damaged"),
        (lambda data: pickle.dumps({"a": 1}), "a pickle"),
    ],
)
def test_damaged_weights_and_rows(
    tiny_reader: Reader,
    saved_embedder: Path,
    saved_context: Path,
    damage: Callable[[bytes], bytes],
    words: str,
) -> None:
    for path, load in (
        (saved_embedder / WEIGHTS, lambda f: ExtensibleEmbedder.from_pretrained(f, tiny_reader)),
        (saved_context / TENSORS, Context.load),
    ):
        path.write_bytes(damage(path.read_bytes()))
        message = refusal(CheckpointError, path, lambda path=path, load=load: load(path.parent))
        assert words in message


def test_a_pickle_is_not_opened(tmp_path: Path, tiny_reader: Reader, saved_embedder: Path) -> None:
    marker = tmp_path / "opened"

    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(marker),)

    for name in ("pytorch_model.bin", WEIGHTS):
        (saved_embedder / WEIGHTS).unlink(missing_ok=True)
        torch.save({"projection.weight": Evil()}, saved_embedder / name)
        message = refusal(
            CheckpointError,
            name,
            lambda: ExtensibleEmbedder.from_pretrained(saved_embedder, tiny_reader),
        )
        assert "pickle" in message
    assert not marker.exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("int8", [False, True])
def test_weights_that_are_not_finite(
    tmp_path: Path,
    tiny_reader: Reader,
    tiny_embedder: ExtensibleEmbedder,
    value: float,
    int8: bool,
) -> None:
    tiny_embedder.save_pretrained(tmp_path / "e", int8=int8)
    tensors = load_file(tmp_path / "e" / WEIGHTS)
    tensors["projection.weight.scale" if int8 else "projection.weight"][3, 0] = value
    save_file(tensors, tmp_path / "e" / WEIGHTS)
    refusal(
        CheckpointError,
        "'projection.weight'",
        lambda: ExtensibleEmbedder.from_pretrained(tmp_path / "e", tiny_reader),
    )


@pytest.mark.parametrize(
    ("edit", "name"),
    [
        (lambda t: t.pop("projection.weight"), "projection.weight"),
        (lambda t: t.update(extra=torch.ones(1)), "extra"),
        (lambda t: t.update({"projection.weight": torch.ones(2, 2)}), "projection.weight"),
        (
            lambda t: t.update({"projection.weight": torch.ones(32, 32, dtype=torch.int64)}),
            "projection.weight",
        ),
        (
            lambda t: t.update({"projection.weight.int8": torch.ones(32, 32).to(torch.int8)}),
            "projection.weight",
        ),
    ],
)
def test_weights_that_are_not_those_of_the_configuration(
    tiny_reader: Reader, saved_embedder: Path, edit: Callable[[Any], None], name: str
) -> None:
    tensors = load_file(saved_embedder / WEIGHTS)
    edit(tensors)
    save_file(tensors, saved_embedder / WEIGHTS)
    refusal(
        CheckpointError,
        name,
        lambda: ExtensibleEmbedder.from_pretrained(saved_embedder, tiny_reader),
    )


def rewrite(path: Path, **changes: Any) -> None:
    """Changes keys of a JSON file; None removes one."""
    value = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: item for key, item in value.items() if item is not None}))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, CONFIG),
        ("", "cannot be read"),
        ('{"format_version": 1', "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[1]", "holds a list"),
        ("null", "holds a NoneType"),
        ("\u20ac", "cannot be read"),
    ],
)
def test_a_corrupt_configuration(
    tiny_reader: Reader, saved_embedder: Path, text: str | None, words: str
) -> None:
    path = saved_embedder / CONFIG
    path.unlink()
    if text is not None:
        path.write_bytes(text.encode("cp1252"))
    message = refusal(
        CheckpointError,
        saved_embedder,
        lambda: ExtensibleEmbedder.from_pretrained(saved_embedder, tiny_reader),
    )
    assert words in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format_version": 2}, "has version 2"),
        ({"format_version": None}, "has version None"),
        ({"surprise": 1}, "'surprise' is 1"),
        ({"reader": None}, "'reader' is None"),
        ({"reader": "SmolLM2"}, "'reader' is 'SmolLM2'"),
        ({"training": [1]}, "'training' is [1]"),
        ({"embedder": [1]}, "'embedder' is [1]"),
        ({"embedder": {"num_layrs": 2}}, "num_layrs"),
        ({"embedder": {"num_layers": 0}}, "but it is 0"),
        ({"embedder": {"num_layers": "2"}}, "but it is '2'"),
        ({"embedder": {"down_sampling": "dice"}}, "'dice'"),
        ({"embedder": {"down_sampling": ["mean"]}}, "list"),
        ({"embedder": {"residual": "yes"}}, "'residual' is 'yes'"),
    ],
)
def test_a_configuration_with_wrong_values(
    tiny_reader: Reader, saved_embedder: Path, changes: dict[str, Any], words: str
) -> None:
    rewrite(saved_embedder / CONFIG, **changes)
    message = refusal(
        CheckpointError,
        saved_embedder,
        lambda: ExtensibleEmbedder.from_pretrained(saved_embedder, tiny_reader),
    )
    assert words in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format_version": 0}, "has version 0"),
        ({"k": "4"}, "'k', but"),
        ({"k": 0}, "has 0"),
        ({"k": True}, "has True"),
        ({"k": 4.0}, "has 4.0"),
        ({"k": 32}, "has k=32"),
        ({"chunk_tokens": 0}, "has 0"),
        ({"chunk_tokens": -16}, "has -16"),
        ({"down_sampling": "dice"}, "has 'dice'"),
        ({"down_sampling": 3}, "has 3"),
        ({"title": 5}, "has 5"),
        ({"reader_fingerprint": None}, "lacks it"),
        ({"num_rows": 11}, "promises 11"),
        ({"num_rows": "10"}, "has '10'"),
        ({"num_tokens": 41}, "promises 10"),
        ({"num_tokens": 39}, "has (40,)"),
        ({"num_tokens": 10**15, "k": 16}, "promises 10"),
        ({"row_width": 31}, "has (10, 32)"),
        ({"surprise": 1}, "has it as 1"),
    ],
)
def test_a_manifest_with_wrong_values(
    saved_context: Path, changes: dict[str, Any], words: str
) -> None:
    rewrite(saved_context / MANIFEST, **changes)
    message = refusal(CheckpointError, saved_context, lambda: Context.load(saved_context))
    assert words in message


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: t.pop("rows"), "has ['token_ids']"),
        (lambda t: t.update(more=torch.ones(1)), "has ['more', 'rows', 'token_ids']"),
        (lambda t: t.update(rows=torch.ones(10, 31)), "has (10, 31)"),
        (lambda t: t.update(rows=torch.ones(9, 32)), "has (9, 32)"),
        (lambda t: t.update(rows=torch.ones(320)), "has (320,)"),
        (lambda t: t.update(rows=torch.ones(10, 32, dtype=torch.int8)), "torch.int8"),
        (lambda t: t.update(token_ids=torch.ones(40)), "torch.float32"),
        (lambda t: t.update(token_ids=torch.arange(40)[None]), "has (1, 40)"),
        (lambda t: t.update(token_ids=torch.arange(-3, 37)), "has -3"),
        (lambda t: t["rows"][9, 31:].fill_(float("nan")), "has NaN or infinity"),
        (lambda t: t["rows"][0, :1].fill_(float("inf")), "has NaN or infinity"),
    ],
)
def test_rows_that_are_not_those_of_the_manifest(
    saved_context: Path, edit: Callable[[Any], None], words: str
) -> None:
    tensors = load_file(saved_context / TENSORS)
    edit(tensors)
    save_file(tensors, saved_context / TENSORS)
    message = refusal(CheckpointError, saved_context, lambda: Context.load(saved_context))
    assert words in message


@pytest.mark.parametrize("name", [MANIFEST, TENSORS])
def test_a_context_without_one_of_its_files(saved_context: Path, name: str) -> None:
    (saved_context / name).unlink()
    refusal(CheckpointError, name, lambda: Context.load(saved_context))


@pytest.mark.parametrize("name", [MANIFEST, TENSORS])
def test_half_a_context_is_none(saved_context: Path, name: str) -> None:
    assert Context.is_saved_at(saved_context)
    (saved_context / name).unlink()
    assert not Context.is_saved_at(saved_context)


def test_a_save_that_was_cut_off_is_no_context(saved_context: Path, context: Context) -> None:
    saved_context.rename(folders_module._previous(saved_context))
    assert not Context.is_saved_at(saved_context)
    context.save(saved_context)
    assert Context.is_saved_at(saved_context)


def test_a_context_that_is_not_there_or_a_file(tmp_path: Path, saved_context: Path) -> None:
    refusal(CheckpointError, tmp_path / "no", lambda: Context.load(tmp_path / "no"))
    path = saved_context / MANIFEST
    refusal(CheckpointError, path, lambda: Context.load(path))
