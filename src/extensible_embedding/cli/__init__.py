"""The command line, `extensible`: parse, call the library, print.

One module a command, put together in `commands`; `group` turns errors into sentences and exit
codes, `options` and `console` are what commands share, `stores` opens what STORE and STORE:NAME
stand for, `sources` reads what `ask` and `chat` are given.

Help, usage errors and unusable arguments are told at once: what needs torch is imported by the
functions that work, after the arguments were checked.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .commands import app

__all__ = ["app", "main"]

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line, by default on the program's arguments, and exits with its code."""
    try:
        from .commands import app

        app(args=None if arguments is None else list(arguments), prog_name="extensible")
    except KeyboardInterrupt:  # where `group` is not yet, or no longer, there to tell
        sys.exit(INTERRUPTED)


def __getattr__(name: str) -> object:
    """Imports `app` on first use, so that Ctrl-C while it is imported is told by `main`."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .commands import app

    return app


def __dir__() -> list[str]:
    """Names the app, which typer looks for to generate the docs."""
    return sorted({*globals(), *__all__})
