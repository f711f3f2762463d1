"""`extensible eval`: measurements, as a table and as records."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ..downsampling import check_scale_factor
from ..errors import InputError
from .console import load_embedder, load_reader, progress_bar, stdout
from .options import RELEASED, EmbedderOption, ReaderOption, parse_k

app = typer.Typer(no_args_is_help=True, help="Measure an embedder.")


@app.callback()
def evaluations() -> None:
    """Measure an embedder against its reader on raw text."""


@app.command()
def lm(
    data: Annotated[
        list[Path],
        typer.Option(
            "--data",
            metavar="FILE...",
            help="Texts to evaluate on, a domain each: .parquet files with a column `text`.",
        ),
    ],
    more: Annotated[list[Path] | None, typer.Argument(metavar="[FILE...]", hidden=True)] = None,
    methods: Annotated[
        str,
        typer.Option(
            "--methods",
            metavar="NAME,...",
            help="What stands before the targets: 'none' no context, 'raw' the context's tokens, "
            "'extensible' its rows.",
        ),
    ] = "none,raw,extensible",
    k: Annotated[
        str, typer.Option("--k", metavar="N,...", help="Scale factors of the rows.")
    ] = "2,4,8,16,32",
    context_tokens: Annotated[
        str, typer.Option("--context-tokens", metavar="N,...", help="Lengths of the context.")
    ] = "1024,4096",
    target_tokens: Annotated[
        int, typer.Option("--target-tokens", metavar="N", help="Tokens predicted after a context.")
    ] = 256,
    num_targets: Annotated[
        int, typer.Option("--num-targets", metavar="N", help="Places measured in each file.")
    ] = 64,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the places drawn.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write every record there.")
    ] = None,
    reader: ReaderOption = "default",
    embedder: EmbedderOption = RELEASED,
) -> None:
    """Measure how well the reader predicts text after compressed context.

    Compares the loss on the same targets without context, after raw context and after rows.
    """
    from ..evals.lm import evaluate_lm, write_records

    factors = [check_scale_factor(parse_k(part)) for part in _parts(k)]
    lengths = [_positive("--context-tokens", part) for part in _parts(context_tokens)]
    loaded = load_embedder(embedder, load_reader(reader))
    with progress_bar("Evaluating", "steps") as progress:
        records = evaluate_lm(
            loaded,
            [*data, *(more or [])],
            methods=_parts(methods),
            scale_factors=factors,
            context_tokens=lengths,
            target_tokens=target_tokens,
            num_targets=num_targets,
            seed=seed,
            progress=progress,
        )
    if out is not None:
        write_records(records, out)
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


def records_table(records: Sequence[Any]) -> Table:
    """A table with a row for each record (a dataclass) and a column for each of its fields."""
    names = [field.name for field in dataclasses.fields(records[0])] if records else []
    table = Table(*(name.replace("_", " ") for name in names))
    for record in records:
        table.add_row(*(_cell(getattr(record, name)) for name in names))
    return table


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else str(value)
