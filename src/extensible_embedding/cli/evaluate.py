"""`extensible eval`: measurements, as a table and as records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from .console import load_embedder, load_reader, plain_table, progress_bar, quiet_libraries, stdout
from .group import ExtensibleCommand, summary
from .measuring import (
    BudgetOption,
    DataOption,
    MoreFiles,
    NumTargetsOption,
    RecordsOption,
    SeedOption,
    TargetTokensOption,
    check_data,
    interval,
    journal_of,
    parse_scale_factors,
    parts,
    positive,
    tell_reasons,
)
from .options import AUTO, Models, check_writable, with_models
from .questions import qa
from .report import report

if TYPE_CHECKING:
    from ..evals.records import LmRecord

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, short_help="Measure an embedder.")


@app.callback()
def evaluations() -> None:
    """Measure an embedder against its reader on raw text."""


@with_models
def lm(
    data: DataOption,
    more: MoreFiles = None,
    methods: Annotated[
        str,
        typer.Option(
            "--methods",
            metavar="NAME,...",
            help="What stands before the targets: `none` no context, `raw` the tokens of the "
            "context, `extensible` its rows, `extensible-raw-end` no more rows, about half of them "
            "its last tokens raw, `recent` its last tokens alone, as many as there would be rows, "
            "`mean-pool` averaged token embeddings; with --windows also `extensible-online`, "
            "`extensible-mixed` rows with the best spans raw, `extensible-adaptive` whatever has "
            "predicted the text best so far, `truncate`, `streaming-llm`, `retrieve`, "
            "`llmlingua`, `llmlingua-2`, `kvpress-snapkv`, `kvpress-streaming-llm`, "
            "`kvpress-knorm`, `pi`, `ntk` and `yarn`.",
        ),
    ] = "none,raw,extensible",
    k: Annotated[
        str,
        typer.Option(
            "--k",
            metavar="N,...|auto",
            help="Scale factors of the rows; `auto`, with --windows, lets the method choose.",
        ),
    ] = "2,4,8,16,32",
    context_tokens: Annotated[
        str, typer.Option("--context-tokens", metavar="N,...", help="Lengths of the context.")
    ] = "1024,4096",
    target_tokens: TargetTokensOption = 256,
    num_targets: NumTargetsOption = 64,
    windows: Annotated[
        str,
        typer.Option(
            "--windows",
            metavar="N,...",
            help="Compare in equal windows: rows that head, context and target may take in all.",
        ),
    ] = "",
    concatenate: Annotated[
        bool,
        typer.Option(
            "--concatenate",
            help="Join the documents of a domain to one text, for contexts longer than any.",
        ),
    ] = False,
    seed: SeedOption = 0,
    budget_minutes: BudgetOption = None,
    out: RecordsOption = None,
    *,
    models: Models,
) -> None:
    """Measure how well the reader predicts text after compressed context.

    Compares the loss on the same targets without context, after raw context and after rows; with
    --windows what each method makes of the same number of rows. With --json FILE every loss is kept
    beside it as it is measured, and the same command goes on after a stop.
    """
    asked = Measurement(
        data=[*data, *(more or [])],
        methods=parts(methods),
        scale_factors=parse_scale_factors(k, bool(windows)),
        context_tokens=[positive("--context-tokens", part) for part in parts(context_tokens)],
        windows=[positive("--windows", part) for part in parts(windows)],
        target_tokens=target_tokens,
        num_targets=num_targets,
        concatenate=concatenate,
        seed=seed,
        budget_minutes=budget_minutes,
        out=out,
    )
    asked.check()
    _measure(asked, models)


app.command(name="lm", cls=ExtensibleCommand, short_help=summary(lm))(lm)
app.command(name="qa", cls=ExtensibleCommand, short_help=summary(qa))(qa)
app.command(name="report", cls=ExtensibleCommand, short_help=summary(report))(report)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What is to be measured, and the file of the records."""

    data: list[Path]
    methods: list[str]
    scale_factors: list[int]
    context_tokens: list[int]
    windows: list[int]
    target_tokens: int
    num_targets: int
    concatenate: bool
    seed: int
    budget_minutes: float | None
    out: Path | None

    def check(self) -> None:
        """Raises InputError or StorageError before a model is loaded for nothing."""
        from ..evals.methods import check_methods

        check_methods(self.methods, recovery=not self.windows)
        check_data(self.data)
        if self.out is not None:
            check_writable("--json", self.out)


@quiet_libraries()
def _measure(asked: Measurement, models: Models) -> None:
    from ..evals.lm import evaluate_lm
    from ..evals.records import write_records

    embedder = load_embedder(models, load_reader(models.reader, models))
    with progress_bar("Evaluating", "targets") as progress:
        records = evaluate_lm(
            embedder,
            asked.data,
            methods=asked.methods,
            scale_factors=asked.scale_factors,
            context_tokens=asked.context_tokens,
            windows=asked.windows,
            target_tokens=asked.target_tokens,
            num_targets=asked.num_targets,
            seed=asked.seed,
            concatenate=asked.concatenate,
            budget_minutes=asked.budget_minutes,
            journal=journal_of(asked.out),
            progress=progress,
        )
    if asked.out is not None:
        configuration = {
            "data": asked.data,
            "reader": embedder.reader.name,
            "embedder": models.embedder,
            "methods": asked.methods,
            "scale_factors": asked.scale_factors or AUTO,
            "context_tokens": asked.context_tokens,
            "windows": asked.windows,
            "target_tokens": asked.target_tokens,
            "num_targets": asked.num_targets,
            "concatenate": asked.concatenate,
            "budget_minutes": asked.budget_minutes,
            "seed": asked.seed,
        }
        write_records(records, asked.out, configuration=configuration)
    stdout().print(records_table(records))
    tell_reasons(records)


def records_table(records: Sequence[LmRecord]) -> Table:
    """Loss, perplexity and recovery (in windows: change against truncate) of each record.

    In brackets the 95 percent intervals.
    """
    windows = any(record.window for record in records)
    numbers = ["k", "tokens", *(["window"] if windows else []), "n", "loss", "ppl"]
    table = plain_table(["domain", "method"], [*numbers, "vs trunc." if windows else "recovery"])
    for record in records:
        versus = interval(record.versus_truncate, record.versus_low, record.versus_high)
        recovery = interval(record.recovery, record.recovery_low, record.recovery_high)
        table.add_row(
            record.domain,
            record.method,
            str(record.k),
            f"{record.context_tokens:,}",
            *([f"{record.window:,}" if record.window else "-"] if windows else []),
            str(record.num_targets),
            interval(record.loss_nats, record.loss_low, record.loss_high),
            "-" if record.perplexity is None else f"{record.perplexity:.2f}",
            versus if windows else recovery,
        )
    return table
