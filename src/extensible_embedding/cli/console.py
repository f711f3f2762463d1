"""What a person sees while a command works: notes, spinners and progress bars, all on stderr.

Where stderr is no terminal, nothing moves: only notes are written, unwrapped.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from logging import ERROR, getLogger
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from ..errors import InputError, MismatchError
from .options import RELEASED, Models

if TYPE_CHECKING:
    from ..embedder import ExtensibleEmbedder
    from ..reader import Reader

OnProgress = Callable[[int, int], None]
"""Called with (done, in all)."""

_UNWRAPPED = 10_000


def stderr() -> Console:
    """The console for everything that is not the result."""
    return Console(stderr=True, highlight=False)


def stdout() -> Console:
    """The console for tables, as wide as they are where no terminal limits them."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else _UNWRAPPED)


def plain_table(words: Sequence[str], numbers: Sequence[str]) -> Table:
    """A table without borders: columns of words, then columns of numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in words:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def note(text: str) -> None:
    """Prints a line on stderr."""
    stderr().print(text, style="dim", markup=False, soft_wrap=True)


@contextmanager
def spinner(text: str) -> Iterator[None]:
    """Shows that something goes on."""
    console = stderr()
    if console.is_terminal:
        with console.status(text):
            yield
    else:
        yield


@contextmanager
def progress_bar(description: str, unit: str) -> Iterator[OnProgress]:
    """Shows a bar; yields the function that moves it, called with (done, in all)."""
    console = stderr()
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} " + unit),
        SpeedColumn(unit),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=1, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


class SpeedColumn(ProgressColumn):
    """Units done in a second."""

    def __init__(self, unit: str) -> None:
        self.unit = unit
        super().__init__()

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed or task.completed / (task.elapsed or 1)
        return Text(f"{speed:,.0f} {self.unit}/s" if speed else "")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Switches off transformers' progress bars and the libraries' log lines; undone on leaving."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    chatty = getLogger("bitsandbytes")  # tells of every layer in every pass that it casts
    level = chatty.level
    chatty.setLevel(ERROR)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        chatty.setLevel(level)
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def load_reader(name: str, models: Models | None = None) -> Reader:
    """The reader, behind a spinner; with the device, type and window that `models` asks for.

    Raises:
        InputError: there is no such model or device.
    """
    models = models or Models()
    with spinner(f"Loading the reader {name!r} ..."):
        import torch

        from ..reader import Reader

        return Reader.from_pretrained(
            name,
            dtype=getattr(torch, models.dtype.value) if models.dtype else None,
            device=_usable_device(models.device) if models.device else None,
            window=models.window,
            trust_remote_code=models.trust_remote_code,
        )


def _usable_device(name: str) -> str:
    import torch

    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise InputError(
            f"--device is a device that this torch can use, such as `cpu`, but {name!r} is not "
            f"({reason}); `extensible info` shows the default one."
        ) from error
    return name


def load_embedder(models: Models, reader: Reader) -> ExtensibleEmbedder:
    """The embedder for a reader, behind a spinner.

    Raises:
        InputError: there is no such embedder.
        CheckpointError: it is damaged.
        MismatchError: it was trained for another reader.
    """
    with spinner(f"Loading the embedder {models.embedder!r} ..."):
        from ..embedder import ExtensibleEmbedder
        from ..released import RELEASED_FOLDER, has_released_embedder, released_embedder

        name = str(RELEASED_FOLDER) if models.embedder == RELEASED else models.embedder
        if models.embedder == RELEASED and not has_released_embedder():
            return released_embedder(reader)  # raises: it is not there
        try:
            return ExtensibleEmbedder.from_pretrained(name, reader, derivative=models.derivative)
        except MismatchError as error:
            raise MismatchError(
                str(error).replace("pass derivative=True", "give --derivative")
            ) from error
