"""Floating-point operations of a reading, counted from the shape of a model.

In: a reader's configuration, and how many rows or tokens are read. Out: numbers of operations, and
the speed-ups that they allow. A product of matrices (a, b) and (b, c) counts as 2abc; norms,
activations and softmax do not count. Attention is causal, over everything before: what a sliding
window saves is not taken off. Every expert of a mixture counts. Runs nothing.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from ..chunks import chunk_spans
from ..downsampling import DOWN_SAMPLINGS, Picked, num_rows
from ..embedder import LEAST_PLACES, EmbedderConfig
from ..picked import last_block


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What the operations of a causal language model depend on."""

    hidden_size: int
    num_layers: int
    layer_weights: int
    """Of the matrices of one layer; the layers are taken to be alike."""
    mlp_weights: int
    """Those of them that can run on some tokens alone (`picked`)."""
    attention_width: int
    """Query heads times their size."""
    head_weights: int
    """Hidden size times vocabulary."""


def shape_of(config: PretrainedConfig) -> Shape:
    """The shape of the model of a configuration; its weights are never made."""
    text = copy.deepcopy(config.get_text_config())
    if hasattr(text, "quantization_config"):
        del text.quantization_config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(text)
    block = last_block(model.get_decoder())
    heads = int(text.num_attention_heads)
    head_size = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    return Shape(
        hidden_size=int(text.hidden_size),
        num_layers=int(text.num_hidden_layers),
        layer_weights=_matrices(block),
        mlp_weights=_matrices(getattr(block, "mlp", None)),
        attention_width=heads * head_size,
        head_weights=int(model.get_output_embeddings().weight.numel()),
    )


def _matrices(module: nn.Module | None) -> int:
    weights = [] if module is None else list(module.parameters())
    return sum(weight.numel() for weight in weights if weight.ndim >= 2)


def causal_pairs(num_new: int, num_past: int = 0) -> int:
    """Pairs of a new row and a row that it sees: itself, and all before it."""
    return num_new * num_past + num_new * (num_new + 1) // 2


def layers_flops(shape: Shape, num_layers: int, num_rows: int, num_pairs: int) -> int:
    """Of some layers: every row through their matrices, and their attention over pairs of rows."""
    matrices = 2 * shape.layer_weights * num_rows
    return num_layers * (matrices + 4 * shape.attention_width * num_pairs)


def head_flops(shape: Shape, num_logits: int = 1) -> int:
    """Of logits over the vocabulary."""
    return 2 * shape.head_weights * num_logits


def read_flops(shape: Shape, num_rows: int) -> int:
    """Of a reader, from its rows to the first new token."""
    return layers_flops(shape, shape.num_layers, num_rows, causal_pairs(num_rows)) + head_flops(
        shape
    )


def chunk_flops(
    shape: Shape, config: EmbedderConfig, chunk_tokens: int, num_picked: int | None = None
) -> int:
    """Of an embedder on one chunk; the last MLP and the projection run on what is picked alone."""
    num_outputs = chunk_tokens if num_picked is None else num_picked
    layers = layers_flops(shape, config.num_layers, chunk_tokens, causal_pairs(chunk_tokens))
    spared = 2 * shape.mlp_weights * (chunk_tokens - num_outputs)
    projection = 2 * shape.hidden_size**2 * num_outputs if config.residual else 0
    return layers - spared + projection


def compress_flops(shape: Shape, config: EmbedderConfig, num_tokens: int, k: int) -> int:
    """Of an embedder on a context."""
    if k == 1:
        return 0
    picks = issubclass(DOWN_SAMPLINGS[config.down_sampling], Picked)
    lengths = [end - start for start, end in chunk_spans(num_tokens, config.chunk_tokens)]
    computed = [max(LEAST_PLACES, num_rows(length, k)) if picks else None for length in lengths]
    return sum(
        chunk_flops(shape, config, length, places)
        for length, places in zip(lengths, computed, strict=True)
    )


def layer_bound(num_embedder_layers: int, num_reader_layers: int, k: int, online: bool) -> float:
    """Speed-up over raw reading if every layer cost the same for every token: no attention.

    The embedder runs its share of the layers on every token, the reader all of its layers on one
    row for every k. Offline, the rows are there.
    """
    share = num_embedder_layers / num_reader_layers if online and k > 1 else 0.0
    return 1 / (share + 1 / k)


def train_flops(
    shape: Shape, config: EmbedderConfig, *, num_chunks: int, chunk_tokens: int, k: int
) -> int:
    """Of one two-stream step on an instance, forward and backward, as training computes it.

    The embedder's matrices count three times (values, gradients of inputs and of weights), the
    frozen reader's twice, attention three times. Pairs that a mask hides inside of a computed block
    count: the prefix on itself, each chunk on the whole prefix and on itself.
    """
    num_read = (num_chunks - 1) * chunk_tokens
    prefix = 1 + (num_chunks - 1) * num_rows(chunk_tokens, k)
    together = config.seen_at_once(chunk_tokens, k, num_chunks - 1)
    embedded = -(-num_read // together) * together
    own = config.num_layers * 2 * shape.layer_weights * embedded
    own += config.num_layers * 4 * shape.attention_width * embedded * together
    own += 2 * shape.hidden_size**2 * embedded if config.residual else 0
    matrices = shape.num_layers * 2 * shape.layer_weights * (prefix + num_read)
    pairs = prefix**2 + num_read * (prefix + chunk_tokens)
    attention = shape.num_layers * 4 * shape.attention_width * pairs
    return 3 * own + 2 * (matrices + head_flops(shape, num_read)) + 3 * attention
