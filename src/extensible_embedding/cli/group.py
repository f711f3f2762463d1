"""Errors of a command -> one sentence and an exit code; libraries kept quiet meanwhile.

In: whatever a command raises. Out: `Error: <sentence>` on stderr, with --json also an object on
stdout, and the exit code of the error. Errors that a user cannot cause pass through.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import typer
from transformers import modeling_gguf_pytorch_utils as gguf_loading
from transformers.utils import logging as transformers_logging
from typer.core import TyperGroup

from ..errors import ExtensibleError

INTERRUPTED = 130
_JSON = "extensible_embedding.json"


class ExtensibleGroup(TyperGroup):
    """The commands; runs one of them and reports what went wrong."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with quiet_libraries():
                return super().invoke(ctx)
        except ExtensibleError as error:
            _report(error, as_json=bool(ctx.meta.get(_JSON)))
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt:
            typer.echo("\nInterrupted; nothing half-written was left.", err=True)
            raise typer.Exit(INTERRUPTED) from None


def remember_json(ctx: typer.Context, value: bool) -> bool:
    """Callback of a --json flag: errors are to be printed as JSON too."""
    ctx.meta[_JSON] = value
    return value


def _report(error: ExtensibleError, *, as_json: bool) -> None:
    typer.echo(f"Error: {error}", err=True)
    if as_json:
        fields = {"error": str(error), "type": type(error).__name__, "exit_code": error.exit_code}
        typer.echo(json.dumps(fields, ensure_ascii=False))


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Switches off transformers' progress bars, log lines and warnings; undone on leaving."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    # The bar of GGUF files is a plain tqdm that no setting of transformers reaches.
    names = vars(gguf_loading)
    gguf_bar = names["tqdm"]
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    names["tqdm"] = partial(gguf_bar, disable=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        names["tqdm"] = gguf_bar
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
