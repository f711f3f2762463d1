"""`extensible bench cost`: time, memory and cache of every method, as a table and as records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from .console import load_embedder, load_reader, plain_table, progress_bar, quiet_libraries, stdout
from .measuring import (
    BudgetOption,
    MoreFiles,
    RecordsOption,
    check_data,
    interval,
    journal_of,
    parse_scale_factors,
    parts,
    positive,
)
from .options import RELEASED, Models, at_least, check_writable, with_models

if TYPE_CHECKING:
    from ..evals.memory import ModelSource
    from ..evals.records import CostRecord
    from ..reader import Reader


@with_models
def cost(
    data: Annotated[
        list[Path] | None,
        typer.Option(
            "--data",
            metavar="FILE...",
            help="Texts that are read, one after the other and over again where a context is "
            "longer: documents, or .parquet files with a column `text`. By default a novel that "
            "ships with the package.",
        ),
    ] = None,
    more: MoreFiles = None,
    methods: Annotated[
        str,
        typer.Option(
            "--methods",
            metavar="NAME,...",
            help="What is measured, as in `extensible eval lm`. Raw reading is timed anyway where "
            "it fits: all others are compared with it.",
        ),
    ] = "raw,extensible",
    modes: Annotated[
        str,
        typer.Option(
            "--modes",
            metavar="NAME,...",
            help="How `extensible` reads: `online` compresses and reads, `offline` reads rows that "
            "were saved before, `stream` takes text in pieces and keeps what the window holds.",
        ),
    ] = "online,offline,stream",
    k: Annotated[
        str,
        typer.Option(
            "--k",
            metavar="N,...|auto",
            help="Scale factors of the rows; `auto`, with --windows, lets the method choose.",
        ),
    ] = "4,8,16,32,64",
    context_tokens: Annotated[
        str, typer.Option("--context-tokens", metavar="N,...", help="Lengths of the context.")
    ] = "4000,8000,16000,32000,64000",
    windows: Annotated[
        str,
        typer.Option(
            "--windows",
            metavar="N,...",
            help="Read in equal windows: rows that head, context and new tokens may take in all. "
            "Without, the context is read whole, as rows.",
        ),
    ] = "",
    new_tokens: Annotated[
        int,
        typer.Option(
            "--new-tokens",
            metavar="N",
            help="Tokens generated after a context.",
            callback=at_least(1, "--new-tokens"),
        ),
    ] = 16,
    repeats: Annotated[
        int,
        typer.Option(
            "--repeats",
            metavar="N",
            help="Rounds in which all is timed in turn.",
            callback=at_least(1, "--repeats"),
        ),
    ] = 5,
    raw_limit: Annotated[
        int,
        typer.Option(
            "--raw-limit",
            metavar="N",
            help="Longest context for methods whose reader reads every token, such as `pi`.",
            callback=at_least(1, "--raw-limit"),
        ),
    ] = 32_000,
    memory: Annotated[
        bool,
        typer.Option(
            "--memory/--no-memory",
            help="Measure the peak memory of every setting, once, in a process of its own.",
        ),
    ] = True,
    budget_minutes: BudgetOption = None,
    out: RecordsOption = None,
    *,
    models: Models,
) -> None:
    """Measure time to first token, speed, cache and memory against raw reading.

    Everything of one length is timed in turn, and again in every round; speed-ups are medians of
    ratios within a round. Beside them stands the speed-up that the numbers of operations allow.
    With --json FILE every measurement is kept beside it, and the same command goes on after a stop.
    """
    asked = CostBenchmark(
        data=[*(data or []), *(more or [])],
        settings={
            "methods": parts(methods),
            "modes": parts(modes),
            "scale_factors": parse_scale_factors(k, bool(windows)),
            "context_tokens": [
                positive("--context-tokens", part) for part in parts(context_tokens)
            ],
            "windows": [positive("--windows", part) for part in parts(windows)],
            "new_tokens": new_tokens,
            "num_repeats": repeats,
            "raw_limit": raw_limit,
        },
        memory=memory,
        budget_minutes=budget_minutes,
        out=out,
    )
    asked.check()
    _measure(asked, models)


@dataclass(frozen=True, kw_only=True)
class CostBenchmark:
    """What is to be measured, and the file of the records."""

    data: list[Path]
    settings: dict[str, Any]
    """Arguments of `measure_cost`."""
    memory: bool
    budget_minutes: float | None
    out: Path | None

    def check(self) -> None:
        """Raises InputError or StorageError before a model is loaded for nothing."""
        from ..evals.cost_settings import check_settings

        check_settings(**self.settings)
        check_data(self.data)
        if self.out is not None:
            check_writable("--json", self.out)


@quiet_libraries()
def _measure(asked: CostBenchmark, models: Models) -> None:
    from ..evals.cost import measure_cost
    from ..evals.records import write_records

    embedder = load_embedder(models, load_reader(models.reader, models))
    longest = max(asked.settings["context_tokens"])
    with progress_bar("Measuring", "readings") as progress:
        records = measure_cost(
            embedder,
            _token_ids(embedder.reader, asked.data, longest),
            **asked.settings,
            source=_source(models) if asked.memory else None,
            journal=journal_of(asked.out),
            budget_minutes=asked.budget_minutes,
            progress=progress,
        )
    if asked.out is not None:
        configuration = {
            "data": asked.data,
            "reader": embedder.reader.name,
            "embedder": models.embedder,
            "budget_minutes": asked.budget_minutes,
            **asked.settings,
        }
        write_records(records, asked.out, configuration=configuration)
    stdout().print(records_table(records))


def _token_ids(reader: Reader, data: Sequence[Path], longest: int) -> Any:
    from ..evals.targets import read_tokens
    from ..released import book_path

    return read_tokens(reader, list(data) or [book_path()], longest)


def _source(models: Models) -> ModelSource:
    """The same models, for the processes in which memory is measured."""
    from ..evals.memory import ModelSource
    from ..released import RELEASED_FOLDER

    return ModelSource(
        reader=models.reader,
        embedder=str(RELEASED_FOLDER) if models.embedder == RELEASED else models.embedder,
        derivative=models.derivative,
        device=models.device,
        dtype=models.dtype.value if models.dtype else None,
        window=models.window,
        trust_remote_code=models.trust_remote_code,
    )


def records_table(records: Sequence[CostRecord]) -> Table:
    """Of each record the median time, its speed-up with interval, bound, cache and memory.

    What could not be measured has its reason in the last column.
    """
    numbers = ["k", "tokens", "rows", "ttft s", "speed-up", "by FLOPs", "new/s", "cache MB"]
    table = plain_table(["method", "mode"], [*numbers, "peak MB"])
    table.add_column("note", overflow="fold")
    for record in records:
        table.add_row(
            record.method if record.window is None else f"{record.method} in {record.window:,}",
            record.mode,
            str(record.k or "auto"),
            f"{record.context_tokens:,}",
            _number(record.rows, ",.0f"),
            _number(record.ttft_s, ".2f"),
            interval(record.speedup, record.speedup_low, record.speedup_high, digits=2),
            _number(record.flop_bound, ".2f"),
            _number(record.new_tokens_per_s, ".1f"),
            _number(record.cache_bytes, ",.1f", 1e6),
            _number(record.peak_bytes, ",.0f", 1e6),
            record.note,
        )
    return table


def _number(value: float | None, form: str, unit: float = 1) -> str:
    return "-" if value is None else format(value / unit, form)
