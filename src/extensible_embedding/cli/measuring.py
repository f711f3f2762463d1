"""Options that the commands of `eval` and `bench` share, and how their values are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from .group import remember_json
from .options import AUTO, parse_scale_factor

SeedOption = Annotated[int, typer.Option("--seed", metavar="N", help="Of what is drawn.")]
BudgetOption = Annotated[
    float | None,
    typer.Option(
        "--budget-minutes",
        metavar="MINUTES",
        help="Begin nothing more after this time; the records tell how much was measured.",
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
