"""Token ids -> chunks.

In: the number of context tokens, or their ids. Out: spans and a padded batch of chunks. Knows
nothing of models; a chunk is what the embedder sees at once (DESIGN word: L tokens).

Axes: C chunk, L token in chunk.
"""

from __future__ import annotations

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


def pad_chunks(token_ids: Tensor, spans: list[tuple[int, int]]) -> Tensor:
    """Batch of chunks, shape (C, L), padded on the right with id 0.

    The embedder is causal inside a chunk, so that padding on the right changes no real output.
    """
    longest = max(end - start for start, end in spans)
    batch = token_ids.new_zeros((len(spans), longest))
    for row, (start, end) in zip(batch, spans, strict=True):
        row[: end - start] = token_ids[start:end]
    return batch
