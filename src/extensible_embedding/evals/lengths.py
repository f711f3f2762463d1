"""Examples on documents of every length -> the same questions on contexts of one length.

In: an example, the documents of its task, a number of tokens. Out: the example on a context of
about that many: a longer document is cut around what answers the question, a shorter one gets
others around it. Tasks differ in length by a hundredfold; so they can be compared. Knows nothing
of methods and scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..reader import Reader
from ..released import book_path
from ..source import characters_before
from .tasks import Example, Filler, Task

LEAST_FILLED = 0.75
"""Part of the length that a context has at least; what cannot be made so long is left out."""


class Lengthener:
    """Contexts of one length for the examples of one task.

    Args:
        reader: whose tokens count.
        task: whose documents fill short contexts, as its `filler` says.
        num_tokens: of a context, about: parts that are joined may make other tokens at their seams.
        seed: of places and of what fills.
    """

    def __init__(self, reader: Reader, task: Task, num_tokens: int, seed: int) -> None:
        self.reader, self.task, self.num_tokens, self.seed = reader, task, num_tokens, seed
        self.examples = list(task.documents())
        self._by_number = {id(example): n for n, example in enumerate(self.examples)}
        self._documents = dict.fromkeys((each.group, each.context) for each in self.examples)
        self._paragraphs: list[str] | None = None

    def lengthen(self, example: Example) -> Example | None:
        """One of `examples` on a context of the length, or None where there is no such.

        None: it is too long and nobody says what of it answers, or too short and nothing fills it.
        """
        rng = np.random.default_rng((self.seed, self._by_number[id(example)]))
        num_tokens = self._count(example.context)
        if num_tokens > self.num_tokens:
            span = evidence_span(example, from_start=self.task.asks_about_start)
            context = None if span is None else self._cut(example.context, span, rng)
        elif self.task.filler is Filler.DOCUMENTS:
            context = self._among_documents(example, num_tokens, rng)
        elif self.task.filler is Filler.BOOK:
            context = self._in_book(example.context, num_tokens, rng)
        else:
            context = example.context
        if context is None or self._count(context) < LEAST_FILLED * self.num_tokens:
            return None
        return replace(example, context=context)

    def _count(self, text: str) -> int:
        return len(self.reader.encode(text))

    def _cut(self, text: str, span: tuple[int, int], rng: np.random.Generator) -> str | None:
        """Tokens around a span of characters, from a drawn place on; None if it is longer."""
        starts, ends = _token_characters(self.reader, text)
        first = int(np.searchsorted(ends, span[0], side="right"))
        last = int(np.searchsorted(starts, span[1], side="left"))
        earliest, latest = max(0, last - self.num_tokens), min(first, len(ends) - self.num_tokens)
        if earliest > latest:
            return None
        place = int(rng.integers(earliest, latest + 1))
        return text[starts[place] : ends[place + self.num_tokens - 1]]

    def _among_documents(self, example: Example, num_tokens: int, rng: np.random.Generator) -> str:
        """Whole other documents of the task that hold none of the answers, around this one."""
        found: list[str] = []
        separator = self._count("\n\n")
        documents = list(self._documents)
        for number in rng.permutation(len(documents)):
            group, text = documents[number]
            if group == example.group or text in found or _holds_answer(text, example):
                continue
            more = self._count(text) + separator
            if num_tokens + more > self.num_tokens:
                if num_tokens >= LEAST_FILLED * self.num_tokens:
                    break
                left = self.num_tokens - num_tokens - separator
                text, more = self._beginning(text, left), self.num_tokens - num_tokens
            found.append(text)
            num_tokens += more
        found.insert(int(rng.integers(len(found) + 1)), example.context)
        return "\n\n".join(found)

    def _beginning(self, text: str, num_tokens: int) -> str:
        return text[: int(_token_characters(self.reader, text)[1][max(0, num_tokens - 1)])]

    def _in_book(self, text: str, num_tokens: int, rng: np.random.Generator) -> str:
        """Its lines in their order between paragraphs of the shipped book (as BABILong has them).

        BABILong: arXiv 2406.10149.
        """
        if self._paragraphs is None:
            self._paragraphs = book_path().read_text(encoding="utf-8").split("\n\n")
        lines = text.split("\n")
        separator = self._count("\n\n")
        left = self.num_tokens - num_tokens - separator * len(lines)
        chosen: list[str] = []
        for paragraph in _from(self._paragraphs, int(rng.integers(len(self._paragraphs)))):
            more = self._count(paragraph) + separator
            if more <= left:
                chosen.append(paragraph)
                left -= more
            elif left <= (1 - LEAST_FILLED) * self.num_tokens:
                break
        places = sorted(rng.integers(len(chosen) + 1, size=len(lines)))
        for place, line in reversed(list(zip(places, lines, strict=True))):
            chosen.insert(place, line)
        return "\n\n".join(chosen)


def _from(items: Sequence[str], start: int) -> Iterator[str]:
    """Once around."""
    yield from items[start:]
    yield from items[:start]


def _holds_answer(text: str, example: Example) -> bool:
    return any(answer.lower() in text.lower() for answer in example.answers)


def evidence_span(example: Example, *, from_start: bool = False) -> tuple[int, int] | None:
    """First and last character of what answers; None where nobody says.

    Args:
        example: its evidence may be in several parts, with blank lines between.
        from_start: the question is about how the context begins.
    """
    if from_start:
        return 0, 0
    whole = example.evidence in example.context
    parts = [example.evidence] if whole else example.evidence.split("\n\n")
    places = [(example.context.find(part), len(part)) for part in parts if part]
    if not places or min(places)[0] < 0:
        return None
    return min(places)[0], max(place + length for place, length in places)


def _token_characters(reader: Reader, text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Characters of a text before each token and after it."""
    ends = characters_before(text, reader.encode_spans(text)[1]).numpy()
    return np.concatenate([[0], ends[:-1]]), ends
