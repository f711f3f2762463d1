"""What a reader is to another."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import byte_tokenizer, tiny_llama
from torch import nn
from transformers import LlamaForCausalLM

from extensible_embedding import Reader
from extensible_embedding.evals.kinship import (
    ANOTHER,
    DERIVATIVE,
    OWN,
    compare_readers,
    reader_digest,
)


def changed(reader: Reader, change: Callable[[LlamaForCausalLM], object]) -> Reader:
    model = copy.deepcopy(reader.model)
    with torch.no_grad():
        change(model)  # type: ignore[arg-type]
    return Reader(model, reader.tokenizer, name="changed")


def resized(reader: Reader, **settings: int) -> Reader:
    config = copy.deepcopy(reader.model.config)
    for name, value in settings.items():
        setattr(config, name, value)
    return Reader(LlamaForCausalLM(config), reader.tokenizer, name="resized")


def test_a_reader_is_its_own_in_any_dtype(tiny_reader: Reader) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = copy.deepcopy(tiny_reader.model).to(dtype)
        found = compare_readers(tiny_reader, Reader(model, byte_tokenizer()))
        assert found.relation == OWN
        assert found.same_sizes
        assert found.same_tokenizer
        assert found.same_weights
        assert found.embedding_cosine == pytest.approx(1, abs=1e-4)


def test_one_changed_matrix_makes_a_derivative(tiny_reader: Reader) -> None:
    """As an adapter that was merged: token embeddings, so the fingerprint, are the same."""
    other = changed(tiny_reader, lambda model: model.model.layers[3].mlp.up_proj.weight.add_(0.01))
    assert tiny_reader.is_same(other.fingerprint)
    found = compare_readers(tiny_reader, other)
    assert (found.relation, found.same_weights) == (DERIVATIVE, False)


def test_moved_token_embeddings_make_a_derivative(tiny_reader: Reader) -> None:
    def move(model: LlamaForCausalLM) -> None:
        table = model.get_input_embeddings().weight
        table.add_(0.02 * torch.randn_like(table))

    found = compare_readers(tiny_reader, changed(tiny_reader, move))
    assert found.relation == DERIVATIVE
    assert found.embedding_cosine is not None
    assert 0.9 < found.embedding_cosine < 0.999


def test_other_names_of_weights_make_a_derivative(tiny_reader: Reader) -> None:
    """As an adapter that was not merged, and as quantised layers."""

    def wrap(model: LlamaForCausalLM) -> None:
        mlp = model.model.layers[0].mlp
        mlp.up_proj = nn.Sequential(mlp.up_proj)  # type: ignore[assignment]

    found = compare_readers(tiny_reader, changed(tiny_reader, wrap))
    assert (found.relation, found.same_weights) == (DERIVATIVE, False)


def test_another_model_of_the_same_sizes(tiny_reader: Reader) -> None:
    found = compare_readers(tiny_reader, Reader(tiny_llama(seed=7), byte_tokenizer()))
    assert (found.relation, found.same_sizes, found.same_tokenizer) == (ANOTHER, True, True)
    assert found.embedding_cosine == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("name", ["hidden_size", "vocab_size", "num_hidden_layers"])
def test_other_sizes(tiny_reader: Reader, name: str) -> None:
    value = getattr(tiny_reader.model.config, name)
    found = compare_readers(tiny_reader, resized(tiny_reader, **{name: value * 2}))
    assert (found.relation, found.same_sizes) == (ANOTHER, False)
    assert (found.embedding_cosine is None) == (name != "num_hidden_layers")


def test_another_tokenizer(tiny_reader: Reader) -> None:
    swapped, split = byte_tokenizer(), byte_tokenizer()
    a, b = swapped.convert_tokens_to_ids(["a", "b"])
    vocabulary = swapped.get_vocab() | {"a": b, "b": a}
    swapped.get_vocab = lambda: vocabulary  # type: ignore[method-assign]
    split.add_tokens(["return"])
    for tokenizer in (swapped, split):
        found = compare_readers(tiny_reader, Reader(tiny_reader.model, tokenizer))
        assert (found.relation, found.same_tokenizer) == (ANOTHER, False)


def test_a_token_that_no_text_has_leaves_the_tokenizer_the_same(tiny_reader: Reader) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|tool|>"]})
    assert compare_readers(tiny_reader, Reader(tiny_reader.model, tokenizer)).relation == OWN


def test_other_positions_with_the_same_weights_make_a_derivative(tiny_reader: Reader) -> None:
    """As where a configuration was edited to read longer texts."""
    model = copy.deepcopy(tiny_reader.model)
    model.config.rope_parameters = {**model.config.rope_parameters, "rope_theta": 500.0}
    found = compare_readers(tiny_reader, Reader(model, byte_tokenizer()))
    assert found.same_weights
    assert not found.same_settings
    assert found.relation == DERIVATIVE
    assert reader_digest(tiny_reader) != reader_digest(Reader(model, byte_tokenizer()))


def test_the_digest_of_a_reader_is_the_same_after_saving(
    tiny_reader: Reader, tiny_reader_folder: Path
) -> None:
    assert reader_digest(tiny_reader) == reader_digest(Reader.from_pretrained(tiny_reader_folder))
