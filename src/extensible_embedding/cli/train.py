"""`extensible train`: a training run from a configuration file."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback

from .console import load_reader, stderr
from .options import JsonOption


def train(
    config: Annotated[
        Path,
        typer.Option(
            "--config", metavar="FILE", help="YAML file with the settings, such as configs/*.yaml."
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Train an embedder for a reader.

    Goes on from the last whole checkpoint in the configuration's output_dir if there is one, so
    after Ctrl-C or a crash the same command resumes. The trained embedder is in
    output_dir/embedder; losses are logged for TensorBoard.
    """
    from ..train.config import load_config
    from ..train.trainer import train as run

    settings = load_config(config)
    reader = load_reader(settings.reader)
    bar = TrainingBar(stderr())
    # transformers prints its log lines to stdout, where only the result belongs.
    with bar, redirect_stdout(io.StringIO()):
        folder = run(settings, reader=reader, callbacks=[bar], report=bar.tokenised)
    result = {"folder": str(folder), "steps": settings.max_steps, **bar.last_log}
    if as_json:
        typer.echo(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        typer.echo(f"The trained embedder is in {folder}.")


class TrainingBar(TrainerCallback):
    """Shows step, loss, tokens/s and time left; where no terminal is, a line for every log."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.last_log: dict[str, Any] = {}
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("time left"),
            TimeRemainingColumn(elapsed_when_finished=False, compact=False),
        )
        self.bar = Progress(*columns, console=console, redirect_stdout=False)
        self.task = self.bar.add_task("Preparing", total=None)

    def __enter__(self) -> TrainingBar:
        if self.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def tokenised(self, name: str, documents: int) -> None:
        """Shows how far the data are tokenised."""
        self.bar.update(self.task, description=f"Tokenising {name}: {documents:,} documents")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.reset(self.task, total=state.max_steps, completed=state.global_step)
        self._describe(state)
        if state.global_step:
            self.console.print(f"Going on from step {state.global_step:,}.")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update(self.task, completed=state.global_step)
        self._describe(state)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        shown = {key: value for key, value in (logs or {}).items() if key in _SHOWN}
        self.last_log.update(shown)
        self._describe(state)
        if shown and not self.console.is_terminal:
            self.console.print(self._line(state), markup=False)

    def _describe(self, state: Any) -> None:
        self.bar.update(self.task, description=self._line(state))

    def _line(self, state: Any) -> str:
        parts = [f"step {state.global_step:,}/{state.max_steps:,}"]
        parts += [f"{name} {_SHOWN[key].format(value)}" for key, name, value in self._values()]
        return ", ".join(parts)

    def _values(self) -> list[tuple[str, str, Any]]:
        return [(key, _NAMES[key], value) for key, value in self.last_log.items()]


_SHOWN = {"loss": "{:.4f}", "eval_loss": "{:.4f}", "tokens_per_s": "{:,.0f}"}
_NAMES = {"loss": "loss", "eval_loss": "evaluation loss", "tokens_per_s": "tokens/s"}
