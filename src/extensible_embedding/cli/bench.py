"""`extensible bench`: what reading costs."""

from __future__ import annotations

import typer

from .cost import cost
from .group import ExtensibleCommand, summary

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, short_help="Measure what it costs.")


@app.callback()
def benchmarks() -> None:
    """Measure what reading costs, on this machine."""


app.command(name="cost", cls=ExtensibleCommand, short_help=summary(cost))(cost)
