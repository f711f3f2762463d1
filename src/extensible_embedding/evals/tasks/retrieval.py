"""Retrieval by key: LongEval's topics and lines, and Lost in the Middle's key-value pairs."""

from __future__ import annotations

from collections.abc import Iterator

from ...errors import InputError
from .base import Example, ParquetTask


class LongEvalTopics(ParquetTask):
    """The first topic of a long conversation (LongChat, Li et al. 2023).

    The authors let a language model judge; here the topic's name must stand in the answer.
    """

    name = "longeval-topics"
    scorers = ("contains",)
    asks_about_start = True


class LongEvalLines(ParquetTask):
    """The number on a named line (LongChat): the last number of the answer counts."""

    name = "longeval-lines"
    scorers = ("last_number",)

    def examples(self) -> Iterator[Example]:
        """Rows of the file.

        Raises:
            InputError: an answer is no number.
        """
        for example in super().examples():
            if wrong := [each for each in example.answers if not each.strip().isdecimal()]:
                raise InputError(
                    f"LongEval's lines are asked for a number, but an answer of {str(self.path)!r} "
                    f"is {wrong[0]!r}; give digits alone."
                )
            yield example


class KeyValue(ParquetTask):
    """The value of a key in a JSON object of random keys (arXiv 2307.03172): it must be there."""

    name = "kv-retrieval"
    version = 2
    max_new_tokens = 100
    scorers = ("contains",)
