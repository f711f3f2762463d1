"""Where an answer comes from: the spans that were read raw, and the rows it attended to most.

In: a plan and the answer that was generated after it. Out: citations, each with its place in the
source in bytes and the sentences that stand there. Knows nothing of how spans were chosen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .attend import attention_to_rows
from .context import Context
from .source import characters_before

if TYPE_CHECKING:
    from .answer import Plan
    from .reader import Reader

_LONGEST_CHARS = 400
"""Text on either side in which a sentence's ends are looked for."""
_ENDS = re.compile(r"[.!?][\"')\]]*\s|\n\s*\n|\n(?=\S)")


@dataclass(frozen=True, kw_only=True)
class Citation:
    """A part of a source that an answer draws on."""

    title: str
    """Of the context."""
    context: int
    """Number of the context in the prompt, from 0."""
    start_byte: int
    """Where the quoted sentences begin in the source's text, UTF-8."""
    end_byte: int
    """Where they end."""
    quote: str
    raw: bool
    """Whether a raw span holds it; else only rows stand for it."""
    weight: float
    """Attention of the answer's tokens to its rows, of all that rows of contexts got."""


def citations(reader: Reader, plan: Plan, answer: str, *, most: int = 3) -> list[Citation]:
    """What an answer draws on: raw spans in order, then the rows it attended to most, best first.

    Args:
        reader: that answered; it reads the prompt and the answer once more.
        plan: that it answered.
        answer: its text.
        most: rows that are cited.

    Raises:
        InputError: the reader's attention cannot be watched.
    """
    sources = [
        _source(reader, number, context) for number, context in enumerate(plan.prompt.contexts)
    ]
    return [*_of_spans(sources, plan), *_of_rows(sources, reader, plan, answer, most)]


def _of_spans(sources: Sequence[_Source], plan: Plan) -> Iterator[Citation]:
    for span in plan.prompt.spans:
        source = next(each for each in sources if each.context is span.context)
        yield source.citation(span.start, span.end, raw=True, weight=0.0)


def _of_rows(
    sources: Sequence[_Source], reader: Reader, plan: Plan, answer: str, most: int
) -> Iterator[Citation]:
    contexts, said = plan.prompt.contexts, reader.encode(answer)
    if not contexts or not len(said):
        return
    weights = attention_to_rows(reader, plan.prompt, plan.ks, len(said), said)
    total = sum(float(each.sum()) for each in weights) or 1.0
    found = [
        (float(weight) / total, number, row)
        for number, each in enumerate(weights)
        for row, weight in enumerate(each)
    ]
    quoted: list[tuple[int, int, int]] = []
    for weight, number, row in sorted(found, reverse=True):
        if len(quoted) == most:
            return
        start, end = _row_span(contexts[number], plan.ks[number], row)
        made = sources[number].citation(start, end, raw=False, weight=weight)
        place = (number, made.start_byte, made.end_byte)
        if place not in quoted:
            quoted.append(place)
            yield made


def _row_span(context: Context, k: int, row: int) -> tuple[int, int]:
    """First token and token after the last of a row at k."""
    ends = context.row_ends_at(k)
    return int(ends[row - 1]) if row else 0, int(ends[row])


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A context that may be cited, with its text."""

    reader: Reader
    number: int
    context: Context
    text: str
    places: tuple[Tensor, Tensor] | None
    """Numbers of tokens, in order from 0, and the text's characters that these hold, (m,) each."""

    def citation(self, start: int, end: int, *, raw: bool, weight: float) -> Citation:
        """Of tokens `start` to before `end`, widened to whole sentences."""
        first, last = self._character(start), self._character(end, at_least=True)
        first, last = _sentences(self.text, first, max(last, first + 1))
        quote, place = self.text[first:last], len(self.text[:first].encode())
        return Citation(
            title=self.context.title,
            context=self.number,
            start_byte=place,
            end_byte=place + len(quote.encode()),
            quote=quote,
            raw=raw,
            weight=weight,
        )

    def _character(self, tokens: int, *, at_least: bool = False) -> int:
        """How many characters the first tokens hold: at the place before, or at the one after."""
        if self.places is None:
            start = self.reader.decode(self.context.token_ids[:tokens])
            return len(start) if self.text.startswith(start) else len(start.rstrip("\ufffd"))
        numbers, characters = self.places
        if at_least:
            place = min(int(torch.searchsorted(numbers, tokens)), len(numbers) - 1)
        else:
            place = int(torch.searchsorted(numbers, tokens, right=True)) - 1
        return int(characters[place])


def _source(reader: Reader, number: int, context: Context) -> _Source:
    """A context with its text: as it was given or, where that is not known, as its tokens read."""
    source = context.source
    places = source.places(reader, context.token_ids) if source is not None else None
    if source is None or places is None:
        text = reader.decode(context.token_ids)
    else:
        text, zero = source.text(), torch.zeros(1, dtype=torch.long)
        ends = characters_before(text, places[1])
        places = torch.cat([zero, places[0]]), torch.cat([zero, ends])
    return _Source(reader=reader, number=number, context=context, text=text, places=places)


def _sentences(text: str, first: int, last: int) -> tuple[int, int]:
    """A span of characters, widened to the ends of sentences that are near."""
    before = text[max(0, first - _LONGEST_CHARS) : first]
    ends = [found.end() for found in _ENDS.finditer(before)]
    start = first - (len(before) - ends[-1] if ends else len(before))
    after = _ENDS.search(text, max(start, last - 1), last + _LONGEST_CHARS)
    end = after.end() if after else min(len(text), last + _LONGEST_CHARS)
    return start, max(last, start + len(text[start:end].rstrip()))
