"""Two-stream loss: every token of chunks 2..N predicted from rows of the chunks before it.

In: instances of N chunks of L token ids, a scale factor k. Out: the mean loss in nats. One reader
pass gives all losses of an instance, over the sequence

    [head][rows of chunks 1..N-1][chunks 2..N raw]

in which rows see the head and the rows before them; a raw token sees the head, the rows of earlier
chunks and its own chunk so far. Chunk i continues at the position after the rows of chunks < i.
Attention is split accordingly, so that no masked pair is computed: `split_attention`. Readers with
attention of their own (sliding windows, soft caps, sinks) get the same thing as dense masks.

Axes: B instance, N chunk, L token in chunk, R row, S sequence, H hidden size, D head size.
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

from ..embedder import ExtensibleEmbedder
from ..errors import InputError
from ..prompt import language_head
from ..reader import Reader

SPLIT_ATTENTION = "extensible_split"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where head, rows and raw chunks stand in the sequence."""

    num_head: int
    num_chunks: int
    chunk_tokens: int
    rows_per_chunk: int

    @property
    def num_prefix(self) -> int:
        """Head and rows."""
        return self.num_head + (self.num_chunks - 1) * self.rows_per_chunk

    def rows_seen(self, chunk: int) -> int:
        """Prefix that raw chunk `chunk` (0 is the second of the instance) sees."""
        return self.num_head + (chunk + 1) * self.rows_per_chunk

    def positions(self) -> Tensor:
        """Position of every place in the sequence, (S,)."""
        raw = [
            torch.arange(self.chunk_tokens) + self.rows_seen(chunk)
            for chunk in range(self.num_chunks - 1)
        ]
        return torch.cat([torch.arange(self.num_prefix), *raw])

    def allowed(self) -> Tensor:
        """Which place (query) sees which (key), boolean (S, S)."""
        chunk_of = torch.arange(self.num_chunks - 1).repeat_interleave(self.chunk_tokens)
        seen = torch.tensor([self.rows_seen(chunk) for chunk in range(self.num_chunks - 1)])
        order = torch.arange(len(chunk_of))
        raw_raw = (chunk_of[:, None] == chunk_of[None]) & (order[:, None] >= order[None])
        raw_prefix = torch.arange(self.num_prefix)[None] < seen[chunk_of][:, None]
        prefix = torch.ones(self.num_prefix, self.num_prefix, dtype=torch.bool).tril()
        no_raw = torch.zeros(self.num_prefix, len(chunk_of), dtype=torch.bool)
        return torch.cat([torch.cat([prefix, no_raw], 1), torch.cat([raw_prefix, raw_raw], 1)])


class TwoStreamModel(nn.Module):
    """What the trainer sees: an embedder with gradients before a reader without."""

    def __init__(self, embedder: ExtensibleEmbedder) -> None:
        super().__init__()
        self.embedder = embedder
        reader = embedder.reader
        self.split = can_split(reader)
        self.register_buffer("head_ids", language_head(reader), persistent=False)

    def forward(self, token_ids: Tensor, k: int) -> dict[str, Tensor]:
        """Mean loss in nats over the tokens of chunks 2..N.

        Args:
            token_ids: (B, N, L).
            k: scale factor, the same for the whole batch.

        Returns:
            `loss`, a scalar.
        """
        num_batch, num_chunks, chunk_tokens = token_ids.shape
        rows = self.embedder.rows(token_ids[:, :-1].flatten(0, 1), k)  # (B * (N - 1), R, H)
        layout = Layout(
            num_head=len(self.head_ids),  # type: ignore[arg-type]
            num_chunks=num_chunks,
            chunk_tokens=chunk_tokens,
            rows_per_chunk=rows.shape[1],
        )
        rows = rows.unflatten(0, (num_batch, num_chunks - 1)).flatten(1, 2)
        targets = token_ids[:, 1:]  # (B, N - 1, L)
        hidden = self._read(rows, targets, layout)
        return {"loss": chunk_loss(self.embedder.reader, hidden, targets, layout)}

    def _read(self, rows: Tensor, targets: Tensor, layout: Layout) -> Tensor:
        """Last hidden states (B, S, H) of the reader over the two streams."""
        reader = self.embedder.reader
        head = reader.embed_tokens(self.head_ids).expand(len(rows), -1, -1)  # type: ignore[arg-type]
        raw = reader.embed_tokens(targets.flatten(1))
        embeds = torch.cat([head, rows.to(head.dtype), raw], dim=1)
        positions = layout.positions().to(embeds.device)[None]
        with two_stream_attention(reader, layout, split=self.split) as mask:
            hidden: Tensor = reader.model.get_decoder()(
                inputs_embeds=embeds,
                attention_mask=mask,
                position_ids=positions.expand(len(embeds), -1),
                use_cache=False,
            ).last_hidden_state
        return hidden


def chunk_loss(reader: Reader, hidden: Tensor, targets: Tensor, layout: Layout) -> Tensor:
    """Mean loss of every token of the raw chunks.

    A chunk's first token is predicted at the last row that the chunk sees, its others at the token
    before them.

    Args:
        reader: gives logits from hidden states.
        hidden: (B, S, H).
        targets: (B, N - 1, L).
        layout: of the sequence.
    """
    starts = torch.tensor([layout.rows_seen(i) - 1 for i in range(layout.num_chunks - 1)])
    raw = torch.arange(targets.shape[1] * targets.shape[2]).view(targets.shape[1:])
    places = torch.cat([starts[:, None], raw[:, :-1] + layout.num_prefix], dim=1)
    picked = hidden[:, places.flatten().to(hidden.device)].flatten(0, 1)  # (B * (N - 1) * L, H)
    loss: Tensor = FrozenHeadLoss.apply(picked, targets.flatten(), reader)  # type: ignore[no-untyped-call]
    return loss


class FrozenHeadLoss(torch.autograd.Function):
    """Mean cross-entropy through a head without gradients of its own.

    The gradient of the hidden states is made block by block beside the loss, so that the logits of
    all tokens never stand in memory together and are never computed twice.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, labels: Tensor, reader: Reader) -> Tensor:
        """Loss (scalar) of hidden states (T, H) and labels (T,)."""
        wanted = ctx.needs_input_grad[0]
        gradient, total = torch.empty_like(hidden), hidden.new_zeros((), dtype=torch.float32)
        for first in range(0, len(labels), _HEAD_BLOCK):
            part = slice(first, first + _HEAD_BLOCK)
            with torch.set_grad_enabled(wanted):
                block = hidden[part].detach().requires_grad_(wanted)
                logits = reader.logits(block).float()
                loss = nn.functional.cross_entropy(logits, labels[part], reduction="sum")
            if wanted:
                gradient[part] = torch.autograd.grad(loss, block)[0]
            total += loss.detach()
        ctx.save_for_backward(gradient.div_(len(labels)))
        return total / len(labels)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        """Gradient (T, H) of the hidden states."""
        (gradient,) = ctx.saved_tensors
        return gradient * grad_output.to(gradient.dtype), None, None


_HEAD_BLOCK = 1024


@contextmanager
def two_stream_attention(reader: Reader, layout: Layout, *, split: bool) -> Iterator[Any]:
    """Makes the reader attend as the layout says; undone on leaving. Yields its attention mask."""
    if not split:
        yield dense_masks(reader, layout)
        return
    before = reader.model.config._attn_implementation
    _ACTIVE.append(layout)
    reader.model.set_attn_implementation(SPLIT_ATTENTION)
    try:
        yield None
    finally:
        reader.model.set_attn_implementation(before)
        _ACTIVE.pop()


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
    """Attention of the layout in force: the prefix causal, then each raw chunk on what it sees.

    The query heads that share a key head are folded into the query length, so that keys and values
    are never copied for them.

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
    layout = _ACTIVE[-1]
    folded = query.unflatten(1, (key.shape[1], -1))  # (B, key heads, group, S, D)
    prefix = layout.num_prefix
    outputs = [
        _causal(folded[..., :prefix, :], key[..., :prefix, :], value[..., :prefix, :], scaling)
    ]
    for chunk in range(layout.num_chunks - 1):
        start = prefix + chunk * layout.chunk_tokens
        own, seen = slice(start, start + layout.chunk_tokens), layout.rows_seen(chunk)
        keys = torch.cat([key[..., :seen, :], key[..., own, :]], dim=-2)
        values = torch.cat([value[..., :seen, :], value[..., own, :]], dim=-2)
        outputs.append(_causal(folded[..., own, :], keys, values, scaling))
    output = torch.cat(outputs, dim=3).flatten(1, 2)  # (B, heads, S, D)
    return output.transpose(1, 2).contiguous(), None


def _causal(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """Attention of the last t keys' queries (B, key heads, group, t, D) on all keys so far."""
    group, length = query.shape[2:4]
    bias = _causal_bias(group, length, key.shape[-2], query.dtype, query.device)
    output: Tensor = nn.functional.scaled_dot_product_attention(
        query.flatten(2, 3), key, value, attn_mask=bias, scale=scaling
    )
    unfolded: Tensor = output.unflatten(2, (group, length))
    return unfolded


@lru_cache(maxsize=64)
def _causal_bias(
    group: int, length: int, seen: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Additive mask (group * length, seen) of the last `length` of `seen` places."""
    with torch.inference_mode(False):  # it is cached, and a later call may need gradients
        hidden = torch.ones(length, seen, dtype=torch.bool, device=device).triu(seen - length + 1)
        bias = torch.zeros(length, seen, dtype=dtype, device=device)
        return bias.masked_fill_(hidden, float("-inf")).repeat(group, 1)


def _no_mask(*args: Any, **kwargs: Any) -> None:
    return None


AttentionInterface.register(SPLIT_ATTENTION, split_attention)
AttentionMaskInterface.register(SPLIT_ATTENTION, _no_mask)
