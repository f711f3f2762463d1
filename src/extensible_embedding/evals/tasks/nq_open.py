"""NQ-open with distractors (arXiv 2307.03172): one passage answers, the others do not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from .base import Example, Filler, ParquetTask


class NqOpen(ParquetTask):
    """The gold passage among passages of other questions, at a drawn place.

    Args:
        path: of a file with one gold passage a row.
        num_passages: passages of a context, the gold one among them.
        seed: of distractors and places.
    """

    name = "nq-open"
    prompt = "Answer in a few words. Question: {question}"
    scorers = ("contains", "f1")
    filler = Filler.DOCUMENTS

    def __init__(self, path: Path, num_passages: int = 20, seed: int = 0) -> None:
        super().__init__(path)
        self.num_passages, self.seed = num_passages, seed

    def documents(self, num_tokens: int) -> Iterator[Example]:
        """Every question with its passage alone."""
        return super().examples()

    def examples(self) -> Iterator[Example]:
        """Every question with its passage among distractors that hold none of its answers."""
        rows = list(super().examples())
        for number, example in enumerate(rows):
            rng = np.random.default_rng((self.seed, number))
            passages = self._distractors(rows, example, rng)
            passages.insert(int(rng.integers(len(passages) + 1)), example.context)
            yield replace(
                example,
                context="\n\n".join(passages),
                setting=f"{self.num_passages} passages",
            )

    def _distractors(
        self, rows: list[Example], example: Example, rng: np.random.Generator
    ) -> list[str]:
        found: dict[str, None] = {}
        for other in rng.permutation(len(rows)):
            if len(found) == self.num_passages - 1:
                break
            passage = rows[other].context
            wrong = all(answer.lower() not in passage.lower() for answer in example.answers)
            if rows[other].group != example.group and wrong:
                found[passage] = None
        return list(found)
