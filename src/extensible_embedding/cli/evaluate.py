"""`extensible eval`: measurements, as a table and as records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ..errors import InputError
from .compress import check_writable
from .console import load_embedder, load_reader, progress_bar, quiet_libraries, stdout
from .group import ExtensibleCommand, remember_json, summary
from .options import Models, at_least, parse_scale_factor, with_models

if TYPE_CHECKING:
    from ..evals.records import LmRecord

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, short_help="Measure an embedder.")


@app.callback()
def evaluations() -> None:
    """Measure an embedder against its reader on raw text."""


@with_models
def lm(
    data: Annotated[
        list[Path],
        typer.Option(
            "--data",
            metavar="FILE...",
            help="Texts to evaluate on, a domain each: .parquet files with a column `text`.",
        ),
    ],
    more: Annotated[list[Path] | None, typer.Argument(metavar="FILE", hidden=True)] = None,
    methods: Annotated[
        str,
        typer.Option(
            "--methods",
            metavar="NAME,...",
            help="What stands before the targets: `none` no context, `raw` the tokens of the "
            "context, `extensible` its rows.",
        ),
    ] = "none,raw,extensible",
    k: Annotated[
        str, typer.Option("--k", metavar="N,...", help="Scale factors of the rows.")
    ] = "2,4,8,16,32",
    context_tokens: Annotated[
        str, typer.Option("--context-tokens", metavar="N,...", help="Lengths of the context.")
    ] = "1024,4096",
    target_tokens: Annotated[
        int,
        typer.Option(
            "--target-tokens",
            metavar="N",
            help="Tokens predicted after a context.",
            callback=at_least(1, "--target-tokens"),
        ),
    ] = 256,
    num_targets: Annotated[
        int,
        typer.Option(
            "--num-targets",
            metavar="N",
            help="Places measured in each file.",
            callback=at_least(1, "--num-targets"),
        ),
    ] = 64,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the places drawn.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="FILE",
            help="Also write every record there, and an error as JSON on stdout.",
            is_eager=True,
            callback=remember_json,
        ),
    ] = None,
    *,
    models: Models,
) -> None:
    """Measure how well the reader predicts text after compressed context.

    Compares the loss on the same targets without context, after raw context and after rows.
    """
    asked = Measurement(
        data=[*data, *(more or [])],
        methods=_parts(methods),
        scale_factors=[parse_scale_factor(part) for part in _parts(k)],
        context_tokens=[_positive("--context-tokens", part) for part in _parts(context_tokens)],
        target_tokens=target_tokens,
        num_targets=num_targets,
        seed=seed,
        out=out,
    )
    asked.check()
    _measure(asked, models)


app.command(name="lm", cls=ExtensibleCommand, short_help=summary(lm))(lm)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What is to be measured, and the file of the records."""

    data: list[Path]
    methods: list[str]
    scale_factors: list[int]
    context_tokens: list[int]
    target_tokens: int
    num_targets: int
    seed: int
    out: Path | None

    def check(self) -> None:
        """Raises InputError or StorageError before a model is loaded for nothing."""
        from ..evals.methods import METHODS

        unknown = [name for name in self.methods if name not in METHODS]
        if unknown or not self.methods:
            found = f"{unknown[0]!r} is none of them" if unknown else "none is given"
            raise InputError(
                f"--methods names one or more of {', '.join(METHODS)}, but {found}; choose of "
                "these, with commas between."
            )
        missing = [file for file in self.data if not file.is_file()]
        if missing:
            raise InputError(
                f"--data names files, but there is no file {str(missing[0])!r}; check the path."
            )
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
            target_tokens=asked.target_tokens,
            num_targets=asked.num_targets,
            seed=asked.seed,
            progress=progress,
        )
    if asked.out is not None:
        configuration = {
            "data": asked.data,
            "reader": embedder.reader.name,
            "embedder": models.embedder,
            "target_tokens": asked.target_tokens,
            "seed": asked.seed,
        }
        write_records(records, asked.out, configuration=configuration)
    stdout().print(records_table(records))


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _positive(option: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise InputError(
            f"{option} is whole numbers of 1 or more with commas between, but it has {text!r}; "
            "give for example 1024,4096."
        )
    return int(text)


def records_table(records: Sequence[LmRecord]) -> Table:
    """Loss, perplexity and recovery of each record, with 95 percent intervals."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("domain", overflow="fold")
    table.add_column("method", no_wrap=True)
    for name in ("k", "tokens", "n", "loss", "ppl", "recovery"):
        table.add_column(name, justify="right", no_wrap=True)
    for record in records:
        table.add_row(
            record.domain,
            record.method,
            str(record.k),
            f"{record.context_tokens:,}",
            str(record.num_targets),
            _interval(record.loss_nats, record.loss_low, record.loss_high),
            "-" if record.perplexity is None else f"{record.perplexity:.2f}",
            _interval(record.recovery, record.recovery_low, record.recovery_high),
        )
    return table


def _interval(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "-"
    if low is None or high is None:
        return f"{value:.3f}"
    return f"{value:.3f} [{low:.2f}, {high:.2f}]"
