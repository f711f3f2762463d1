"""Token ids -> chunks.

In: the number of context tokens, or their ids. Out: spans, and batches of chunks. Knows nothing of
models; a chunk is what the embedder sees at once (DESIGN word: L tokens).

Axes: C chunk, L token in chunk.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from .errors import InputError


def chunk_spans(num_tokens: int, chunk_tokens: int) -> list[tuple[int, int]]:
    """Half-open spans of the chunks of a context; the last may be shorter."""
    if chunk_tokens < 1:
        raise InputError(
            f"A chunk holds at least 1 token, but chunk_tokens is {chunk_tokens}; give 1 or more."
        )
    starts = range(0, num_tokens, chunk_tokens)
    return [(start, min(start + chunk_tokens, num_tokens)) for start in starts]


def chunk_batches(token_ids: Tensor, chunk_tokens: int, batch_chunks: int) -> Iterator[Tensor]:
    """Batches of whole chunks, (C, chunk_tokens), then what is left of the ids (n,), (1, L).

    Nothing is padded: the shorter last chunk is a batch of its own.
    """
    whole = len(token_ids) - len(token_ids) % chunk_tokens
    if whole:
        yield from token_ids[:whole].view(-1, chunk_tokens).split(batch_chunks)
    if whole < len(token_ids):
        yield token_ids[None, whole:]


def pad_chunks(token_ids: Tensor, spans: list[tuple[int, int]]) -> Tensor:
    """Batch of chunks, shape (C, L), padded on the right with id 0.

    The embedder is causal inside a chunk, so that padding on the right changes no real output.
    """
    longest = max(end - start for start, end in spans)
    batch = token_ids.new_zeros((len(spans), longest))
    for row, (start, end) in zip(batch, spans, strict=True):
        row[: end - start] = token_ids[start:end]
    return batch
