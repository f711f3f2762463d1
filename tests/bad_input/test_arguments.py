"""Arguments that no call takes, and embedders for another reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_llama

from extensible_embedding import (
    Context,
    ExtensibleEmbedder,
    InputError,
    MismatchError,
    Reader,
    read_document,
)
from extensible_embedding.prompt import context_rows

from .conftest import IDS, refusal


def test_a_folder_is_no_document(tmp_path: Path) -> None:
    refusal(InputError, tmp_path, lambda: read_document(tmp_path))


@pytest.mark.parametrize("k", [0, -1, 2.5, "abc", True, None, float("nan"), [4]])
def test_k_is_no_scale_factor(
    tiny_embedder: ExtensibleEmbedder, context: Context, k: object
) -> None:
    refusal(InputError, repr(k), lambda: tiny_embedder.compress(IDS, k=k))  # type: ignore[arg-type]
    refusal(InputError, repr(k), lambda: context.at(k))  # type: ignore[arg-type]


@pytest.mark.parametrize(("k", "n", "limit"), [(17, 40, 16), (8, 7, 7), (16, 1, 1)])
def test_k_is_larger_than_chunk_or_context(
    tiny_embedder: ExtensibleEmbedder, k: int, n: int, limit: int
) -> None:
    message = refusal(InputError, f"k is {k}", lambda: tiny_embedder.compress(IDS[:n], k=k))
    assert str(limit) in message


@pytest.mark.parametrize("empty", ["", [], torch.empty(0), torch.empty(0, dtype=torch.long)])
def test_an_empty_context(tiny_embedder: ExtensibleEmbedder, empty: Any) -> None:
    refusal(InputError, "has none", lambda: tiny_embedder.compress(empty, k=4))


@pytest.mark.parametrize("ids", [[0, 260], [-1, 5], [10**12, 0]])
def test_ids_out_of_the_vocabulary(tiny_embedder: ExtensibleEmbedder, ids: list[int]) -> None:
    message = refusal(InputError, max(ids), lambda: tiny_embedder.compress(ids, k=2))
    assert str(min(ids)) in message
    assert "between 0 and 259" in message


@pytest.mark.parametrize("ids", [[0.5, 1.0], [[1, 2], [3, 4]], torch.tensor(3)])
def test_ids_that_are_no_flat_whole_numbers(tiny_embedder: ExtensibleEmbedder, ids: Any) -> None:
    shape = tuple(torch.as_tensor(ids).shape)
    refusal(InputError, shape, lambda: tiny_embedder.compress(ids, k=2))


def other_reader(tiny_reader: Reader, change: str) -> Reader:
    if change == "weights":
        return Reader(tiny_llama(seed=9), tiny_reader.tokenizer, name="other")
    config = type(tiny_reader.model.config)(**tiny_reader.model.config.to_dict())
    setattr(config, change, 64 if change == "hidden_size" else 300)
    config.head_dim = config.hidden_size // config.num_attention_heads
    model = type(tiny_reader.model)(config)
    return Reader(model, tiny_reader.tokenizer, name="other")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("hidden_size", "serves readers of its own hidden size, 32, but 'other' has 64; use the"),
        ("vocab_size", "serves readers of its own vocab size, 260, but 'other' has 300; use the"),
        ("weights", "but 'other' has {fingerprint}; use that reader, or pass derivative=True"),
    ],
)
def test_an_embedder_for_another_reader(
    tiny_reader: Reader, saved_embedder: Path, change: str, words: str
) -> None:
    other = other_reader(tiny_reader, change)
    message = refusal(
        MismatchError, "tiny", lambda: ExtensibleEmbedder.from_pretrained(saved_embedder, other)
    )
    assert words.format(fingerprint=other.fingerprint[:16]) in message
    assert str(saved_embedder) in message


def test_a_context_for_another_reader(tiny_reader: Reader, context: Context) -> None:
    other = other_reader(tiny_reader, "weights")
    message = refusal(MismatchError, "'Old'", lambda: context_rows(other, context, 4))
    assert tiny_reader.fingerprint[:16] in message
    assert other.fingerprint[:16] in message


def test_a_derivative_with_fewer_layers(tiny_reader: Reader, saved_embedder: Path) -> None:
    config = type(tiny_reader.model.config)(**tiny_reader.model.config.to_dict())
    config.num_hidden_layers = 1
    small = Reader(type(tiny_reader.model)(config), tiny_reader.tokenizer, name="small")
    refusal(
        MismatchError,
        "num_layers is 2",
        lambda: ExtensibleEmbedder.from_pretrained(saved_embedder, small, derivative=True),
    )
