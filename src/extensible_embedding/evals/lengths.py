"""Examples on documents of every length -> the same questions on contexts of one length.

In: the examples of a task, a number of tokens. Out: each on a context of about that many: a longer
document is cut around what answers the question, a shorter one gets others around it. Tasks differ
in length by a hundredfold; so they can be compared. Knows nothing of methods and scores.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..reader import Reader
from ..released import book_path
from ..source import characters_before
from .tasks import Example, Filler, Task

LEAST_TOKENS = 64
"""Of a context."""
LEAST_FILLED = 0.75
"""Part of the length that a context has at least; what cannot be made so long is left out."""
_WORD = re.compile(r"\w+")
_Places = NDArray[np.int64]


class Lengthener:
    """Contexts of one length for the examples of one task.

    Args:
        reader: whose tokens count.
        task: whose documents fill short contexts, as its `filler` says.
        num_tokens: of a context, about: parts that are joined may make other tokens at their seams.
        seed: of places and of what fills.

    Raises:
        InputError: `num_tokens` is no number of at least `LEAST_TOKENS`.
    """

    def __init__(self, reader: Reader, task: Task, num_tokens: int, seed: int) -> None:
        whole = isinstance(num_tokens, int) and not isinstance(num_tokens, bool)
        if not whole or num_tokens < LEAST_TOKENS:
            raise InputError(
                f"Contexts have a number of tokens of {LEAST_TOKENS} or more, but it is "
                f"{num_tokens!r}; give a larger one, or none for contexts as they are."
            )
        self.reader, self.task, self.num_tokens, self.seed = reader, task, num_tokens, seed
        self.examples = list(task.documents(num_tokens))
        self._numbers = {id(example): n for n, example in enumerate(self.examples)}
        self._documents = list(dict.fromkeys((each.group, each.context) for each in self.examples))
        self._counts: dict[str, int] = {}
        self._book: _Book | None = None

    def lengthen(self, example: Example) -> Example | None:
        """One of `examples` on a context of the length, or None where there is no such.

        None: it is too long and nobody says what of it answers, or too short and nothing fills it.
        """
        rng = np.random.default_rng((self.seed, self._numbers[id(example)]))
        num_tokens = self._count(example.context)
        if num_tokens > self.num_tokens:
            context = self._cut(example, rng)
        elif self.task.filler is Filler.DOCUMENTS:
            context = self._among_documents(example, num_tokens, rng)
        elif self.task.filler is Filler.BOOK:
            context = self._in_book(example, num_tokens, rng)
        else:
            context = example.context if self._is_filled(num_tokens) else None
        return None if context is None else replace(example, context=context)

    def _is_filled(self, num_tokens: int) -> bool:
        return num_tokens >= LEAST_FILLED * self.num_tokens

    def _count(self, text: str) -> int:
        """Tokens of a document or a part of a filler; each is counted once."""
        if text not in self._counts:
            self._counts[text] = len(self.reader.encode(text))
        return self._counts[text]

    def _cut(self, example: Example, rng: np.random.Generator) -> str | None:
        """Tokens around what answers, from a drawn place on; None if that is longer.

        A story of statements is not cut: what was true is so until something else is said.
        """
        if self.task.filler is Filler.BOOK:
            return None
        span = (0, 0) if self.task.asks_about_start else evidence_span(example)
        if span is None:
            return None
        starts, ends = _token_characters(self.reader, example.context)
        first = int(np.searchsorted(ends, span[0], side="right"))
        last = int(np.searchsorted(starts, span[1], side="left"))
        earliest, latest = max(0, last - self.num_tokens), min(first, len(ends) - self.num_tokens)
        if earliest > latest:
            return None
        place = int(rng.integers(earliest, latest + 1))
        return example.context[starts[place] : ends[place + self.num_tokens - 1]]

    def _among_documents(
        self, example: Example, num_tokens: int, rng: np.random.Generator
    ) -> str | None:
        """Whole other documents of the task that hold none of the answers, around this one.

        The last one ends early where nothing shorter fits.
        """
        found: list[str] = []
        separator = self._count("\n\n")
        for number in rng.permutation(len(self._documents)):
            group, text = self._documents[number]
            if group == example.group or text in found or _holds_answer(text, example):
                continue
            left = self.num_tokens - num_tokens - separator
            if self._count(text) > left:
                if self._is_filled(num_tokens):
                    break
                text = text[: int(_token_characters(self.reader, text)[1][max(0, left - 1)])]
                num_tokens = self.num_tokens
            else:
                num_tokens += self._count(text) + separator
            found.append(text)
        if not self._is_filled(num_tokens):
            return None
        found.insert(int(rng.integers(len(found) + 1)), example.context)
        return "\n\n".join(found)

    def _in_book(self, example: Example, num_tokens: int, rng: np.random.Generator) -> str | None:
        """Its lines in their order between paragraphs of the shipped book, as in BABILong.

        Paragraphs that name somebody of the story are passed over. BABILong: arXiv 2406.10149.
        """
        self._book = self._book or _Book()
        lines = example.context.split("\n")
        separator = self._count("\n\n")
        num_tokens += separator * len(lines)
        chosen: list[str] = []
        for paragraph in self._book.without(self._book.names(example.context), rng):
            more = self._count(paragraph) + separator
            if num_tokens + more <= self.num_tokens:
                chosen.append(paragraph)
                num_tokens += more
            elif self._is_filled(num_tokens):
                break
        if not self._is_filled(num_tokens):
            return None
        places = sorted(rng.integers(len(chosen) + 1, size=len(lines)))
        for place, line in reversed(list(zip(places, lines, strict=True))):
            chosen.insert(place, line)
        return "\n\n".join(chosen)


class _Book:
    """The shipped novel in paragraphs."""

    def __init__(self) -> None:
        text = book_path().read_text(encoding="utf-8")
        self.paragraphs = text.split("\n\n")
        self._words = [set(_WORD.findall(paragraph)) for paragraph in self.paragraphs]
        self._common = {word for words in self._words for word in words if word.islower()}

    def names(self, story: str) -> set[str]:
        """Words that a story capitalises and the book never has small."""
        words = set(_WORD.findall(story))
        return {each for each in words if each[0].isupper() and each.lower() not in self._common}

    def without(self, names: set[str], rng: np.random.Generator) -> Iterator[str]:
        """Paragraphs that hold none of them, from a drawn one on, once around."""
        start = int(rng.integers(len(self.paragraphs)))
        for number in (*range(start, len(self.paragraphs)), *range(start)):
            if not names & self._words[number]:
                yield self.paragraphs[number]


def _holds_answer(text: str, example: Example) -> bool:
    return any(answer.lower() in text.lower() for answer in example.answers)


def evidence_span(example: Example) -> tuple[int, int] | None:
    """First and last character of what answers; None where nobody says, or where it is unclear.

    The evidence may be in several parts, in their order, with blank lines or line feeds between. It
    is unclear where the longest part stands in the context twice.
    """
    for separator in (None, "\n\n", "\n"):
        whole = example.evidence.strip()
        parts = [whole] if separator is None else [each.strip() for each in whole.split(separator)]
        span = _span_of([part for part in parts if part], example.context)
        if span is not None:
            return span
    return None


def _span_of(parts: Sequence[str], text: str) -> tuple[int, int] | None:
    """From the first to the last of parts that follow one another; None if they do not."""
    if not parts or text.count(max(parts, key=len)) != 1:
        return None
    start, end = -1, 0
    for part in parts:
        place = text.find(part, end)
        if place < 0:
            return None
        start, end = place if start < 0 else start, place + len(part)
    return start, end


def _token_characters(reader: Reader, text: str) -> tuple[_Places, _Places]:
    """Characters of a text before each token and after it."""
    ends = characters_before(text, reader.encode_spans(text)[1]).numpy()
    return np.concatenate([[0], ends[:-1]]), ends
