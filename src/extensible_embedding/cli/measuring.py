"""Options that the commands of `eval` and `bench` share, and how their values are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError
from .console import note
from .group import remember_json
from .options import AUTO, at_least, parse_scale_factor

if TYPE_CHECKING:
    from ..evals.records import LmRecord, QaRecord

DataOption = Annotated[
    list[Path],
    typer.Option(
        "--data",
        metavar="FILE...",
        help="Texts to measure on, a domain each: .parquet files with a column `text`.",
    ),
]
MoreFiles = Annotated[list[Path] | None, typer.Argument(metavar="FILE", hidden=True)]
"""What a shell makes of `--data *.parquet`: all names but the first stand by themselves."""
ContextTokensOption = Annotated[
    int,
    typer.Option(
        "--context-tokens",
        metavar="N",
        help="Length of the context.",
        callback=at_least(1, "--context-tokens"),
    ),
]
TargetTokensOption = Annotated[
    int,
    typer.Option(
        "--target-tokens",
        metavar="N",
        help="Tokens predicted after a context.",
        callback=at_least(1, "--target-tokens"),
    ),
]
NumTargetsOption = Annotated[
    int,
    typer.Option(
        "--num-targets",
        metavar="N",
        help="Places measured in each file.",
        callback=at_least(1, "--num-targets"),
    ),
]
SeedOption = Annotated[
    int,
    typer.Option("--seed", metavar="N", help="Of what is drawn.", callback=at_least(0, "--seed")),
]


def _above_0(value: float | None) -> float | None:
    if value is not None and not value > 0:
        raise InputError(
            f"--budget-minutes is a number above 0, but it is {value}; give more time or leave it "
            "out."
        )
    return value


BudgetOption = Annotated[
    float | None,
    typer.Option(
        "--budget-minutes",
        metavar="MINUTES",
        help="Begin nothing more after this time; the records tell how much was measured.",
        callback=_above_0,
    ),
]
RecordsOption = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="FILE",
        help="Also write every record there (as JSON lines if it ends in .jsonl), and an error as "
        "JSON on stdout.",
        is_eager=True,
        callback=remember_json,
    ),
]


def check_data(data: Sequence[Path]) -> None:
    """Raises InputError unless every file is there."""
    missing = [file for file in data if not file.is_file()]
    if missing:
        raise InputError(
            f"--data names files, but there is no file {str(missing[0])!r}; check the path."
        )


def interval(value: float | None, low: float | None, high: float | None, *, digits: int = 3) -> str:
    """A figure with its bounds, as far as there are such."""
    if value is None:
        return "-"
    shown = f"{value:.{digits}f}"
    return shown if low is None or high is None else f"{shown} [{low:.2f}, {high:.2f}]"


def tell_reasons(records: Sequence[LmRecord | QaRecord]) -> None:
    """Why a method has no figure, or one of less: of each the first reason; records have all."""
    found: dict[str, str] = {}
    for record in records:
        if record.note:
            found.setdefault(record.method, record.note)
    for method, reason in found.items():
        note(f"{method}: {reason}")


def parts(text: str) -> list[str]:
    """What stands between commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def positive(option: str, text: str) -> int:
    """A whole number of 1 or more.

    Raises:
        InputError: it is something else.
    """
    if not text.isdecimal() or int(text) < 1:
        raise InputError(
            f"{option} is whole numbers of 1 or more with commas between, but it has {text!r}; "
            "give for example 1024,4096."
        )
    return int(text)


def parse_scale_factors(text: str, may_choose: bool) -> list[int]:
    """Scale factors, or none of them for "auto" where a method may choose.

    Raises:
        InputError: it is something else.
    """
    if text == AUTO and may_choose:
        return []
    return [parse_scale_factor(part) for part in parts(text)]


def journal_of(out: Path | None) -> Path | None:
    """The file of JSON lines beside the records, from which a stopped evaluation goes on."""
    return None if out is None else out.with_name(out.name + ".journal")
