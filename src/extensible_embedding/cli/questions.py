"""`extensible eval qa`: answers to questions about long documents, scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ..errors import InputError
from .console import load_embedder, load_reader, plain_table, progress_bar, quiet_libraries, stdout
from .measuring import (
    BudgetOption,
    RecordsOption,
    SeedOption,
    journal_of,
    parse_scale_factors,
    parts,
    positive,
    tell_reasons,
)
from .options import AUTO, Models, at_least, check_writable, with_models

if TYPE_CHECKING:
    from ..evals.records import QaRecord
    from ..evals.tasks import Task

LEAST_CONTEXT = 64
"""Tokens of contexts of one length, as `evals.lengths` has it."""


@with_models
def qa(
    task: Annotated[
        list[str],
        typer.Option(
            "--task",
            metavar="NAME=FILE",
            help="A task and its file, parquet, several times for several tasks: squad2, xquad, "
            "covidqa, fairytaleqa, qmsum, babi, longeval-topics, longeval-lines, kv-retrieval, "
            "nq-open; passkey and needle take a file of books, longbench and ruler the JSON lines "
            "of their authors.",
        ),
    ],
    methods: Annotated[
        str,
        typer.Option(
            "--methods",
            metavar="NAME,...",
            help="How the document is read: `none` not at all, `raw` whole in the reader's own "
            "window, `truncate` its most recent tokens, `streaming-llm` with the first ones, "
            "`retrieve` the pieces that BM25 finds, `llmlingua` and `llmlingua-2` the words that "
            "tell most, `kvpress-snapkv`, `kvpress-streaming-llm` and `kvpress-knorm` a compressed "
            "cache, `extensible` rows, `extensible-online` rows of a stream, `extensible-mixed` "
            "rows with the best spans raw, `mean-pool` averaged tokens.",
        ),
    ] = "none,truncate,retrieve,extensible",
    k: Annotated[
        str,
        typer.Option(
            "--k", metavar="N,...|auto", help="Scale factors; `auto` lets the method choose."
        ),
    ] = "auto",
    windows: Annotated[
        str,
        typer.Option(
            "--windows",
            metavar="N,...",
            help="Rows that prompt and answer may take, but for `raw`; by default the reader's own "
            "window.",
        ),
    ] = "",
    context_tokens: Annotated[
        int | None,
        typer.Option(
            "--context-tokens",
            metavar="N",
            help="Make every context about so long: a longer one is cut around what answers, a "
            "shorter one filled with other documents (bAbI's with a book); what allows neither is "
            "left out. By default contexts are as the tasks have them.",
            callback=at_least(LEAST_CONTEXT, "--context-tokens"),
            show_default=False,
        ),
    ] = None,
    num_examples: Annotated[
        int,
        typer.Option(
            "--num-examples",
            metavar="N",
            help="Questions of each task.",
            callback=at_least(1, "--num-examples"),
        ),
    ] = 50,
    seed: SeedOption = 0,
    budget_minutes: BudgetOption = None,
    out: RecordsOption = None,
    *,
    models: Models,
) -> None:
    """Answer questions about long documents by several methods, and score the answers.

    With --json FILE every answer is kept beside it before it is scored, and the same command goes
    on after a stop.
    """
    from ..evals.methods import check_methods

    check_methods(parts(methods))
    asked = Questions(
        tasks=_tasks(task),
        methods=parts(methods),
        scale_factors=parse_scale_factors(k, may_choose=True),
        windows=[positive("--windows", part) for part in parts(windows)] or [None],
        context_tokens=context_tokens,
        num_examples=num_examples,
        seed=seed,
        budget_minutes=budget_minutes,
        out=out,
    )
    if out is not None:
        check_writable("--json", out)
    _answer(asked, models)


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What is asked, and the file of the records."""

    tasks: list[Task]
    methods: list[str]
    scale_factors: list[int]
    windows: Sequence[int | None]
    context_tokens: int | None
    num_examples: int
    seed: int
    budget_minutes: float | None
    out: Path | None


def _tasks(words: Sequence[str]) -> list[Task]:
    """Tasks from NAME=FILE.

    Raises:
        InputError: there is no such task or file, or the names were asked for.
    """
    from ..evals.tasks import TASKS, make_task

    tasks = []
    for word in words:
        name, equals, file = word.partition("=")
        if not equals:
            raise InputError(
                f"--task is NAME=FILE with a name of {', '.join(TASKS)}, but it is {word!r}; give "
                "for example squad2=questions.parquet."
            )
        if not Path(file).is_file():
            raise InputError(f"--task names a file, but there is no {file!r}; check the path.")
        tasks.append(make_task(name, Path(file)))
    _check_names(tasks)
    return tasks


def _check_names(tasks: Sequence[Task]) -> None:
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"Tasks are told apart by their names, but two are {name!r}; ask them one after "
                "the other, with a --json for each, or put their questions into one file."
            )


@quiet_libraries()
def _answer(asked: Questions, models: Models) -> None:
    from ..evals.qa import evaluate_qa
    from ..evals.records import write_records

    embedder = load_embedder(models, load_reader(models.reader, models))
    with progress_bar("Answering", "answers") as progress:
        records = evaluate_qa(
            embedder,
            asked.tasks,
            methods=asked.methods,
            scale_factors=asked.scale_factors,
            windows=asked.windows,
            context_tokens=asked.context_tokens,
            num_examples=asked.num_examples,
            seed=asked.seed,
            journal=journal_of(asked.out),
            budget_minutes=asked.budget_minutes,
            progress=progress,
        )
    if asked.out is not None:
        configuration = {
            "tasks": [task.name for task in asked.tasks],
            "reader": embedder.reader.name,
            "embedder": models.embedder,
            "methods": asked.methods,
            "scale_factors": asked.scale_factors or AUTO,
            "windows": asked.windows,
            "context_tokens": asked.context_tokens,
            "num_examples": asked.num_examples,
            "budget_minutes": asked.budget_minutes,
            "seed": asked.seed,
        }
        write_records(records, asked.out, configuration=configuration)
    stdout().print(scores_table(records))
    tell_reasons(records)


def scores_table(records: Sequence[QaRecord]) -> Table:
    """Mean score of each record, and how much more it is than with the most recent tokens.

    In brackets the 95 percent interval.
    """
    from ..evals.methods import WITH_K

    table = plain_table(
        ["task", "part", "method", "score of"], ["k", "window", "n", "mean", "to truncate"]
    )
    for record in records:
        table.add_row(
            record.task,
            record.part,
            record.method,
            record.scorer,
            str(record.k or "auto") if record.method in WITH_K else "-",
            f"{record.window:,}" if record.window else "-",
            str(record.num_examples),
            _bounded(record.score, record.low, record.high),
            _bounded(record.versus_truncate, record.versus_low, record.versus_high, "+"),
        )
    return table


def _bounded(value: float | None, low: float | None, high: float | None, sign: str = "") -> str:
    if value is None:
        return "-"
    return f"{value:{sign}.3f}" + ("" if low is None else f" [{low:{sign}.2f}, {high:{sign}.2f}]")
