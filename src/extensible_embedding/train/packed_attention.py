"""Attention over packed sequences: by FlexAttention on a GPU, over a dense mask elsewhere.

In: what each place of a packed batch belongs to and sees. Out: a mask that the reader's decoder
takes as its `attention_mask`, and the attention that understands it. FlexAttention skips whatever
blocks of the mask are empty, so that a sequence of many pieces costs what its pieces cost. Knows
nothing of losses.

Axes: B sequence, S place.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface

from .attention import masked_attention

PACKED_ATTENTION = "extensible_packed"


def packed_mask(start: Tensor, seen: Tensor, own: Tensor) -> BlockMask | Tensor:
    """Which place sees which: (B, 1, S, S), as blocks on a GPU.

    Two spans of keys: of the prefix, and of the own block up to the place itself. Nothing is asked
    of a key but its place, which spares FlexAttention a look into memory for each pair.

    Args:
        start: (B, S) of `packing.Packed`; so are the others.
        seen: (B, S).
        own: (B, S).
    """
    num_sequences, places = start.shape

    def sees(b: Any, h: Any, query: Any, key: Any) -> Any:
        of_prefix = (key >= start[b, query]) & (key < seen[b, query])
        return of_prefix | ((key >= own[b, query]) & (key <= query))

    if fuses(start.device):
        blocks: BlockMask = _create()(
            sees, num_sequences, None, places, places, device=str(start.device)
        )
        return blocks
    order = torch.arange(places, device=start.device)
    sequence = torch.arange(num_sequences, device=start.device)[:, None, None]
    mask: Tensor = sees(sequence, 0, order[:, None], order[None])
    return mask[:, None]


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: BlockMask | Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention (B, S, heads, D) by a mask of `packed_mask`, and no weights.

    Args:
        module: the reader's attention layer (unused).
        query: (B, heads, S, D).
        key: (B, key heads, S, D).
        value: as key.
        attention_mask: of `packed_mask`.
        scaling: of the products.
        dropout: unused, the reader is in evaluation mode.
        kwargs: unused.
    """
    if isinstance(attention_mask, Tensor):
        output = masked_attention(query, key, value, attention_mask, scaling)
    else:
        attend = flex_attention if torch.compiler.is_compiling() else _compiled_flex()
        output = attend(
            query, key, value, block_mask=attention_mask, scale=scaling, enable_gqa=True
        )
    return output.transpose(1, 2).contiguous(), None


@cache
def fuses(device: torch.device) -> bool:
    """Whether torch makes kernels for the device out of Python: a GPU with Triton."""
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None


@cache
def _create() -> Any:
    return torch.compile(create_block_mask)


@cache
def _compiled_flex() -> Any:
    return torch.compile(flex_attention, dynamic=False)


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
