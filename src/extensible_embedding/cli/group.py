"""Errors of a command -> one sentence and an exit code.

In: whatever a command raises. Out: `Error: <sentence>` on stderr, with --json also an object on
stdout, and the exit code of the error. Errors that a user cannot cause pass through.
"""

from __future__ import annotations

import errno
import inspect
import json
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup

from ..errors import ExtensibleError, InputError, StorageError
from . import INTERRUPTED

_JSON = "extensible_embedding.json"
_Value = TypeVar("_Value")
_NO_PERMISSION = (errno.EACCES, errno.EPERM)
_OF_PATHS = (*_NO_PERMISSION, errno.ENAMETOOLONG, errno.ELOOP)
"""Faults of a path, and never of this library: a file that is missing may be ours."""


class ExtensibleGroup(TyperGroup):
    """The commands; runs one of them and reports what went wrong."""

    def invoke(self, ctx: Any) -> Any:
        """Runs a command; an error of ours becomes one sentence and its exit code."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return super().invoke(ctx)
        except ExtensibleError as error:
            raise _refusal(ctx, error) from error
        except OSError as error:
            if error.filename is None or error.errno not in _OF_PATHS:
                raise
            raise _refusal(ctx, _of_path(error)) from error
        except typer.BadParameter as error:
            _report_json(ctx, error.format_message(), "UsageError", error.exit_code)
            raise
        except KeyboardInterrupt:
            typer.echo("\nInterrupted; nothing half-written was left.", err=True)
            raise typer.Exit(INTERRUPTED) from None


def _refusal(ctx: Any, error: ExtensibleError) -> typer.Exit:
    typer.echo(f"Error: {error}", err=True)
    _report_json(ctx, str(error), type(error).__name__, error.exit_code)
    return typer.Exit(error.exit_code)


def _of_path(error: OSError) -> ExtensibleError:
    """What a system says of a path that was given, wherever it is first looked at."""
    kind = StorageError if error.errno in _NO_PERMISSION else InputError
    return kind(
        f"Paths are of files and folders that can be reached, but {str(error.filename)!r} cannot "
        f"be ({error.strerror}); give another, or change who may use it."
    )


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
