"""A text that goes on: rows of all but its end, the end raw, in as many places as rows alone.

In: contexts of a prompt and their scale factors. Out: the same prompt, in which the last context is
read at twice its k, and raw from where the rows that are saved so can be tokens: half of its places
are raw tokens, or more. What follows a text depends most on its last words, one by one, and a
frozen reader copies from tokens, hardly from rows. For a question, which may be of any part,
`expand` does as much. Knows nothing of models.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from .context import Context
from .downsampling import DownSampling, down_sampling
from .prompt import Prompt

_COARSER = 2
"""The rows before the end are read at so many times k."""


def with_raw_end(prompt: Prompt, ks: tuple[int, ...]) -> tuple[Prompt, tuple[int, ...]]:
    """The prompt with the end of its last context raw, and the scale factors then.

    Both are as they were where there is no such end (`raw_end`), or k is none to read at.

    Args:
        prompt: a text that goes on.
        ks: scale factor of each context.
    """
    if not prompt.contexts or ks[-1] % prompt.contexts[-1].k:
        return prompt, ks
    context, k = prompt.contexts[-1], ks[-1]
    sampler = down_sampling(context.down_sampling)
    end = raw_end(context.num_tokens, context.chunk_tokens, k, sampler, context.max_k)
    if end is None:
        return prompt, ks
    older = _first_tokens(context.at(end.k), end.num_older)
    at = next(n for n, part in reversed([*enumerate(prompt.parts)]) if part is context)
    parts = (*prompt.parts[:at], older, context.token_ids[end.start :], *prompt.parts[at + 1 :])
    return Prompt(parts=parts), (*ks[:-1], end.k)


@dataclass(frozen=True)
class RawEnd:
    """How a context is read whose end is raw."""

    k: int
    """Of the rows."""
    num_older: int
    """The first tokens, which the rows stand for; they end where a row does."""
    start: int
    """The first raw token, no later than these."""


def raw_end(
    num_tokens: int, chunk_tokens: int, k: int, sampler: DownSampling, max_k: int
) -> RawEnd | None:
    """The longest raw end with which there are as many rows and raw tokens as rows at k.

    None where there is no such end: all is raw, rows cannot be read so coarse, or the text is too
    short.

    Args:
        num_tokens: of the context.
        chunk_tokens: of a chunk.
        k: at which the context would be rows alone.
        sampler: that picks rows.
        max_k: the largest scale factor to read at.
    """
    coarse = _COARSER * k
    if k == 1 or coarse > min(chunk_tokens, max_k) or not sampler.nests or not num_tokens:
        return None
    room = len(sampler.context_row_ends(num_tokens, chunk_tokens, k))
    ends = sampler.context_row_ends(num_tokens, chunk_tokens, coarse)
    starts = num_tokens - room + torch.arange(1, len(ends) + 1)  # of the end, after so many rows
    fits = starts <= ends  # no token is left out
    if not sampler.begins_alike:  # the first rows of a chunk are not those of its first tokens
        fits &= (ends % chunk_tokens == 0) | (ends == num_tokens)
    num_older, start = int(ends[fits][0]), int(starts[fits][0])
    return RawEnd(coarse, num_older, start) if start < num_tokens else None


def _first_tokens(context: Context, num_tokens: int) -> Context:
    """What stands for the first tokens, which end where a row does."""
    count = int((context.row_ends() <= num_tokens).sum())
    return dataclasses.replace(
        context,
        rows=context.rows[:count],
        token_ids=context.token_ids[:num_tokens],
        source=None,  # these are tokens of a part of it
    )
