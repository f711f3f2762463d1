"""Raw spans beside rows in training, as `expand` reads them: which ones, and their tokens.

In: a context and questions on it, once; later a number of tokens. Out: the context's pieces in
the order in which they matter to each question, later the token ids of the best ones that fit.
Knows nothing of rows and losses.

Axes: n token of a context, P piece, m token of a mark.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..expand import at_least_a_piece, room_of_spans
from ..pieces import best_fitting, cut, joined
from ..prompt import BETWEEN_SPANS
from ..reader import Reader
from ..spans import SpanIndex


def span_mark(reader: Reader) -> Tensor:
    """Token ids (m,) that stand before each span."""
    return reader.encode(BETWEEN_SPANS)


def rank_pieces(
    reader: Reader, token_ids: Tensor, questions: Sequence[str]
) -> tuple[Tensor, list[Tensor]]:
    """The pieces of a context (n,): where each ends, and their numbers for each question.

    Args:
        reader: with the tokenizer.
        token_ids: of the context, (n,).
        questions: on it.

    Returns:
        Ends (P,), and for each question the numbers (P,) of the pieces, best first (BM25).
    """
    pieces = cut(reader, token_ids)
    index = SpanIndex([reader.decode(token_ids[start:end]) for start, end in pieces])
    ends = torch.tensor([end for _, end in pieces], dtype=torch.long)
    return ends, [torch.tensor(index.rank(question), dtype=torch.long) for question in questions]


def spans_within(
    ends: Sequence[int], order: Sequence[int], num_tokens: int, mark_tokens: int
) -> list[tuple[int, int]]:
    """Start and end of the best spans, in the order of the text; none where there is no room.

    Args:
        ends: of the pieces, (P,).
        order: numbers of the pieces, best first.
        num_tokens: the most tokens of all spans.
        mark_tokens: before each span.
    """
    if not len(ends):
        return []
    pieces = list(zip([0, *ends], ends, strict=False))
    sizes = [end - start + mark_tokens for start, end in pieces]
    room = room_of_spans(at_least_a_piece(num_tokens), mark_tokens, ends[-1])
    return joined(pieces[number] for number in best_fitting(order, sizes, room))


def raw_tokens(context: Tensor, spans: Sequence[tuple[int, int]], mark: Tensor) -> Tensor:
    """Token ids of spans of a context (n,), a mark (m,) before each."""
    parts = [part for start, end in spans for part in (mark, context[start:end])]
    return torch.cat(parts) if parts else mark[:0]
