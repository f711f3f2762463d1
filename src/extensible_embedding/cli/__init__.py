"""The command line, `extensible`: parse, call the library, print.

One module a command; `group` turns errors into sentences and exit codes, `options` and `console`
are what commands share, `sources` reads what `ask` and `chat` are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from .._version import __version__
from . import evaluate
from .ask import ask
from .chat import chat
from .compress import compress
from .demo import demo
from .group import ExtensibleGroup
from .info import info
from .train import train

__all__ = ["app", "main"]

app = typer.Typer(
    name="extensible",
    cls=ExtensibleGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 done, 2 input or configuration not usable, 3 does not fit the window, "
    "4 saved files damaged, 5 files do not belong together, 6 disk, 7 something not installed, "
    "130 interrupted.",
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"extensible-embedding {__version__}")
        raise typer.Exit


@app.callback()
def extensible(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", is_eager=True, callback=_show_version
        ),
    ] = False,
) -> None:
    """Give a frozen language model documents longer than its window.

    A small embedder turns every k tokens of a long text into one row, and the reader takes those
    rows in place of the text. Begin with `extensible demo`.
    """


for _command in (demo, compress, ask, chat, train):
    app.command()(_command)
app.add_typer(evaluate.app, name="eval")
app.command()(info)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line, by default on the program's arguments, and exits with its code."""
    app(args=None if arguments is None else list(arguments), prog_name="extensible")
