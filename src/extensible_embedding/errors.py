"""Errors that a user can cause.

In: nothing. Out: one exception tree. Each message is one sentence that gives the rule, what was
received and what to do next; `exit_code` is what the command line returns.

    ExtensibleError            1
    |-- InputError             2   a file, a text or an argument is not usable (also ValueError)
    |-- ConfigError            2   a configuration is not usable (also ValueError)
    |-- WindowError            3   the prompt does not fit the reader's window (also ValueError)
    |-- CheckpointError        4   saved rows or weights are damaged, incomplete or unsafe
    |-- MismatchError          5   rows, embedder and reader do not belong together
    |-- StorageError           6   the disk refused: full, read-only, no permission
    |   `-- BusyError          6   another process is changing the same context
    |-- MissingExtraError      7   an optional dependency is not installed (also ImportError)
    `-- EngineError            9   what runs the reader failed, refused or is gone
"""

from __future__ import annotations


class ExtensibleError(Exception):
    """Anything that the library refuses; `str()` is the sentence for the user."""

    exit_code = 1


class InputError(ExtensibleError, ValueError):
    """A file, a text or an argument is not usable."""

    exit_code = 2


class ConfigError(ExtensibleError, ValueError):
    """A configuration has an unknown key or a value out of range."""

    exit_code = 2


class WindowError(ExtensibleError, ValueError):
    """The prompt does not fit the window; `smallest_k` is the scale factor that would fit."""

    exit_code = 3

    def __init__(self, message: str, *, smallest_k: int | None = None) -> None:
        super().__init__(message)
        self.smallest_k = smallest_k


class CheckpointError(ExtensibleError):
    """Saved rows or weights are damaged, incomplete or in an unsafe format."""

    exit_code = 4


class MismatchError(ExtensibleError):
    """Rows, embedder and reader do not belong together."""

    exit_code = 5


class StorageError(ExtensibleError):
    """The disk refused: full, read-only or no permission. Nothing half-written is left."""

    exit_code = 6


class BusyError(StorageError):
    """Another process is changing the same context, or has all of the store."""


class MissingExtraError(ExtensibleError, ImportError):
    """An optional dependency is not installed; the message names the command that installs it."""

    exit_code = 7


class EngineError(ExtensibleError):
    """What runs the reader failed, refused a request or is gone."""

    exit_code = 9
