"""Passkey and needle in a haystack, by depth and length, made from books.

Passkey: Mohtashami and Jaggi 2023 (arXiv 2305.16300). Needle: Kamradt 2023, with a random city and
number in place of its one fixed sentence, so that no model knows the answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...errors import InputError
from .base import Example, Task, read_rows

_LEAST_CUT = 64_000
_TOKEN_CHARS = 6
"""A token has fewer characters, so that a text of so many can be cut on either side."""
_CITIES = ("Lisbon", "Oslo", "Quito", "Hanoi", "Dakar", "Riga", "Lima", "Kyoto")


class Passkey(Task):
    """A five-digit key hidden in a book.

    Args:
        path: parquet file of books, column `text`.
        lengths: of the context in characters.
        depths: where the sentence stands, 0 the beginning, 1 the end.
        repeats: examples for each length and depth.
        seed: of texts and keys.
    """

    name = "passkey"
    max_new_tokens = 16
    scorers = ("contains",)
    sentence = "The pass key is {value}. Remember it. {value} is the pass key."
    question = "What is the pass key?"

    def __init__(
        self,
        path: Path,
        lengths: Sequence[int] = (4_000, 16_000, 64_000),
        depths: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
        repeats: int = 4,
        seed: int = 0,
    ) -> None:
        self.path, self.lengths, self.depths = path, tuple(lengths), tuple(depths)
        self.repeats, self.seed = repeats, seed

    def examples(self) -> Iterator[Example]:
        """Every length and depth, `repeats` times.

        Raises:
            InputError: the file has no text.
        """
        books = self._books()
        for length in self.lengths:
            for depth in self.depths:
                for number in range(self.repeats):
                    yield self._example(books, length, depth, number)

    def documents(self, num_tokens: int) -> Iterator[Example]:
        """Long ones with the sentence in the middle: its depth is then where they are cut."""
        books, length = self._books(), max(_LEAST_CUT, _TOKEN_CHARS * 2 * num_tokens)
        for number in range(len(self.lengths) * len(self.depths) * self.repeats):
            yield replace(self._example(books, length, 0.5, number), setting="")

    def _example(self, books: Sequence[str], length: int, depth: float, number: int) -> Example:
        rng = np.random.default_rng((self.seed, length, int(1000 * depth), number))
        value, sentence, question = self._hide(rng)
        return Example(
            id=f"{length}-{depth}-{number}",
            group=f"{length}-{depth}-{number}",
            context=_insert(_haystack(books, length, rng), sentence, depth),
            question=question,
            answers=(value,),
            setting=f"{length} characters, depth {depth}",
            evidence=sentence,
        )

    def _books(self) -> list[str]:
        books = [row["text"] for row in read_rows(self.path, ["text"]) if row["text"]]
        if not books:
            raise InputError(
                f"A haystack is made from books, but {str(self.path)!r} has none with text; give "
                "another file."
            )
        return books

    def _hide(self, rng: np.random.Generator) -> tuple[str, str, str]:
        """Answer, sentence to hide, question."""
        value = str(rng.integers(10_000, 100_000))
        return value, self.sentence.format(value=value), self.question


class Needle(Passkey):
    """A sentence that a question asks for: a number that belongs to a city."""

    name = "needle"
    sentence = "The special magic number of {city} is {value}."
    question = "What is the special magic number of {city}?"

    def _hide(self, rng: np.random.Generator) -> tuple[str, str, str]:
        city, value = str(rng.choice(_CITIES)), str(rng.integers(100_000, 1_000_000))
        return value, self.sentence.format(city=city, value=value), self.question.format(city=city)


def _haystack(books: Sequence[str], length: int, rng: np.random.Generator) -> str:
    """`length` characters of a book, from a drawn place on; books follow one another if needed."""
    text = books[int(rng.integers(len(books)))]
    while len(text) < length:
        text += "\n\n" + books[int(rng.integers(len(books)))]
    start = int(rng.integers(len(text) - length + 1))
    return text[start : start + length]


def _insert(context: str, sentence: str, depth: float) -> str:
    """The sentence between two sentences of the context, at the given part of its length."""
    place = int(depth * len(context))
    stop = context.find(". ", place) if 0 < place < len(context) else -1
    place = stop + 2 if stop >= 0 else place
    return f"{context[:place]} {sentence} {context[place:]}".strip()
