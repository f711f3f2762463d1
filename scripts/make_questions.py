"""Makes the questions of the second stage of training: a context, and several questions on it.

    python scripts/make_questions.py --text books.parquet docs.parquet --code code.parquet \
        --qa qa/fairytaleqa-dev.parquet qa/babi-dev.parquet --out questions.parquet --kept kept

Synthetic questions about excerpts of --text and --code, and questions of the --qa files on parts of
their documents. One fifth of the documents of a --qa file is kept back: these rows go to --kept, in
a file of the same name and columns, which the evaluation's tasks read. Out comes one file with the
columns context, question, answers and task; rows on one context follow one another.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from extensible_embedding.cli.console import OnProgress, note, plain_table, progress_bar, stdout
from extensible_embedding.errors import ExtensibleError, InputError, StorageError
from extensible_embedding.evals.tasks.babi import Babi
from extensible_embedding.evals.tasks.fairytaleqa import FairytaleQa
from extensible_embedding.evals.tasks.nq_open import NqOpen
from extensible_embedding.evals.tasks.qmsum import QmSum
from extensible_embedding.train.data import read_texts
from extensible_embedding.train.question_files import (
    QA_TASKS,
    Group,
    Room,
    read_question_file,
    regroup,
    split,
    task_name,
)
from extensible_embedding.train.synthetic import (
    CODE_KINDS,
    LEAST_CHARS,
    PROSE_KINDS,
    Documents,
    make,
)

_CODE_SHARE = 0.25
"""Of the kinds that prose and code have in common."""
_SPOKEN = {
    "babi": Babi.prompt,
    "cloze": Babi.prompt,
    "fairytaleqa": FairytaleQa.prompt,
    "key-value": FairytaleQa.prompt,
    "nq-open-oracle": NqOpen.prompt,
    "passkey": FairytaleQa.prompt,
    "qmsum": QmSum.prompt,
    "who-said": FairytaleQa.prompt,
}
"""How half of the questions of a task are put: as the evaluation's tasks put theirs."""


@dataclass(frozen=True, kw_only=True)
class Texts:
    """What synthetic questions are about."""

    prose: Documents
    code: Documents | None
    context_chars: int


def main(words: Sequence[str] | None = None) -> int:
    """Makes the file and the kept files; returns the exit code."""
    try:
        run(_parser().parse_args(words))
    except ExtensibleError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    prose = "Prose: .parquet, .jsonl or .txt; bAbI's statements go into the first of them."
    add("--text", type=Path, nargs="+", required=True, help=prose)
    add("--code", type=Path, nargs="+", default=[], help="Source code, in files of the same kinds.")
    add("--qa", type=Path, nargs="+", default=[], help=f"Files of {', '.join(QA_TASKS)}.")
    add("--out", type=Path, required=True, help="The file to write, .parquet.")
    add("--kept", type=Path, help="Folder for what is kept back of each --qa file.")
    add("--contexts", type=int, default=6000, help="Synthetic contexts in all.")
    add("--qa-contexts", type=int, default=1000, help="The most contexts of each --qa file.")
    add("--context-chars", type=int, default=3600, help="The most characters of a context.")
    add("--seed", type=int, default=0, help="Of everything that is drawn.")
    return parser


def run(options: argparse.Namespace) -> None:
    """Reads, makes, writes and prints a table.

    Raises:
        InputError: an argument or a file is not usable.
        StorageError: the disk refused.
    """
    check(options)
    tables = {path: read_question_file(path) for path in options.qa}
    prose = [_texts(path) for path in options.text]
    code = [text for path in options.code for text in _texts(path)]
    texts = Texts(
        prose=Documents(text for each in prose for text in each),
        code=Documents(code) if code else None,
        context_chars=options.context_chars,
    )
    room = Room(context_chars=options.context_chars, haystack=Documents(prose[0]))
    groups: list[Group] = []
    for path, table in tables.items():
        kept, used = split(table)
        write(kept, options.kept / path.name)
        rng = random.Random(f"{options.seed} {path.name}")
        found = list(regroup(task_name(path), used, room, rng))
        groups += rng.sample(found, min(len(found), max(0, options.qa_contexts)))
    with progress_bar("Making questions", "contexts") as report:
        groups += synthetic(texts, options.contexts, options.seed, report)
    rng = random.Random(f"{options.seed} order")
    rng.shuffle(groups)
    write(as_table(groups, rng), options.out)
    print_table(groups)


def check(options: argparse.Namespace) -> None:
    """Refuses what cannot be used, before anything is read or written.

    Raises:
        InputError: a file is for evaluation only, or an argument makes no sense.
    """
    if options.context_chars < LEAST_CHARS:
        raise InputError(
            f"--context-chars is {LEAST_CHARS} or more, but it is {options.context_chars}; give "
            "more."
        )
    if options.qa and options.kept is None:
        raise InputError("Of --qa files a part is kept back; name a folder for it with --kept.")
    sources = [*options.text, *options.code, *options.qa]
    for path in sources:
        if path.stem.endswith("-eval"):
            raise InputError(f"{str(path)!r} is for evaluation only; give a training file.")
    for path in (options.out, *(options.kept / path.name for path in options.qa)):
        if path.resolve() in [source.resolve() for source in sources]:
            raise InputError(f"{str(path)!r} is read, so it cannot be written; name another place.")
    for path in options.qa:
        task_name(path)


def _texts(path: Path) -> list[str]:
    texts = [text for text in read_texts(path) if text.strip()]
    if not texts:
        raise InputError(f"Contexts are made of text, but {str(path)!r} has none; leave it out.")
    return texts


def synthetic(texts: Texts, contexts: int, seed: int, report: OnProgress) -> Iterator[Group]:
    """Synthetic questions, all kinds in turn; a kind that fails twice is given up."""
    kinds = list(PROSE_KINDS if texts.code is None else {**PROSE_KINDS, **CODE_KINDS})
    missed: Counter[str] = Counter()
    for number in range(contexts):
        kind = kinds[number % len(kinds)]
        rng = random.Random(f"{seed} {kind} {number}")
        group = None if missed[kind] > 1 else synthetic_group(kind, texts, rng)
        if group is None:
            missed[kind] += 1
        else:
            yield group
        report(number + 1, contexts)
    for kind, count in missed.items():
        note(f"{kind}: {count} contexts fewer; the texts have too little to ask about so.")


def synthetic_group(kind: str, texts: Texts, rng: random.Random) -> Group | None:
    """A context of a kind out of prose or, for a part of those that both can have, out of code."""
    is_code = kind not in PROSE_KINDS or (kind in CODE_KINDS and rng.random() < _CODE_SHARE)
    documents = texts.code if is_code and texts.code else texts.prose
    asked = make(
        kind,
        documents,
        is_code=documents is texts.code,
        context_chars=texts.context_chars,
        rng=rng,
    )
    if asked is None:
        return None
    questions = tuple((question, (answer,)) for question, answer in asked.pairs)
    return Group(task=kind, context=asked.context, questions=questions)


def as_table(groups: Iterable[Group], rng: random.Random) -> pa.Table:
    """A row for each question, half of them as the evaluation's tasks put theirs."""
    rows = [
        {
            "context": group.context,
            "question": _put(group.task, question, rng),
            "answers": answers,
            "task": group.task,
        }
        for group in groups
        for question, answers in group.questions
    ]
    text = pa.string()
    fields = {"context": text, "question": text, "answers": pa.list_(text), "task": text}
    return pa.Table.from_pylist(rows, schema=pa.schema(list(fields.items())))


def _put(task: str, question: str, rng: random.Random) -> str:
    prompt = _SPOKEN.get(task, "{question}") if rng.random() < 0.5 else "{question}"
    return prompt.format(question=question)


def write(table: pa.Table, path: Path) -> None:
    """Writes a whole file or none.

    Raises:
        StorageError: the disk refused.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, temporary, compression="zstd")
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise StorageError(
            f"{str(path)!r} cannot be written ({error}); check the folder and the disk."
        ) from error


def print_table(groups: Sequence[Group]) -> None:
    """Contexts and questions of each task, and how long they are."""
    table = plain_table(
        ["task"],
        ["contexts", "questions", "mean context characters", "mean answer characters"],
    )
    for task in sorted({group.task for group in groups}):
        found = [group for group in groups if group.task == task]
        answers = [answers[0] for group in found for _, answers in group.questions]
        context_chars = sum(len(group.context) for group in found) / len(found)
        answer_chars = sum(map(len, answers)) / len(answers)
        numbers = (len(found), len(answers), context_chars, answer_chars)
        table.add_row(task, *(f"{number:,.0f}" for number in numbers))
    stdout().print(table)


if __name__ == "__main__":
    sys.exit(main())
