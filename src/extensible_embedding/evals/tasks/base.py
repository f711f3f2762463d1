"""The contract of a task: examples, a fixed prompt and scorers. A task is data; it runs nothing."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...errors import InputError
from ..scorers import SCORERS


@dataclass(frozen=True, kw_only=True)
class Example:
    """One question on one document."""

    id: str
    group: str
    """Examples of one group are not independent: intervals resample groups."""
    context: str
    question: str
    answers: tuple[str, ...]
    setting: str = ""
    """Part of the task that is reported by itself, such as a length."""
    before: str = ""
    """Words before the context, read raw; only of tasks with their `own_words`."""
    answer_prefix: str = ""
    """How the answer begins: the reader goes on from here."""
    classes: tuple[str, ...] = ()
    """What the answer is one of, if the task says so."""
    evidence: str = ""
    """The part of the context that answers, if the task says so; see `lengths.evidence_span`."""


class Filler(Enum):
    """What may stand around a document that is shorter than a context is to be."""

    NOTHING = "nothing"
    DOCUMENTS = "other documents of the task"
    BOOK = "a book, with the document's lines between its paragraphs"


class Task(ABC):
    """A task; `version` changes whenever its prompt or scoring does."""

    name: str
    version = 1
    prompt = "{question}"
    """What stands after the context, in the reader's chat template."""
    max_new_tokens = 32
    scorers: tuple[str, ...] = ("exact_match", "f1")
    """Names of `SCORERS`; the first is the task's main figure."""
    own_words = False
    """The message is the example's `before`, the context and `text`, with nothing between."""
    chat = True
    """The message stands in the reader's chat template; without it, only with `own_words`."""
    filler = Filler.NOTHING
    """See `lengths`."""
    asks_about_start = False
    """The answer is how the context begins, so that a part of it begins there too."""

    def documents(self, num_tokens: int) -> Iterator[Example]:
        """Every example on its document alone, for contexts of about so many tokens."""
        return self.examples()

    @abstractmethod
    def examples(self) -> Iterator[Example]:
        """Every example, in a fixed order."""

    def text(self, example: Example) -> str:
        """The question as it is asked."""
        return self.prompt.format(question=example.question)

    def score(self, scorer: str, prediction: str, example: Example) -> float:
        """One of the task's scores of a prediction, from 0 to 1."""
        return SCORERS[scorer](prediction, example.answers)


class ParquetTask(Task):
    """A task of a parquet file with columns context, question, answers (and id, doc_id, task).

    A column gold_context, if there is one, is the part of the context that answers.

    Args:
        path: of the file.
    """

    columns: tuple[str, ...] = ("id", "doc_id", "context", "question", "answers", "task")

    def __init__(self, path: Path) -> None:
        self.path = path

    def examples(self) -> Iterator[Example]:
        """Rows of the file.

        Raises:
            InputError: the file cannot be read, or a column is missing.
        """
        for row in read_rows(self.path, self.columns, optional=("gold_context",)):
            yield Example(
                id=str(row["id"]),
                group=str(row["doc_id"]),
                context=text_of(row, "context", self.path),
                question=text_of(row, "question", self.path),
                answers=answers_of(row["answers"], self.path),
                setting=str(row["task"] or ""),
                evidence=self._evidence(row),
            )

    def _evidence(self, row: Mapping[str, object]) -> str:
        if row.get("gold_context") is None:
            return ""
        return text_of(row, "gold_context", self.path)


def text_of(row: Mapping[str, object], name: str, path: Path, missing: str | None = None) -> str:
    """A field of an example that is a text.

    Raises:
        InputError: it is something else, or missing where nothing stands for that.
    """
    found = row.get(name, missing)
    if not isinstance(found, str):
        raise InputError(
            f"Every example has a text under `{name}`, but one of {str(path)!r} has {found!r}; "
            "correct the file or leave the example out."
        )
    return found


def answers_of(found: object, path: Path) -> tuple[str, ...]:
    """The answers of an example.

    Raises:
        InputError: they are no list of texts. Of one text every letter would be an answer.
    """
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise InputError(
            f"The answers to a question are a list of texts, but {str(path)!r} has {found!r}; make "
            "each a list, also where there is one answer."
        )
    return tuple(found)


def whole_number_of(row: Mapping[str, object], name: str, path: Path) -> int:
    """A field of an example that is a whole number.

    Raises:
        InputError: it is something else.
    """
    found = row[name]
    if isinstance(found, bool) or not isinstance(found, int):
        raise InputError(
            f"Every example has a whole number under `{name}`, but one of {str(path)!r} has "
            f"{found!r}; take the file as its authors made it."
        )
    return found


def read_rows(
    path: Path, columns: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """Rows of a parquet file, a batch at a time, with optional columns where the file has them.

    Raises:
        InputError: the file cannot be read, or a column is missing.
    """
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        missing = set(columns) - set(names)
        if missing:
            raise InputError(
                f"A task file has the columns {', '.join(columns)}, but {str(path)!r} lacks "
                f"{', '.join(sorted(missing))}; rename or add them."
            )
        found = [*columns, *(name for name in optional if name in names)]
        for batch in file.iter_batches(batch_size=64, columns=found):
            yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"A task file is parquet, but {str(path)!r} cannot be read as such ({error}); check it."
        ) from error


def read_lines(path: Path, fields: Sequence[str]) -> list[dict[str, Any]]:
    """Objects of a file of JSON lines.

    Raises:
        InputError: the file cannot be read, or an object lacks a field.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
        objects = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"This task's file has one JSON object a line, but {str(path)!r} cannot be read as "
            f"such ({error}); check it."
        ) from error
    for number, found in enumerate(objects, start=1):
        missing = [name for name in fields if not isinstance(found, dict) or name not in found]
        if missing:
            raise InputError(
                f"This task's file has objects with {', '.join(fields)}, but object {number} of "
                f"{str(path)!r} lacks {', '.join(missing)}; take the file as its authors made it."
            )
    return objects
