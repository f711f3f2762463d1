"""Which place sees which in a training sequence, and attention that computes little else.

In: a reader and a `Layout`. Out: the reader attends over

    [head][rows of chunks 1..N-1][chunks 2..N raw]        two streams
    [head][rows of the context][question and answer] ...  questions on one context

that is, over a prefix of head and rows and over blocks of raw tokens. Rows see the head and the
rows before them; a raw token sees as much of the prefix as its block may (of two streams: the head
and the rows of earlier chunks) and its own block so far. A block continues at the position after
the last row that it sees. Attention is split accordingly (`split_attention`). Readers with
attention of their own (sliding windows, soft caps, sinks) get the same thing as dense masks. Knows
nothing of losses.

Axes: B instance, N block, L token in block, P prefix (head and rows), S sequence, G query heads of
a key head, D head size.
Paper: arXiv 2402.11577, two-stream auto-regression.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from ..errors import InputError
from ..reader import Reader

SPLIT_ATTENTION = "extensible_split"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the prefix (head and rows) and the blocks of raw tokens stand in the sequence."""

    num_prefix: int
    """Places of head and rows."""
    seen: tuple[int, ...]
    """Places of the prefix that each block sees, (N,); the block goes on after the last of them."""
    block_tokens: int
    """Tokens of a block (L)."""

    @classmethod
    def of_chunks(
        cls, *, num_head: int, num_chunks: int, chunk_tokens: int, rows_per_chunk: int
    ) -> Layout:
        """Two streams: chunks 2..N are the blocks, each sees the rows of the chunks before it."""
        ends = tuple(num_head + number * rows_per_chunk for number in range(1, num_chunks))
        return cls(num_prefix=ends[-1], seen=ends, block_tokens=chunk_tokens)

    @property
    def shape(self) -> tuple[int, int]:
        """Blocks and tokens of one: (N, L)."""
        return len(self.seen), self.block_tokens

    def positions(self) -> Tensor:
        """Position of every place in the sequence, (S,)."""
        raw = [torch.arange(self.block_tokens) + seen for seen in self.seen]
        return torch.cat([torch.arange(self.num_prefix), *raw])

    def allowed(self) -> Tensor:
        """Which place (query) sees which (key), boolean (S, S)."""
        block_of = torch.arange(len(self.seen)).repeat_interleave(self.block_tokens)
        order = torch.arange(len(block_of))
        raw_raw = (block_of[:, None] == block_of[None]) & (order[:, None] >= order[None])
        raw_prefix = (
            torch.arange(self.num_prefix)[None] < torch.tensor(self.seen)[block_of][:, None]
        )
        prefix = torch.ones(self.num_prefix, self.num_prefix, dtype=torch.bool).tril()
        no_raw = torch.zeros(self.num_prefix, len(block_of), dtype=torch.bool)
        return torch.cat([torch.cat([prefix, no_raw], 1), torch.cat([raw_prefix, raw_raw], 1)])


@contextmanager
def two_stream_attention(reader: Reader, layout: Layout, *, split: bool) -> Iterator[Any]:
    """Makes the reader attend as the layout says; undone on leaving. Yields its attention mask."""
    if not split:
        yield dense_masks(reader, layout)
        return
    _ACTIVE.append(layout)
    try:
        with attends_by(reader, SPLIT_ATTENTION):
            yield None
    finally:
        _ACTIVE.pop()


@contextmanager
def attends_by(reader: Reader, implementation: str) -> Iterator[None]:
    """Makes the reader attend by a registered attention; undone on leaving."""
    before = reader.model.config._attn_implementation
    reader.model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        reader.model.set_attn_implementation(before)


def can_split(reader: Reader) -> bool:
    """Whether the reader's attention is plain causal scaled dot-product in every layer."""
    config = reader.model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    sliding = getattr(config, "sliding_window", None) and getattr(
        config, "use_sliding_window", True
    )
    return (
        bool(getattr(reader.model, "_supports_attention_backend", False))
        and kinds == {"full_attention"}
        and not sliding
        and getattr(config, "attn_logit_softcapping", None) is None
        and getattr(config, "model_type", "") in _PLAIN_MODELS
    )


_PLAIN_MODELS = {"llama", "mistral", "qwen2", "qwen3", "olmo2", "smollm3", "granite", "phi3"}
_ACTIVE: list[Layout] = []


def dense_masks(reader: Reader, layout: Layout) -> Any:
    """The layout as additive masks (1, 1, S, S): one, or one for each kind of layer if they differ.

    Raises:
        InputError: the reader has layers that are neither full nor sliding-window attention.
    """
    config = reader.model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    alike = ["sliding_attention" if window is not None else "full_attention"]
    kinds = set(getattr(config, "layer_types", None) or alike)
    if unknown := sorted(kinds - {"full_attention", "sliding_attention"}):
        raise InputError(
            "Two-stream training needs a reader with full or sliding-window attention, but "
            f"{reader.name!r} has {', '.join(unknown)}; choose another reader."
        )
    allowed, positions = layout.allowed(), layout.positions()
    masks = {"full_attention": _additive(allowed, reader)}
    if "sliding_attention" in kinds and window is not None:
        near = allowed & (positions[:, None] - positions[None] < window)
        masks["sliding_attention"] = _additive(near, reader)
    return masks if len(kinds) > 1 else masks[kinds.pop()]


def _additive(allowed: Tensor, reader: Reader) -> Tensor:
    mask = torch.zeros(allowed.shape, dtype=reader.dtype)
    mask.masked_fill_(~allowed, torch.finfo(reader.dtype).min)
    return mask[None, None].to(reader.device)


def split_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of the layout in force, by what suits the device.

    On a CPU plain products and one softmax are twice as fast at these lengths as its fused kernel;
    elsewhere the fused kernel saves the memory of the scores.

    Args:
        module: the reader's attention layer (unused).
        query: (B, heads, S, D).
        key: (B, key heads, S, D).
        value: as key.
        attention_mask: unused, the layout says it all.
        scaling: of the products.
        dropout: unused, the reader is in evaluation mode.
        kwargs: unused.

    Returns:
        (B, S, heads, D), and no weights.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    attend = plain_attention if query.device.type == "cpu" else fused_attention
    output = attend(query, key, value, scale, _ACTIVE[-1])  # (B, heads, S, D)
    return output.transpose(1, 2).contiguous(), None


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float, layout: Layout
) -> Tensor:
    """Attention (B, heads, S, D) by torch's kernel and a boolean mask; arguments as split's."""
    return masked_attention(query, key, value, _allowed(layout, query.device), scale)


def masked_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float | None
) -> Tensor:
    """Attention (B, heads, S, D) by torch's kernel and a boolean mask, the same for all heads."""
    group = query.shape[1] // key.shape[1]
    return nn.functional.scaled_dot_product_attention(
        query,
        key.repeat_interleave(group, dim=1),
        value.repeat_interleave(group, dim=1),
        attn_mask=mask,
        scale=scale,
    )


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float, layout: Layout
) -> Tensor:
    """Attention (B, heads, S, D): the prefix on itself, each block on prefix and itself.

    The query heads that share a key head are folded into the query length, so that keys and values
    are never copied for them. Arguments as of `split_attention`.
    """
    sizes = [layout.num_prefix, query.shape[2] - layout.num_prefix]
    folded = (query * scale).unflatten(1, (key.shape[1], -1))  # (B, key heads, G, S, D)
    (first, raw), (keys, raw_keys), (values, raw_values) = (
        folded.split(sizes, dim=3),
        key.split(sizes, dim=2),
        value.split(sizes, dim=2),
    )
    outputs = [
        _prefix_attention(first, keys, values, layout),
        _block_attention(raw, keys, values, raw_keys, raw_values, layout),
    ]
    return torch.cat(outputs, dim=3).flatten(1, 2)


def _prefix_attention(query: Tensor, keys: Tensor, values: Tensor, layout: Layout) -> Tensor:
    """Causal attention of head and rows: (B, key heads, G, P, D)."""
    group, length = query.shape[2:4]
    scores = query.flatten(2, 3) @ keys.transpose(-1, -2)  # (B, key heads, G * P, P)
    _add(scores.unflatten(2, (group, length)), _prefix_bias(layout, query.dtype, query.device))
    output: Tensor = (torch.softmax(scores, dim=-1) @ values).unflatten(2, (group, length))
    return output


def _block_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    raw_keys: Tensor,
    raw_values: Tensor,
    layout: Layout,
) -> Tensor:
    """Attention of the blocks, all at once: (B, key heads, G, N * L, D).

    Args:
        query: (B, key heads, G, N * L, D).
        keys: of the prefix, (B, key heads, P, D).
        values: as keys.
        raw_keys: (B, key heads, N * L, D).
        raw_values: as raw_keys.
        layout: of the sequence.
    """
    shape = layout.shape
    blocks = query.unflatten(3, shape).transpose(2, 3)  # (B, key heads, N, G, L, D)
    group = blocks.shape[3]
    flat = blocks.flatten(3, 4)  # (B, key heads, N, G * L, D)
    own_keys, own_values = raw_keys.unflatten(2, shape), raw_values.unflatten(2, shape)
    on_prefix = (flat.flatten(2, 3) @ keys.transpose(-1, -2)).unflatten(2, flat.shape[2:4])
    scores = torch.cat([on_prefix, flat @ own_keys.transpose(-1, -2)], dim=-1)
    bias = _block_bias(layout, query.dtype, query.device)
    _add(scores.unflatten(3, (group, -1)), bias[:, None])
    weights = torch.softmax(scores, dim=-1)  # (B, key heads, N, G * L, P + L)
    of_prefix, of_own = weights.split([layout.num_prefix, layout.block_tokens], dim=-1)
    output = (of_prefix.flatten(2, 3) @ values).unflatten(2, flat.shape[2:4])
    output = output + of_own @ own_values  # (B, key heads, N, G * L, D)
    unfolded: Tensor = output.unflatten(3, (group, -1)).transpose(2, 3).flatten(3, 4)
    return unfolded


@torch.no_grad()
def _add(scores: Tensor, bias: Tensor) -> None:
    """Adds a mask in place; it is constant, so that the gradient of the scores stays the same."""
    scores.add_(bias)


# All layers of a pass share one layout; at long instances a mask has hundreds of megabytes.
@lru_cache(maxsize=2)
def _prefix_bias(layout: Layout, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Additive causal mask (P, P)."""
    length = layout.num_prefix
    with torch.inference_mode(False):  # it is cached, and a later call may need gradients
        return _bias(torch.ones(length, length, dtype=torch.bool).tril(), dtype, device)


@lru_cache(maxsize=2)
def _block_bias(layout: Layout, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Additive mask (N, L, P + L) of every block on the prefix and itself."""
    num_blocks, length = layout.shape
    with torch.inference_mode(False):
        seen = torch.tensor(layout.seen)
        prefix = torch.arange(layout.num_prefix) < seen[:, None]  # (N, P)
        own = torch.ones(length, length, dtype=torch.bool).tril()
        allowed = torch.cat(
            [
                prefix[:, None].expand(-1, length, -1),
                own[None].expand(num_blocks, -1, -1),
            ],
            dim=-1,
        )
        return _bias(allowed, dtype, device)


@lru_cache(maxsize=2)
def _allowed(layout: Layout, device: torch.device) -> Tensor:
    """The layout's boolean mask (S, S) on the device."""
    with torch.inference_mode(False):
        return layout.allowed().to(device)


def _bias(allowed: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zero where allowed, minus infinity elsewhere."""
    bias = torch.zeros(allowed.shape, dtype=dtype, device=device)
    return bias.masked_fill_(~allowed.to(device), float("-inf"))


def _no_mask(*args: Any, **kwargs: Any) -> None:
    return None


AttentionInterface.register(SPLIT_ATTENTION, split_attention)
AttentionMaskInterface.register(SPLIT_ATTENTION, _no_mask)
