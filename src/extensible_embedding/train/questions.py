"""Questions about contexts -> token cache -> documents to train on.

In: parquet or JSONL files with a context, a question and an answer in every row. Out: documents,
each a context and some of its questions, in the words in which the reader will be asked: its chat
template, the context in the place of the rows, the answer and the end of the turn. Rows that follow
one another with the same context become one document, whose context is embedded once for all of its
questions. Document i depends on the seed and i alone. Knows nothing of losses.

Axes: Q question (a block of raw tokens), L token in block.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import InputError
from ..folders import whole_folder
from ..prompt import question_frame
from ..reader import Reader
from .data import FirstFactors, Instance, Instances, Report, cache_key, factors_of

MAX_QUESTIONS = 8
"""Questions asked at once about a context; more would make long sequences of little new."""
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


@dataclass(frozen=True, kw_only=True)
class Document:
    """A context, and questions on it as blocks that a reader reads after the context's rows."""

    head: Tensor
    """(h,) what stands before the rows."""
    context: Tensor
    """(n,)."""
    blocks: Tensor
    """(Q, L) question, answer and end of the turn; padded on the right."""
    answers: Tensor
    """(Q, L) true at tokens of the answer and its end: those that the loss is a mean of."""
    k: int


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
    folder = cache / cache_key(path, reader, f"questions {frame}")
    if not (folder / "head.npy").is_file():
        with whole_folder(folder) as temporary:
            _write_questions(path, reader, temporary, report)
    return _load_questions(path.stem, folder)


def _write_questions(path: Path, reader: Reader, folder: Path, report: Report | None) -> None:
    contexts, blocks, num_answer, first_question = _Writer(), _Writer(), list[int](), [0]
    head = question_frame(reader, "?")[0]
    for context, rows in groupby(read_questions(path), key=lambda row: row.context):
        contexts.add(reader.encode(context))
        for row in rows:
            block, answer_tokens = question_block(reader, row)
            blocks.add(block)
            num_answer.append(answer_tokens)
            _check_fits(reader, len(head) + len(contexts.parts[-1]) + len(block), row)
        first_question.append(len(num_answer))
        if report is not None:
            report(path.name, len(first_question) - 1)
    if not num_answer:
        raise InputError(f"{_FORM}, but {str(path)!r} has no rows; check `questions`.")
    contexts.save(folder, "contexts")
    blocks.save(folder, "blocks")
    np.save(folder / "num_answer.npy", np.asarray(num_answer, dtype=np.int64))
    np.save(folder / "first_question.npy", np.asarray(first_question, dtype=np.int64))
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
        contexts=ragged("contexts"),
        blocks=ragged("blocks"),
        num_answer=array("num_answer"),
        first_question=array("first_question"),
    )


@dataclass(frozen=True, kw_only=True)
class DocumentSize:
    """Tokens of a document's parts, without padding, and its scale factor."""

    head_tokens: int
    context_tokens: int
    block_tokens: int
    k: int


class Questions(Dataset[Document]):
    """Documents drawn at random, a scale factor and at most `MAX_QUESTIONS` of the questions each.

    Documents whose numbers share `i // batch_size` share the scale factor.
    """

    def __init__(
        self,
        files: Sequence[QuestionFile],
        *,
        scale_factors: Sequence[int],
        batch_size: int = 1,
        seed: int = 0,
        first: FirstFactors | None = None,
    ) -> None:
        self.first = first
        self.files, self.scale_factors = list(files), list(scale_factors)
        self.batch_size, self.seed = batch_size, seed
        self.ends = np.cumsum([len(file) for file in files])

    def _draw(self, index: int) -> tuple[QuestionFile, int, list[int]]:
        """File, number of the document in it, numbers of its questions."""
        rng = np.random.default_rng((self.seed, 3, index))
        place = int(rng.integers(self.ends[-1]))
        number = int(np.searchsorted(self.ends, place, side="right"))
        file = self.files[number]
        document = place - int(self.ends[number]) + len(file)
        first, last = (int(each) for each in file.first_question[document : document + 2])
        some = rng.permutation(np.arange(first, last))[:MAX_QUESTIONS]
        return file, document, some.tolist()

    def num_predicted(self, index: int) -> int:
        """Tokens of the answers that document `index` asks for."""
        file, _, questions = self._draw(index)
        return int(file.num_answer[questions].sum())

    def __getitem__(self, index: int) -> Document:
        file, document, questions = self._draw(index)
        parts = [file.blocks[question] for question in questions]
        blocks = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
        places, ends = torch.arange(blocks.shape[1]), torch.tensor([len(part) for part in parts])
        starts = ends - torch.from_numpy(file.num_answer[questions])
        return Document(
            head=torch.from_numpy(file.head),
            context=file.contexts[document],
            blocks=blocks,
            answers=(places >= starts[:, None]) & (places < ends[:, None]),
            k=self._scale_factor(index),
        )

    def _scale_factor(self, index: int) -> int:
        draw = np.random.default_rng((self.seed, 4, index // self.batch_size))
        return int(draw.choice(factors_of(index, self.scale_factors, self.first)))

    def size(self, index: int) -> DocumentSize:
        """How large document `index` is; its tokens are not read."""
        file, document, questions = self._draw(index)
        lengths = np.diff(file.blocks.starts)[questions]
        start, end = file.contexts.starts[document : document + 2]
        return DocumentSize(
            head_tokens=len(file.head),
            context_tokens=int(end - start),
            block_tokens=int(lengths.sum()),
            k=self._scale_factor(index),
        )


class Mixed(Dataset[Instance | Document]):
    """Instances of text and documents with questions, batch by batch one or the other.

    Args:
        texts: instances.
        questions: documents; None: there is text alone.
        share: of the batches that are questions.
    """

    def __init__(self, texts: Instances, questions: Questions | None, share: float) -> None:
        self.texts, self.questions, self.share = texts, questions, share

    def __len__(self) -> int:
        return len(self.texts)

    def asks(self, index: int) -> bool:
        """Whether number `index` is a document with questions."""
        if self.questions is None:
            return False
        draw = np.random.default_rng((self.texts.seed, 5, index // self.texts.batch_size))
        return bool(draw.random() < self.share)

    def num_predicted(self, index: int, one_stream: bool = False) -> tuple[int, int]:
        """Tokens that number `index` predicts, and how many of them are of answers."""
        if self.asks(index):
            assert self.questions is not None
            count = self.questions.num_predicted(index)
            return count, count
        return self.texts.shape(index).num_predicted(one_stream), 0

    def __getitem__(self, index: int) -> Instance | Document:
        if self.asks(index):
            assert self.questions is not None
            return self.questions[index]
        return self.texts[index]


def collate(drawn: Sequence[Instance | Document]) -> dict[str, Any]:
    """One batch, all instances or all documents, with the scale factor that it shares.

    Instances become `token_ids` (B, N, L); documents, which do not stack, the list `documents`.
    """
    k = drawn[0].k
    if isinstance(drawn[0], Instance):
        return {"token_ids": torch.stack([each.token_ids for each in drawn]), "k": k}  # type: ignore[union-attr]
    names = ("head", "context", "blocks", "answers")
    return {"documents": [{name: getattr(each, name) for name in names} for each in drawn], "k": k}
