"""`extensible eval report`: results -> one page with figures and tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from .console import spinner


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of results, as --json wrote them.")
    ],
) -> None:
    """Make one page with figures and tables of the results in a folder.

    Writes report.html, which needs no other file, every figure as PNG and SVG, and the tables as
    Markdown.
    """
    from ..evals.report import write_report

    if not folder.is_dir():
        raise InputError(f"A report is made of a folder of results, but {str(folder)!r} is none.")
    with spinner("Drawing"):
        path = write_report(folder)
    typer.echo(path)
