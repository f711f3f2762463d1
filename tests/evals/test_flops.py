"""Operations by formula are those that torch counts, and those that a reading was seen to take."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from conftest import VOCAB_SIZE, byte_tokenizer, make_embedder
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from extensible_embedding import ExtensibleEmbedder, Reader
from extensible_embedding.evals.flops import (
    causal_pairs,
    chunk_flops,
    compress_flops,
    head_flops,
    layer_bound,
    layers_flops,
    read_flops,
    shape_of,
    train_flops,
)
from extensible_embedding.train.two_stream import TwoStreamModel

LLAMA = LlamaConfig(
    vocab_size=VOCAB_SIZE,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=256,
)
GPT2 = GPT2Config(vocab_size=VOCAB_SIZE, n_embd=32, n_layer=3, n_head=4, n_positions=64)


def eager(config: LlamaConfig | GPT2Config) -> Reader:
    """Attention in plain products, which torch counts: all pairs, also those that are masked."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return Reader(model, byte_tokenizer())


def counted(run: Callable[[], object]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_reading_takes_what_torch_counts(config: LlamaConfig | GPT2Config) -> None:
    reader, ids = eager(config), torch.randint(0, 256, (1, 20))
    shape = shape_of(config)
    found = counted(lambda: reader.model(ids, logits_to_keep=3))
    assert found == layers_flops(shape, 3, 20, 20 * 20) + head_flops(shape, 3)


@pytest.mark.parametrize("places", [None, torch.tensor([3, 7, 11, 15])], ids=["all", "picked"])
@pytest.mark.parametrize("residual", [True, False])
def test_compressing_takes_what_torch_counts(residual: bool, places: torch.Tensor | None) -> None:
    embedder = make_embedder(eager(LLAMA), residual=residual)
    embedder.layers.set_attn_implementation("eager")  # type: ignore[operator]
    shape, chunks = shape_of(LLAMA), torch.randint(0, 256, (5, 16))
    found = counted(lambda: embedder(chunks, places))
    masked = layers_flops(shape, 2, 0, 16 * 16 - causal_pairs(16))
    picked = None if places is None else len(places)
    assert found == 5 * (chunk_flops(shape, embedder.config, 16, picked) + masked)


def test_a_quantised_configuration_has_the_shape_of_its_model() -> None:
    quantised = LlamaConfig(**{**LLAMA.to_dict(), "quantization_config": {"bits": 4}})
    assert shape_of(quantised) == shape_of(LLAMA)


def test_operations_of_a_context_by_hand(tiny_embedder: ExtensibleEmbedder) -> None:
    """Layers: 2 * 32 * (32 + 32) + 2 * 32 * 16 + 3 * 32 * 64; chunks of 16 tokens.

    At least eight outputs of a chunk are computed.
    """
    shape = shape_of(tiny_embedder.reader.model.config)
    weights, mlp = 32 * (32 + 32) + 2 * 32 * 16 + 3 * 32 * 64, 3 * 32 * 64
    assert (shape.layer_weights, shape.mlp_weights, shape.attention_width) == (weights, mlp, 32)

    def chunk(tokens: int, rows: int) -> int:
        layers = 2 * (2 * weights * tokens + 4 * 32 * tokens * (tokens + 1) // 2)
        return layers - 2 * mlp * (tokens - rows) + 2 * 32 * 32 * rows

    assert compress_flops(shape, tiny_embedder.config, 40, 4) == 2 * chunk(16, 8) + chunk(8, 8)
    wide = dataclasses.replace(tiny_embedder.config, chunk_tokens=64)
    assert compress_flops(shape, wide, 128, 4) == 2 * chunk(64, 16)
    assert compress_flops(shape, tiny_embedder.config, 40, 1) == 0
    read = 4 * (2 * weights * 9 + 4 * 32 * 45) + 2 * 32 * 260
    assert read_flops(shape, 9) == read


def test_averaged_rows_spare_nothing(tiny_reader: Reader) -> None:
    embedder = make_embedder(tiny_reader, down_sampling="mean")
    shape = shape_of(tiny_reader.model.config)
    whole = compress_flops(shape, embedder.config, 32, 4)
    assert whole == 2 * chunk_flops(shape, embedder.config, 16)


def test_new_rows_see_themselves_and_all_before() -> None:
    assert causal_pairs(3) == 1 + 2 + 3
    assert causal_pairs(2, 5) == 6 + 7


def test_the_bound_of_layers() -> None:
    assert layer_bound(8, 30, 8, online=True) == pytest.approx(1 / (8 / 30 + 1 / 8))
    assert layer_bound(8, 30, 8, online=False) == 8
    assert layer_bound(8, 30, 1, online=True) == 1


@pytest.mark.parametrize(
    ("num_chunks", "chunk_tokens", "k"), [(4, 16, 4), (3, 8, 2), (2, 16, 16), (4, 8, 2), (4, 8, 3)]
)
def test_a_training_step_takes_what_torch_counts(
    num_chunks: int, chunk_tokens: int, k: int
) -> None:
    embedder = make_embedder(eager(LLAMA))
    model, ids = TwoStreamModel(embedder), torch.randint(0, 256, (1, num_chunks, chunk_tokens))
    with FlopCounterMode(display=False) as counter:
        model(ids, k)["loss"].backward()
    expected = train_flops(
        shape_of(LLAMA), embedder.config, num_chunks=num_chunks, chunk_tokens=chunk_tokens, k=k
    )
    # Torch spares what nothing is learnt from: the gradient of the embedder's own input.
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.05)
