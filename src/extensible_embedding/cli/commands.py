"""The commands put together: `app`."""

from __future__ import annotations

from typing import Annotated

import typer

from .._version import __version__
from . import bench, evaluate, store
from .ask import ask
from .chat import chat
from .check import check
from .compress import compress
from .demo import demo
from .group import ExtensibleCommand, ExtensibleGroup, summary
from .info import info
from .options import ConfigOption, JsonOption
from .serve import mcp, serve

app = typer.Typer(
    name="extensible",
    cls=ExtensibleGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="Exit codes: 0 done, 1 anything else, 2 input or configuration not usable, 3 does not "
    "fit the window, 4 saved files damaged, 5 files do not belong together, 6 disk, 7 something "
    "not installed, 8 train the embedder again (`check`), 9 an engine failed, 130 interrupted.",
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


def train(config: ConfigOption, as_json: JsonOption = False) -> None:
    """Train an embedder for a reader.

    Goes on from the last whole checkpoint in the configuration's output_dir if there is one, so
    after Ctrl-C or a crash the same command resumes; raise max_steps to train a finished run on.
    The trained embedder is in output_dir/embedder; losses are logged for TensorBoard.
    """
    from .console import quiet_libraries
    from .train import train as run  # imports transformers

    with quiet_libraries():
        run(config, as_json)


for _command in (demo, compress, ask, chat, serve, mcp, train, check):
    app.command(cls=ExtensibleCommand, short_help=summary(_command))(_command)
app.add_typer(store.app, name="store")
app.add_typer(evaluate.app, name="eval")
app.add_typer(bench.app, name="bench")
app.command(cls=ExtensibleCommand, short_help=summary(info))(info)
