"""Errors of a command -> one sentence and an exit code.

In: whatever a command raises. Out: `Error: <sentence>` on stderr, with --json also an object on
stdout, and the exit code of the error. Errors that a user cannot cause pass through.
"""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup

from ..errors import ExtensibleError
from . import INTERRUPTED

_JSON = "extensible_embedding.json"
_Value = TypeVar("_Value")


class ExtensibleGroup(TyperGroup):
    """The commands; runs one of them and reports what went wrong."""

    def invoke(self, ctx: Any) -> Any:
        """Runs a command; an error of ours becomes one sentence and its exit code."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return super().invoke(ctx)
        except ExtensibleError as error:
            typer.echo(f"Error: {error}", err=True)
            _report_json(ctx, str(error), type(error).__name__, error.exit_code)
            raise typer.Exit(error.exit_code) from error
        except typer.BadParameter as error:
            _report_json(ctx, error.format_message(), "UsageError", error.exit_code)
            raise
        except KeyboardInterrupt:
            typer.echo("\nInterrupted; nothing half-written was left.", err=True)
            raise typer.Exit(INTERRUPTED) from None


class ExtensibleCommand(TyperCommand):
    """A command whose help names its arguments without the Python type."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        for parameter in self.params:
            if isinstance(parameter, TyperArgument):
                parameter.display_type_rich = lambda ctx: None  # type: ignore[method-assign]


def summary(command: Callable[..., None]) -> str:
    """First line of a command's description, which typer would cut at 45 characters."""
    return inspect.cleandoc(command.__doc__ or "").partition("\n")[0]


def remember_json(ctx: typer.Context, value: _Value) -> _Value:
    """Callback of a --json option: errors are to be printed as JSON too."""
    ctx.meta[_JSON] = bool(value)
    return value


def _report_json(ctx: Any, message: str, kind: str, exit_code: int) -> None:
    if ctx.meta.get(_JSON):
        fields = {"error": message, "type": kind, "exit_code": exit_code}
        typer.echo(json.dumps(fields, ensure_ascii=False))
