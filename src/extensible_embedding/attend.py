"""What a reader attends to: weights of the last places of a prompt over its rows.

In: a reader and a prompt. Out: for each context, how much attention its rows got, averaged over
layers and heads. Only the weights of the places that are asked for are made, beside the attention
that the reader computes anyway.

Axes: B = 1, S prompt row, T place that attends, R row, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .context import Context
from .errors import InputError

if TYPE_CHECKING:
    from .prompt import Prompt, ScaleFactors
    from .reader import Reader

WATCHED_ATTENTION = "extensible_watched"


class _Watch:
    """Weights of the last `num_places` places, summed over layers."""

    def __init__(self, num_places: int) -> None:
        self.num_places, self.num_layers = num_places, 0
        self.total: Tensor | None = None

    def add(self, query: Tensor, key: Tensor, scale: float) -> None:
        """Of one layer: query (1, heads, S, D), key (1, key heads, S, D)."""
        last = query[0, :, -self.num_places :].float() * scale  # (heads, T, D)
        keys = key[0].float().repeat_interleave(query.shape[1] // key.shape[1], dim=0)
        scores = last @ keys.transpose(-1, -2)  # (heads, T, S)
        later = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device)
        scores.masked_fill_(later.triu(scores.shape[2] - self.num_places + 1), float("-inf"))
        weights = torch.softmax(scores, dim=-1).mean(dim=(0, 1))  # (S,)
        self.total = weights if self.total is None else self.total + weights
        self.num_layers += 1


_WATCHES: list[_Watch] = []


@torch.inference_mode()
def attention_to_rows(
    reader: Reader, prompt: Prompt, ks: ScaleFactors, num_places: int, after: Tensor | None = None
) -> list[Tensor]:
    """Attention of the last places, averaged over them, layers and heads, to each part's rows.

    Args:
        reader: reads the prompt once.
        prompt: with contexts.
        ks: scale factors that they are read at.
        num_places: places at the end that attend.
        after: token ids (t,) that follow the prompt.

    Returns:
        (R,) for each context, in order.

    Raises:
        InputError: the reader computes attention in a way that cannot be watched.
    """
    embeds = prompt.embeds(reader, ks)
    if after is not None:
        embeds = torch.cat([embeds, reader.embed_tokens(after)])
    weights = _last_weights(reader, embeds, num_places)
    parts = weights[: sum(prompt.part_rows(ks))].split(prompt.part_rows(ks))
    return [
        part.cpu()
        for part, kind in zip(parts, prompt.parts, strict=True)
        if isinstance(kind, Context)
    ]


def _last_weights(reader: Reader, embeds: Tensor, num_places: int) -> Tensor:
    """Weights (S,) of the last places over a prompt (S, H)."""
    with _watched(reader, num_places) as watch:
        reader.model.get_decoder()(inputs_embeds=embeds[None], use_cache=False)
    if watch.total is None:
        raise _cannot(reader)
    return watch.total / watch.num_layers


@contextmanager
def _watched(reader: Reader, num_places: int) -> Iterator[_Watch]:
    if not getattr(reader.model, "_supports_attention_backend", False):
        raise _cannot(reader)
    before = reader.model.config._attn_implementation
    _WATCHES.append(_Watch(num_places))
    reader.model.set_attn_implementation(WATCHED_ATTENTION)
    try:
        yield _WATCHES[-1]
    finally:
        reader.model.set_attn_implementation(before)
        _WATCHES.pop()


def _cannot(reader: Reader) -> InputError:
    return InputError(
        f"Attention can be watched in readers with transformers' exchangeable attention, but "
        f"{reader.name!r} ({type(reader.model).__name__}) has its own; leave out citations of rows "
        "and rank spans by words."
    )


def _watched_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Torch's attention, and the last places' weights for whoever watches."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    _WATCHES[-1].add(query, key, scale)
    output, _ = sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
    )
    return output, None


AttentionInterface.register(WATCHED_ATTENTION, _watched_attention)
AttentionMaskInterface.register(WATCHED_ATTENTION, sdpa_mask)
