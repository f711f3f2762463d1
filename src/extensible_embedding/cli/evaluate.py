"""`extensible eval`: measurements, as a table and as records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ..downsampling import check_scale_factor
from ..errors import InputError
from .console import load_embedder, load_reader, progress_bar, stdout
from .options import RELEASED, EmbedderOption, ReaderOption, parse_k

if TYPE_CHECKING:
    from ..evals.records import LmRecord

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
    more: Annotated[list[Path] | None, typer.Argument(metavar="FILE", hidden=True)] = None,
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
    from ..evals.lm import evaluate_lm
    from ..evals.records import write_records

    factors = [check_scale_factor(parse_k(part)) for part in _parts(k)]
    lengths = [_positive("--context-tokens", part) for part in _parts(context_tokens)]
    loaded = load_embedder(embedder, load_reader(reader))
    files = [*data, *(more or [])]
    with progress_bar("Evaluating", "targets") as progress:
        records = evaluate_lm(
            loaded,
            files,
            methods=_parts(methods),
            scale_factors=factors,
            context_tokens=lengths,
            target_tokens=target_tokens,
            num_targets=num_targets,
            seed=seed,
            progress=progress,
        )
    if out is not None:
        asked = {
            "data": files,
            "reader": loaded.reader.name,
            "embedder": embedder,
            "target_tokens": target_tokens,
            "seed": seed,
        }
        write_records(records, out, configuration=asked)
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
    table = Table("domain", "method", "k", "context", "targets", "loss", "perplexity", "recovery")
    for record in records:
        table.add_row(
            record.domain,
            record.method,
            str(record.k),
            f"{record.context_tokens:,}",
            str(record.num_targets),
            f"{record.loss_nats:.3f} [{record.loss_low:.3f}, {record.loss_high:.3f}]",
            f"{record.perplexity:.2f}",
            _recovery(record),
        )
    return table


def _recovery(record: LmRecord) -> str:
    if record.recovery is None:
        return "-"
    if record.recovery_low is None or record.recovery_high is None:
        return f"{record.recovery:.3f}"
    return f"{record.recovery:.3f} [{record.recovery_low:.3f}, {record.recovery_high:.3f}]"
