"""The two-stream loss in its plainest forms: slow, and what the fast one must equal.

In: an embedder, instances of N chunks of L token ids, a scale factor k. Out: the mean loss in nats,
with gradients for the embedder. One form runs a reader pass for each chunk, the other one pass over
a dense mask with all logits at once. Tests compare with them, and `bench.train_speed` times them.

Axes: B instance, N chunk, L token in chunk, R row, S sequence, H hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..embedder import ExtensibleEmbedder
from ..prompt import language_head
from .attention import Layout, dense_masks


def per_chunk_loss(
    embedder: ExtensibleEmbedder, token_ids: Tensor, k: int, *, first: int = 1
) -> Tensor:
    """Loss by one plain pass over [head][rows of chunks < i][chunk i raw] for each chunk i.

    Args:
        embedder: with its reader.
        token_ids: instances (B, N, L).
        k: scale factor.
        first: number of the first chunk that is predicted; -1 is the last alone.
    """
    reader, losses = embedder.reader, []
    head = reader.embed_tokens(language_head(reader))
    for instance in token_ids:
        rows = plain_rows(embedder, instance[:-1], k).to(head.dtype)
        for number in range(len(instance))[first:]:
            before = torch.cat([head, rows[:number].flatten(0, 1)])
            embeds = torch.cat([before, reader.embed_tokens(instance[number])])
            logits = reader.model(inputs_embeds=embeds[None], use_cache=False).logits[0]
            labels = instance[number].to(logits.device)
            losses.append(nn.functional.cross_entropy(logits[len(before) - 1 : -1].float(), labels))
    return torch.stack(losses).mean()


def plain_rows(embedder: ExtensibleEmbedder, chunks: Tensor, k: int) -> Tensor:
    """Rows (C, R, H) of the chunks (C, L) of one context, reading chunk by reading chunk."""
    num_chunks, chunk_tokens = chunks.shape
    pieces = chunks.flatten().split(embedder.config.seen_at_once(chunk_tokens, k, num_chunks))
    rows = torch.cat([embedder.rows(piece[None], k)[0] for piece in pieces])
    return rows.view(len(chunks), -1, rows.shape[-1])


def dense_loss(embedder: ExtensibleEmbedder, token_ids: Tensor, k: int) -> Tensor:
    """Loss by one pass over [head][rows][chunks 2..N raw] with a mask (S, S) for all of it.

    Args:
        embedder: with its reader.
        token_ids: instances (B, N, L).
        k: scale factor.
    """
    reader, (num_batch, num_chunks, length) = embedder.reader, token_ids.shape
    rows = torch.stack([plain_rows(embedder, each[:-1], k) for each in token_ids])
    head = reader.embed_tokens(language_head(reader))
    targets = token_ids[:, 1:].flatten(1)
    layout = Layout.of_chunks(
        num_head=len(head), num_chunks=num_chunks, chunk_tokens=length, rows_per_chunk=rows.shape[2]
    )
    raw = reader.embed_tokens(targets)
    parts = [head.expand(num_batch, -1, -1), rows.flatten(1, 2).to(raw.dtype), raw]
    logits = reader.model(
        inputs_embeds=torch.cat(parts, dim=1),
        attention_mask=dense_masks(reader, layout),
        position_ids=layout.positions()[None].expand(num_batch, -1).to(reader.device),
        use_cache=False,
    ).logits
    places = torch.arange(targets.shape[1]).view(-1, length) + layout.num_prefix - 1
    places[:, 0] = torch.tensor(layout.seen) - 1  # a chunk begins after the last row that it sees
    found = logits[:, places.flatten().to(logits.device)].flatten(0, 1).float()
    return nn.functional.cross_entropy(found, targets.flatten().to(found.device))
