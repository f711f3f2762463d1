"""Files of questions about contexts -> a cache of token ids.

In: parquet or JSONL files with a context, a question and an answer in every row. Out: token ids in
the words in which the reader will be asked: its chat template, the context in the place of the
rows, the answer and the end of the turn; and which parts of a context matter most to a question.
Rows that follow one another with the same context become one document. Knows nothing of what is
drawn of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ..folders import whole_folder
from ..pieces import LEAST_TOKENS, PIECE_TOKENS
from ..prompt import question_frame
from ..reader import Reader
from .beside import rank_pieces, span_mark
from .data import Report, cache_key

_FORM = (
    "Training questions are parquet or JSONL with the fields `context`, `question` and `answers` "
    "(or `answer`)"
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A question on a context and its answer."""

    context: str
    question: str
    answer: str


def read_questions(path: Path) -> Iterator[Row]:
    """Rows of a file as a stream; of several right answers the first.

    Raises:
        InputError: the file is missing, or a row is not of this form.
    """
    try:
        values = _parquet_rows(path) if path.suffix == ".parquet" else _json_rows(path)
        for number, value in enumerate(values, start=1):
            yield _row(value, f"row {number}")
    except (KeyError, TypeError, ValueError, OSError, RecursionError) as error:
        raise InputError(
            f"{_FORM}, but {str(path)!r} cannot be read so ({error}); convert it first."
        ) from error


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    file = pq.ParquetFile(path)
    known = {"context", "question", "answers", "answer"}
    columns = [name for name in file.schema_arrow.names if name in known]
    for batch in file.iter_batches(batch_size=64, columns=columns):
        yield from batch.to_pylist()


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        yield from (json.loads(line) for line in lines if line.strip())


def _row(value: Any, place: str) -> Row:
    if not isinstance(value, dict):
        raise ValueError(f"{place} is no object")
    given = value.get("answers", value.get("answer"))
    answer = given[0] if isinstance(given, list) and given else given
    texts = {"context": value.get("context"), "question": value.get("question"), "answer": answer}
    for name, text in texts.items():
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{place} has no {name}, or one that is no text")
    return Row(**texts)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class QuestionFile:
    """Documents of one file as token ids, memory-mapped."""

    name: str
    head: NDArray[np.int64]
    """(h,)."""
    contexts: Ragged
    """A context each."""
    blocks: Ragged
    """A question each: question, answer, end of the turn."""
    num_answer: NDArray[np.int64]
    """(questions,) tokens of the answer and its end: the last of a block."""
    first_question: NDArray[np.int64]
    """(documents + 1,) number of each document's first question, and of all."""
    mark: NDArray[np.int64]
    """(m,) what stands before each raw span."""
    piece_ends: Ragged
    """Of each context's pieces."""
    piece_orders: Ragged
    """Numbers of the pieces for each question, best first."""

    def __len__(self) -> int:
        return len(self.first_question) - 1


@dataclass(frozen=True, kw_only=True)
class Ragged:
    """Sequences of token ids of different lengths, one after the other."""

    token_ids: NDArray[np.uint32]
    """(n,)."""
    starts: NDArray[np.int64]
    """(sequences + 1,)."""

    def __getitem__(self, number: int) -> Tensor:
        part = self.token_ids[self.starts[number] : self.starts[number + 1]]
        return torch.from_numpy(part.astype(np.int64))


PIECES = f"pieces of {LEAST_TOKENS} to {PIECE_TOKENS} tokens, 1"
"""How contexts are cut; to be numbered anew where that changes."""
_RAGGED = ("contexts", "blocks", "piece_ends", "piece_orders")


@dataclass(kw_only=True)
class _Writer:
    """Gathers sequences for a `Ragged`."""

    parts: list[NDArray[np.uint32]] = field(default_factory=list)

    def add(self, ids: Tensor) -> None:
        self.parts.append(ids.numpy().astype(np.uint32))

    def save(self, folder: Path, name: str) -> None:
        starts = np.cumsum([0, *map(len, self.parts)], dtype=np.int64)
        np.save(folder / f"{name}.npy", np.concatenate(self.parts))
        np.save(folder / f"{name}-starts.npy", starts)


def tokenize_questions(
    path: Path, reader: Reader, cache: Path, report: Report | None = None
) -> QuestionFile:
    """Documents of a file, from the cache if the same file, tokenizer and template were seen.

    Raises:
        InputError: the file is not usable, or a context and question exceed the reader's window.
    """
    if not path.is_file():
        raise InputError(
            f"Training questions are files, but {str(path)!r} is none; check `questions`."
        )
    frame = "".join(map(str, torch.cat(question_frame(reader, "?")).tolist()))
    folder = cache / cache_key(path, reader, f"questions, {PIECES} {frame}")
    if not (folder / "head.npy").is_file():
        with whole_folder(folder) as temporary:
            _write_questions(path, reader, temporary, report)
    return _load_questions(path.stem, folder)


def _write_questions(path: Path, reader: Reader, folder: Path, report: Report | None) -> None:
    written = {name: _Writer() for name in _RAGGED}
    num_answer, first_question = list[int](), [0]
    head = question_frame(reader, "?")[0]
    for context, same in groupby(read_questions(path), key=lambda row: row.context):
        token_ids, rows = reader.encode(context), list(same)
        written["contexts"].add(token_ids)
        for row in rows:
            block, answer_tokens = question_block(reader, row)
            written["blocks"].add(block)
            num_answer.append(answer_tokens)
            _check_fits(reader, len(head) + len(token_ids) + len(block), row)
        ends, orders = rank_pieces(reader, token_ids, [row.question for row in rows])
        written["piece_ends"].add(ends)
        for order in orders:
            written["piece_orders"].add(order)
        first_question.append(len(num_answer))
        if report is not None:
            report(path.name, len(first_question) - 1)
    if not num_answer:
        raise InputError(f"{_FORM}, but {str(path)!r} has no rows; check `questions`.")
    for name, writer in written.items():
        writer.save(folder, name)
    np.save(folder / "num_answer.npy", np.asarray(num_answer, dtype=np.int64))
    np.save(folder / "first_question.npy", np.asarray(first_question, dtype=np.int64))
    np.save(folder / "mark.npy", span_mark(reader).numpy())
    np.save(folder / "head.npy", head.numpy())


def _check_fits(reader: Reader, num_tokens: int, row: Row) -> None:
    if num_tokens > reader.window:
        raise InputError(
            f"A training context fits the reader's window of {reader.window} tokens together with "
            f"its question, but the one asked {row.question[:60]!r} takes {num_tokens}; cut it to "
            "the part that answers."
        )


def question_block(reader: Reader, row: Row) -> tuple[Tensor, int]:
    """Token ids (L,) from the end of the context on, and how many of them answer."""
    tail = question_frame(reader, row.question)[1]
    space = "" if reader.tokenizer.chat_template is not None else " "
    end = reader.tokenizer.eos_token_id
    answer = reader.encode(space + row.answer.strip()).tolist() + ([] if end is None else [end])
    return torch.cat([tail, torch.tensor(answer, dtype=torch.long)]), len(answer)


def _load_questions(name: str, folder: Path) -> QuestionFile:
    def array(part: str) -> NDArray[Any]:
        loaded: NDArray[Any] = np.load(folder / f"{part}.npy", mmap_mode="r")
        return loaded

    def ragged(part: str) -> Ragged:
        return Ragged(token_ids=array(part), starts=array(f"{part}-starts"))

    return QuestionFile(
        name=name,
        head=np.array(array("head")),
        mark=np.array(array("mark")),
        num_answer=array("num_answer"),
        first_question=array("first_question"),
        **{part: ragged(part) for part in _RAGGED},
    )
