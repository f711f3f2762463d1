"""What a person sees while a command works: spinners and progress bars, all on stderr."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from ..embedder import ExtensibleEmbedder
from ..embedder import Progress as OnProgress
from ..reader import Reader
from ..released import released_embedder
from .options import RELEASED


def stderr() -> Console:
    """The console for everything that is not the result."""
    return Console(stderr=True, highlight=False)


def stdout() -> Console:
    """The console for tables; JSON and answers go out without it, unwrapped."""
    return Console(highlight=False)


def load_reader(name: str) -> Reader:
    """The reader, behind a spinner."""
    with stderr().status(f"Loading the reader {name!r} ..."):
        return Reader.from_pretrained(name)


def load_embedder(name: str, reader: Reader) -> ExtensibleEmbedder:
    """The embedder for a reader, behind a spinner."""
    with stderr().status(f"Loading the embedder {name!r} ..."):
        if name == RELEASED:
            return released_embedder(reader)
        return ExtensibleEmbedder.from_pretrained(name, reader)


class SpeedColumn(ProgressColumn):
    """Units done in a second."""

    def __init__(self, unit: str) -> None:
        self.unit = unit
        super().__init__()

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {self.unit}/s" if speed else f"- {self.unit}/s")


@contextmanager
def progress_bar(description: str, unit: str) -> Iterator[OnProgress]:
    """Shows a bar; yields the function that moves it, called with (done, in all)."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} " + unit),
        SpeedColumn(unit),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr()) as bar:
        task = bar.add_task(description, total=1, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)
