"""`extensible bench`: what reading costs, and what choices of training are worth."""

from __future__ import annotations

import typer

from .ablations import ablations
from .cost import cost
from .group import ExtensibleCommand, summary
from .train_speed import train_speed

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, short_help="Run a benchmark.")


@app.callback()
def benchmarks() -> None:
    """Measure what reading costs, and what choices of training are worth."""


app.command(name="cost", cls=ExtensibleCommand, short_help=summary(cost))(cost)
app.command(name="train", cls=ExtensibleCommand, short_help=summary(train_speed))(train_speed)
app.command(name="ablations", cls=ExtensibleCommand, short_help=summary(ablations))(ablations)
