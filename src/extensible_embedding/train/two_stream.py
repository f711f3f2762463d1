"""Two-stream loss: every token of chunks 2..N predicted from rows of the chunks before it.

In: instances of N chunks of L token ids, a scale factor k. Out: the mean loss in nats. One reader
pass gives all losses of an instance; which place sees which is the business of `attention`. For
the paper's ablation there is one stream as well: the loss of chunk N alone. In the second stage,
documents come instead: the loss of the answers to questions that follow the rows of a context.

Axes: B instance, N chunk, L token in chunk, R row, S sequence, H hidden size, T predicted token,
Q question (a block of L tokens).
Paper: arXiv 2402.11577, two-stream auto-regression.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ..chunks import chunk_batches
from ..downsampling import num_rows
from ..embedder import ExtensibleEmbedder
from ..errors import InputError
from ..prompt import language_head
from ..reader import Reader
from .attention import Layout, attends_by, can_split, two_stream_attention
from .packed_attention import PACKED_ATTENTION, fuses, packed_mask
from .packed_batches import Packed


class TwoStreamModel(nn.Module):
    """What the trainer sees: an embedder with gradients before a reader without.

    Args:
        embedder: with its reader.
        one_stream: predict the last chunk alone, in the sequence [head][all rows][chunk N raw].
    """

    def __init__(self, embedder: ExtensibleEmbedder, *, one_stream: bool = False) -> None:
        super().__init__()
        self.embedder, self.one_stream = embedder, one_stream
        reader = embedder.reader
        self.split = can_split(reader)
        self.register_buffer("head_ids", language_head(reader), persistent=False)
        check_logits(reader)

    def forward(
        self,
        token_ids: Tensor | None = None,
        k: int = 1,
        documents: Sequence[Mapping[str, Tensor]] = (),
        packed: Packed | None = None,
    ) -> dict[str, Tensor]:
        """Mean loss in nats of a batch of instances, of documents with questions, or of both.

        Args:
            token_ids: instances (B, N, L): the loss is that of chunks 2..N, or with one stream of
                chunk N; None if there are documents.
            k: scale factor, the same for the whole batch.
            documents: fields of `questions.Document`: the loss is that of the answers.
            packed: a packed batch, in which each piece has its own k.

        Returns:
            `loss`, a scalar.
        """
        if packed is not None:
            return {"loss": self._packed_loss(packed)}
        if token_ids is not None:
            return {"loss": self._text_loss(token_ids, k)}
        return {"loss": self._answer_loss(documents, k)}

    def _text_loss(self, token_ids: Tensor, k: int) -> Tensor:
        rows = instance_rows(self.embedder, token_ids[:, :-1], k)  # (B, N - 1, R, H)
        targets = token_ids[:, 1:]  # (B, N - 1, L)
        if self.one_stream:  # as of two chunks, the first of which has all of the rows
            rows, targets = rows.flatten(1, 2)[:, None], targets[:, -1:]
        layout = Layout.of_chunks(
            num_head=len(self.head_ids),  # type: ignore[arg-type]
            num_chunks=rows.shape[1] + 1,
            chunk_tokens=token_ids.shape[2],
            rows_per_chunk=rows.shape[2],
        )
        hidden = self._read(self.head_ids, rows.flatten(1, 2), targets, layout)  # type: ignore[arg-type]
        return chunk_loss(self.embedder.reader, hidden, targets, layout)

    def _packed_loss(self, packed: Packed) -> Tensor:
        """Weighted loss of all that a packed batch predicts."""
        reader = self.embedder.reader
        rows = self.embedder.rows_at(packed["chunks"], packed["row_outputs"])
        raw = reader.embed_tokens(packed["token_ids"])  # (B, S, H)
        embeds = raw.flatten(0, 1).index_copy(0, packed["row_places"], rows.to(raw.dtype))
        with attends_by(reader, PACKED_ATTENTION):
            hidden = reader.model.get_decoder()(
                inputs_embeds=embeds.view_as(raw),
                attention_mask=packed_mask(packed["start"], packed["seen"], packed["own"]),
                position_ids=packed["positions"],
                use_cache=False,
            ).last_hidden_state
        picked = hidden.flatten(0, 1)[packed["predicted_at"]]
        loss: Tensor = FrozenHeadLoss.apply(  # type: ignore[no-untyped-call]
            picked, packed["labels"], reader, packed["weights"]
        )
        return loss

    def _answer_loss(self, documents: Sequence[Mapping[str, Tensor]], k: int) -> Tensor:
        """Mean loss over the answers' tokens of all documents."""
        hidden, labels = zip(*(self._answer_places(each, k) for each in documents), strict=True)
        loss: Tensor = FrozenHeadLoss.apply(  # type: ignore[no-untyped-call]
            torch.cat(hidden), torch.cat(labels), self.embedder.reader
        )
        return loss

    def _answer_places(self, document: Mapping[str, Tensor], k: int) -> tuple[Tensor, Tensor]:
        """Hidden states (T, H) that predict the answers' tokens, and these (T,)."""
        blocks, answers = document["blocks"], document["answers"]  # (Q, L)
        rows = self._context_rows(document["context"], k)
        num_prefix = len(document["head"]) + len(rows)
        layout = Layout(
            num_prefix=num_prefix, seen=(num_prefix,) * len(blocks), block_tokens=blocks.shape[1]
        )
        hidden = self._read(document["head"], rows[None], blocks[None], layout)[0]
        places = num_prefix + answers.flatten().nonzero()[:, 0] - 1
        return hidden[places], blocks[answers]

    def _context_rows(self, context: Tensor, k: int) -> Tensor:
        """Rows (R, H) of a context (n,), in chunks as `compress` cuts them, with gradients."""
        length = self.embedder.config.chunk_tokens
        batches = chunk_batches(context, length, max(1, len(context) // length))
        return torch.cat([self.embedder.rows(batch, k).flatten(0, 1) for batch in batches])

    def _read(self, head_ids: Tensor, rows: Tensor, targets: Tensor, layout: Layout) -> Tensor:
        """Last hidden states (B, S, H) of the reader over head, rows (B, R, H) and blocks."""
        reader = self.embedder.reader
        head = reader.embed_tokens(head_ids).expand(len(rows), -1, -1)
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


def instance_rows(embedder: ExtensibleEmbedder, chunks: Tensor, k: int) -> Tensor:
    """Rows (B, C, R, H) of successive chunks (B, C, L), of short ones as they will be read.

    One pass, whatever the chunks: `EmbedderConfig.seen_at_once` says how many tokens go together.
    The embedder is causal, so that a chunk's rows know nothing of what stands after it.
    """
    num_batch, num_chunks, chunk_tokens = chunks.shape
    length = embedder.config.seen_at_once(chunk_tokens, k, num_chunks)
    contexts = chunks.flatten(1)
    contexts = nn.functional.pad(contexts, (0, -contexts.shape[1] % length))
    rows = embedder.rows(contexts.reshape(-1, length), k).unflatten(0, (num_batch, -1))
    real: Tensor = rows.flatten(1, 2)[:, : num_chunks * num_rows(chunk_tokens, k)]
    return real.reshape(num_batch, num_chunks, -1, real.shape[-1])


@torch.inference_mode()
def check_logits(reader: Reader) -> None:
    """Raises InputError unless the reader's logits, made from hidden states, are its model's own.

    Models scale and cap their logits by settings of many names; one that `Reader.logits` does not
    know would be trained for a wrong loss.
    """
    embeds = reader.embed_tokens(torch.arange(min(8, reader.vocab_size)))[None]
    asked = {"inputs_embeds": embeds, "use_cache": False}
    expected = reader.model(**asked).logits.float()
    found = reader.logits(reader.model.get_decoder()(**asked).last_hidden_state).float()
    tolerance = max(1e-4, 4 * torch.finfo(reader.dtype).eps)
    worst = (found - expected).abs().max() / expected.abs().max().clamp_min(1e-12)
    if not worst <= tolerance:
        raise InputError(
            "Training makes a reader's logits from its last hidden states, but those of "
            f"{reader.name!r} ({type(reader.model).__name__}) differ from the model's own by "
            f"{float(worst):.2g} of the largest; choose another reader or report this one."
        )


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
    starts = torch.tensor(layout.seen) - 1
    raw = torch.arange(targets.shape[1] * targets.shape[2]).view(targets.shape[1:])
    places = torch.cat([starts[:, None], raw[:, :-1] + layout.num_prefix], dim=1)
    picked = hidden[:, places.flatten().to(hidden.device)].flatten(0, 1)  # (B * (N - 1) * L, H)
    loss: Tensor = FrozenHeadLoss.apply(picked, targets.flatten(), reader)  # type: ignore[no-untyped-call]
    return loss


class FrozenHeadLoss(torch.autograd.Function):
    """Mean cross-entropy through a head without gradients of its own.

    The gradient of the hidden states is made block by block beside the loss, so that the logits of
    all tokens never stand in memory together and are never computed twice. The gradient of the
    logits, softmax minus one at the label, overwrites their log-probabilities.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, labels: Tensor, reader: Reader, weights: Tensor | None = None
    ) -> Tensor:
        """Loss (scalar) of hidden states (T, H) and labels (T,); with weights (T,) their sum."""
        wanted = ctx.needs_input_grad[0]
        if weights is None:
            weights = torch.full_like(labels, 1 / len(labels), dtype=torch.float32)
        gradient, total = torch.empty_like(hidden), hidden.new_zeros((), dtype=torch.float32)
        size = _HEAD_BLOCK[hidden.device.type == "cpu"]
        for part in (slice(first, first + size) for first in range(0, len(labels), size)):
            with torch.set_grad_enabled(wanted):
                block = hidden[part].detach().requires_grad_(wanted)
                logits = reader.logits(block)
            losses, logit_grads = _cross_entropy(logits.detach(), labels[part])
            total += (losses * weights[part]).sum()
            if wanted:
                logits.backward(logit_grads)
                assert block.grad is not None
                gradient[part] = block.grad * weights[part, None]
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None]:
        """Gradient (T, H) of the hidden states."""
        (gradient,) = ctx.saved_tensors
        return gradient * grad_output.to(gradient.dtype), None, None, None


def _cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Losses (T,) of logits (T, V) at labels (T,), and their gradients (T, V)."""
    if fuses(logits.device):
        fused: tuple[Tensor, Tensor] = _fused_cross_entropy()(logits, labels)
        return fused
    log_probs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
    picked = log_probs.gather(1, labels[:, None])
    gradients = log_probs.exp_().scatter_(1, labels[:, None], picked.expm1())
    return -picked[:, 0], gradients.to(logits.dtype)


def plain_cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """`_cross_entropy` in a form of which a compiler makes one kernel."""
    log_probs = torch.log_softmax(logits.float(), dim=-1)
    at_label = torch.arange(logits.shape[1], device=logits.device) == labels[:, None]
    losses = -torch.where(at_label, log_probs, 0).sum(-1)
    return losses, (log_probs.exp() - at_label.float()).to(logits.dtype)


@cache
def _fused_cross_entropy() -> Any:
    return torch.compile(plain_cross_entropy)


_HEAD_BLOCK = {True: 128, False: 8192}
"""Tokens of a block, on a CPU (whose caches and allocator like it small) and elsewhere."""
