"""Where an answer comes from: the spans that were read raw, and the rows it attended to most.

In: a plan and the answer that was generated after it. Out: citations, each with its place in the
source in bytes and the sentences that stand there, none of them twice. Knows nothing of how spans
were chosen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
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
    """Whether the reader had what is quoted as it is: in a raw span, or since it read the whole
    context at k=1; else only rows stand for it. Of the first and last sentence a part may stand
    outside of the span."""
    weight: float
    """Attention of the answer's tokens to what is cited, of all that rows of contexts got: to the
    one row, or to all rows whose tokens a raw span holds."""


def citations(reader: Reader, plan: Plan, answer: str, *, most: int = 3) -> list[Citation]:
    """What an answer draws on: raw spans in order, then the rows it attended to most, best first.

    No place is quoted twice. A quote leaves out sentences that an earlier one has, and what is
    quoted already is passed over: so are rows inside of raw spans, whose attention the spans count.

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
    shares = _shares(reader, plan, answer)
    return [*_of_spans(sources, plan, shares), *islice(_of_rows(sources, plan, shares), most)]


def _shares(reader: Reader, plan: Plan, answer: str) -> list[Tensor]:
    """Of the answer's attention to all rows, what each row (R,) of each context got."""
    said = reader.encode(answer)
    if not plan.prompt.contexts or not len(said):
        return []
    weights = attention_to_rows(reader, plan.prompt, plan.ks, len(said), said)
    total = sum(float(each.sum()) for each in weights) or 1.0
    return [each / total for each in weights]


def _of_spans(
    sources: Sequence[_Source], plan: Plan, shares: Sequence[Tensor]
) -> Iterator[Citation]:
    for span in plan.prompt.spans:
        source = next(each for each in sources if each.context is span.context)
        weight = 0.0
        if shares:
            ends = source.context.row_ends_at(plan.ks[source.number])
            starts = ends.roll(1)
            starts[0] = 0
            inside = (starts >= span.start) & (ends <= span.end)
            weight = float(shares[source.number][inside].sum())
        made = source.citation(span.start, span.end, raw=True, weight=weight)
        if made is not None:
            yield made


def _of_rows(
    sources: Sequence[_Source], plan: Plan, shares: Sequence[Tensor]
) -> Iterator[Citation]:
    found = [
        (float(weight), number, row)
        for number, each in enumerate(shares)
        for row, weight in enumerate(each)
    ]
    for weight, number, row in sorted(found, reverse=True):
        k = plan.ks[number]
        start, end = _row_span(sources[number].context, k, row)
        made = sources[number].citation(start, end, raw=k == 1, weight=weight)
        if made is not None:
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

    quoted: list[tuple[int, int]] = field(default_factory=list)
    """Characters that citations hold so far."""

    def citation(self, start: int, end: int, *, raw: bool, weight: float) -> Citation | None:
        """Of tokens `start` to before `end`, widened to whole sentences; none if it is quoted."""
        first, last = self._character(start), self._character(end, at_least=True)
        place = _unquoted(self.text, first, max(last, first + 1), self.quoted)
        if place is None:
            return None
        self.quoted.append(place)
        quote, before = self.text[slice(*place)], len(self.text[: place[0]].encode())
        return Citation(
            title=self.context.title,
            context=self.number,
            start_byte=before,
            end_byte=before + len(quote.encode()),
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


def _unquoted(
    text: str, first: int, last: int, quoted: Sequence[tuple[int, int]]
) -> tuple[int, int] | None:
    """The sentences of a span of characters that no quote has yet; none if it is quoted or blank.

    Where quotes leave several parts of the span, these are the sentences of the longest.
    """
    parts, start = [], first
    for begins, ends in sorted(quoted):
        parts.append((start, min(begins, last)))
        start = max(start, ends)
    first, last = max([*parts, (start, last)], key=lambda part: len(text[slice(*part)].strip()))
    if not text[first:last].strip():
        return None
    start, end = _sentences(text, first, last)
    start = max([start, *(ends for _, ends in quoted if ends <= first)])
    end = min([end, *(begins for begins, _ in quoted if begins >= last)])
    quote = text[start:end]
    start = end - len(quote.lstrip())
    return start, start + len(quote.strip())


def _sentences(text: str, first: int, last: int) -> tuple[int, int]:
    """A span of characters, widened to the ends of sentences that are near."""
    before = text[max(0, first - _LONGEST_CHARS) : first]
    ends = [found.end() for found in _ENDS.finditer(before)]
    start = first - (len(before) - ends[-1] if ends else len(before))
    after = _ENDS.search(text, max(start, last - 1), last + _LONGEST_CHARS)
    end = after.end() if after else min(len(text), last + _LONGEST_CHARS)
    return start, max(last, start + len(text[start:end].rstrip()))
