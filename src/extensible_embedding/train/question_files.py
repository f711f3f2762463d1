"""Files of questions about long documents -> questions on contexts of a training length.

In: a parquet file whose rows have a document, the part of it that answers, a question and its
answers. Out: the rows of one fifth of the documents as they are, kept back for evaluation, and
groups of questions on parts of the others. Only the tasks of `QA_TASKS` are read; every other is
for evaluation only. Knows nothing of models or tokens.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import InputError
from .facts import paragraph_sentences
from .synthetic import LEAST_CHARS, Documents

Row = dict[str, Any]

_COLUMNS = ("doc_id", "context", "gold_context", "question", "answers", "task")
_KEPT_ONE_OF = 5
_MOST_ASKED = 2
_ANSWER_WORDS = 60
_QUESTION_WORDS = 4
_FEWEST_PASSAGES, _MOST_PASSAGES = 4, 7


@dataclass(frozen=True, kw_only=True)
class Group:
    """The questions on one context."""

    task: str
    context: str
    questions: tuple[tuple[str, tuple[str, ...]], ...]
    """(question, answers)."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """How long a context may be, and what fills one that is longer than its facts."""

    context_chars: int
    haystack: Documents


def task_name(path: Path) -> str:
    """The task of a question file.

    Raises:
        InputError: its questions are for evaluation only.
    """
    name = path.stem.removesuffix("-dev")
    if name not in QA_TASKS:
        raise InputError(
            f"Questions to train on are those of {', '.join(QA_TASKS)}, but {path.name!r} is none "
            "of these files: its questions are for evaluation only; leave it out."
        )
    return name


def read_question_file(path: Path) -> pa.Table:
    """A question file, all columns.

    Raises:
        InputError: it cannot be read, or its columns or its rows are other ones.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"A question file is parquet, but {str(path)!r} cannot be read as such ({error}); "
            "check it."
        ) from error
    missing = set(_COLUMNS) - set(table.column_names)
    if missing:
        raise InputError(
            f"A question file has the columns {', '.join(_COLUMNS)}, but {str(path)!r} lacks "
            f"{', '.join(sorted(missing))}; rename or add them."
        )
    tasks = {str(task) for task in table["task"].to_pylist()}
    others = [task for task in tasks if not task.startswith(task_name(path))]
    if others:
        raise InputError(
            f"The rows of {str(path)!r} are of the task that its name says, but some are of "
            f"{min(others)!r}; give the file its own name."
        )
    return table


def split(table: pa.Table) -> tuple[pa.Table, list[Row]]:
    """(the part kept back, rows to train on): whole documents, by a hash of their name.

    Of rows that are the same, word for word, one is trained on, and none that is kept back too.
    """
    is_kept = [is_kept_back(name) for name in table["doc_id"].to_pylist()]
    kept = table.filter(pa.array(is_kept, type=pa.bool_()))
    rows: dict[tuple[str, str], Row] = {}
    for row, back in zip(table.select(_COLUMNS).to_pylist(), is_kept, strict=True):
        if not back:
            rows.setdefault((row["context"], row["question"]), row)
    for text in zip(kept["context"].to_pylist(), kept["question"].to_pylist(), strict=True):
        rows.pop(text, None)
    return kept, list(rows.values())


def is_kept_back(doc_id: str) -> bool:
    """Whether a document is kept back from training, the same on every machine."""
    return int(hashlib.sha256(doc_id.encode()).hexdigest(), 16) % _KEPT_ONE_OF == 0


def regroup(task: str, rows: list[Row], room: Room, rng: random.Random) -> Iterator[Group]:
    """The questions of a task on contexts that fit."""
    for context, asked in QA_TASKS[task](rows, room, rng):
        questions = tuple((row["question"], tuple(row["answers"])) for row in asked)
        yield Group(task=task, context=context, questions=questions)


_Regrouped = Iterator[tuple[str, list[Row]]]


def _by(rows: Iterable[Row], column: str) -> dict[str, list[Row]]:
    found = defaultdict(list)
    for row in rows:
        found[row[column]].append(row)
    return found


def stories(rows: list[Row], room: Room, rng: random.Random) -> _Regrouped:
    """Paragraphs of tales, with the questions on them."""
    for document in _by(rows, "doc_id").values():
        yield from _windows(document, "\n\n", room.context_chars, rng)


def meetings(rows: list[Row], room: Room, rng: random.Random) -> _Regrouped:
    """Turns of meetings, with the requests on them, answered in a few sentences."""
    short = [
        {**row, "answers": answers}
        for row in rows
        if len(row["question"].split()) >= _QUESTION_WORDS  # shorter ones are mere titles
        and (answers := [begin for answer in row["answers"] if (begin := _shortened(answer))])
    ]
    for document in _by(short, "doc_id").values():
        yield from _windows(document, "\n", room.context_chars, rng)


def _shortened(answer: str) -> str:
    """Its first sentences, as many as are short enough; empty if not even one is."""
    sentences = paragraph_sentences(" ".join(answer.split()))
    ends = accumulate(len(sentence.split()) for sentence in sentences)
    fitting = [
        sentence for sentence, end in zip(sentences, ends, strict=True) if end <= _ANSWER_WORDS
    ]
    return " ".join(fitting)


def _windows(rows: list[Row], separator: str, context_chars: int, rng: random.Random) -> _Regrouped:
    """Parts of a document with the rows that they answer: every row that fits, once or twice."""
    document, asked = rows[0]["context"], Counter[int]()
    spans = [_gold_span(document, row["gold_context"]) for row in rows]
    for number in rng.sample(range(len(rows)), len(rows)):
        span = spans[number]
        if span is None or asked[number]:
            continue
        start, end = _widened(
            document, span, separator, rng.randint(LEAST_CHARS, context_chars), rng
        )
        if end - start <= context_chars:
            inside = [
                other
                for other, place in enumerate(spans)
                if place and start <= place[0] and place[1] <= end and asked[other] < _MOST_ASKED
            ]
            asked.update(inside)
            yield document[start:end], [rows[other] for other in inside]


def _gold_span(document: str, gold: str) -> tuple[int, int] | None:
    """From the first to the last character of the gold context, which may be in several parts."""
    pieces = [gold] if gold in document else gold.split("\n\n")
    places = [(document.find(piece), len(piece)) for piece in pieces if piece]
    if not places or min(places)[0] < 0:
        return None
    return min(places)[0], max(place + length for place, length in places)


def _widened(
    document: str, span: tuple[int, int], separator: str, chars: int, rng: random.Random
) -> tuple[int, int]:
    """A span of whole paragraphs or lines around another, wider while there is room."""
    start = _before(document, span[0], separator)
    end = _after(document, span[1], separator)
    while True:
        earlier = _before(document, max(0, start - len(separator)), separator)
        later = _after(document, min(len(document), end + len(separator)), separator)
        options = [(earlier, end)] * (earlier < start) + [(start, later)] * (later > end)
        fitting = [(first, last) for first, last in options if last - first <= chars]
        if not fitting:
            return start, end
        start, end = rng.choice(fitting)


def _before(document: str, place: int, separator: str) -> int:
    found = document.rfind(separator, 0, place)
    return 0 if found < 0 else found + len(separator)


def _after(document: str, place: int, separator: str) -> int:
    found = document.find(separator, place)
    return len(document) if found < 0 else found


def passages(rows: list[Row], room: Room, rng: random.Random) -> _Regrouped:
    """A few passages in one context, with the questions of all of them; each passage twice."""
    by_passage = _by(rows, "context")
    for _ in range(_MOST_ASKED):
        left = rng.sample(list(by_passage), len(by_passage))
        while len(left) >= _FEWEST_PASSAGES:
            count = rng.randint(_FEWEST_PASSAGES, _MOST_PASSAGES)
            while count and len("\n\n".join(left[:count])) > room.context_chars:
                count -= 1
            chosen, left = left[:count], left[max(1, count) :]
            if chosen:
                asked = [row for passage in chosen for row in by_passage[passage]]
                yield "\n\n".join(chosen), asked


def statements(rows: list[Row], room: Room, rng: random.Random) -> _Regrouped:
    """A story's statements up to some question: once by themselves, once inside a book."""
    for story in _by(rows, "doc_id").values():
        contexts = _by(story, "context")
        chosen = rng.sample(list(contexts), min(2, len(contexts)))
        forms = rng.sample((True, False), len(chosen))
        for context, is_spread in zip(chosen, forms, strict=True):
            text = _spread(context, room, rng) if is_spread else context
            if len(text) <= room.context_chars:
                yield text, contexts[context]


def _spread(story: str, room: Room, rng: random.Random) -> str:
    """Statements in their order between paragraphs of an excerpt."""
    chars = max(LEAST_CHARS, room.context_chars - 2 * len(story))
    paragraphs = room.haystack.excerpt(rng, chars).split("\n\n")
    lines = story.split("\n")
    places = sorted(rng.randint(0, len(paragraphs)) for _ in lines)
    for place, line in reversed(list(zip(places, lines, strict=True))):
        paragraphs.insert(place, line)
    return "\n\n".join(paragraphs)


QA_TASKS: Mapping[str, Callable[[list[Row], Room, random.Random], _Regrouped]] = {
    "fairytaleqa": stories,
    "qmsum": meetings,
    "nq-open-oracle": passages,
    "babi": statements,
}
"""Tasks whose questions may be trained on, and how their contexts are made."""
