"""What `extensible train` does: a run from a configuration file, a bar meanwhile, its result.

In: the file. Out: on stdout where the embedder is, on stderr how far the run is. Of several
processes only the first one speaks.
"""

from __future__ import annotations

import io
import json
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback

from ..checkpoint import CONFIG
from ..folders import read_json
from ..train.checkpoints import last_checkpoint
from ..train.config import TrainConfig, load_config
from ..train.deadline import share_of
from ..train.processes import end_together, is_first_process
from ..train.trainer import train as run
from . import INTERRUPTED
from .console import stderr


def train(config: Path, as_json: bool) -> None:
    """Trains as the configuration file says and prints where the embedder is."""
    settings = load_config(config)
    console = stderr()
    console.quiet = not is_first_process()
    bar = TrainingBar(console)
    try:
        # transformers prints its log lines to stdout, where only the result belongs.
        with bar, redirect_stdout(io.StringIO()):
            folder = run(settings, callbacks=[bar], report=bar.tokenised)
    except KeyboardInterrupt:
        console.print(f"\n{_stopped(bar.step, settings)}", markup=False, soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    end_together()
    if console.quiet:
        return
    if as_json:
        typer.echo(json.dumps(_result(folder, bar), indent=2, ensure_ascii=False))
    else:
        typer.echo(f"The trained embedder is in {folder}.")


def _stopped(step: int | None, settings: TrainConfig) -> str:
    where = "before the first step" if step is None else f"at step {step:,}"
    kept = last_checkpoint(settings.output_dir)
    if kept is None:
        return (
            f"Stopped {where}; there is no checkpoint yet (save_steps is {settings.save_steps:,}), "
            "so the same command begins again."
        )
    number = int(kept.rpartition("-")[2])
    return (
        f"Stopped {where}; checkpoint {number:,} is kept in {settings.output_dir}; run the same "
        "command to go on."
    )


def _result(folder: Path, bar: TrainingBar) -> dict[str, Any]:
    """Steps and tokens are those of the embedder's record, over all stages."""
    record = read_json(folder / CONFIG, "an embedder")["training"]
    measured = {"loss": None, "tokens_per_s": None, **bar.last_log}
    return {"folder": str(folder), **record, **measured, "seconds": round(bar.seconds, 2)}


class TrainingBar(TrainerCallback):
    """Shows step, loss, tokens/s and time left; where no terminal is, a line for every log."""

    def __init__(self, console: Console, title: str = "") -> None:
        self.console, self.title = console, title
        self.last_log: dict[str, Any] = {}
        self.step: int | None = None
        self.start = self.seconds = 0.0
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("time left"),
            TimeRemainingColumn(elapsed_when_finished=False, compact=False),
        )
        self.bar = Progress(*columns, console=console, redirect_stdout=False)
        self.task = self.bar.add_task("Loading the reader", total=None)

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
        """Says where the run begins: anew, from a checkpoint, or nowhere."""
        self.start, self.step = time.monotonic(), state.global_step
        for log in state.log_history:
            self.last_log.update({"loss": log["loss"]} if "loss" in log else {})
        self.bar.reset(self.task, total=state.max_steps, completed=state.global_step)
        self._describe(state)
        if state.global_step >= state.max_steps:
            self.console.print(f"Already at max_steps={state.max_steps}; raise it to train on.")
        elif state.global_step:
            self.console.print(f"Going on from step {state.global_step:,}.")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds = time.monotonic() - self.start

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step = state.global_step
        done = max(state.global_step, share_of(state) * state.max_steps)
        self.bar.update(self.task, completed=done)
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
        name = f"{self.title}: " if self.title else ""
        parts = [f"{name}step {state.global_step:,}/{state.max_steps:,}"]
        parts += [f"{name} {_SHOWN[key].format(value)}" for key, name, value in self._values()]
        return ", ".join(parts)

    def _values(self) -> list[tuple[str, str, Any]]:
        return [(key, _NAMES[key], value) for key, value in self.last_log.items()]


_SHOWN = {"loss": "{:.4f}", "eval_loss": "{:.4f}", "tokens_per_s": "{:,.0f}"}
_NAMES = {"loss": "loss", "eval_loss": "evaluation loss", "tokens_per_s": "tokens/s"}
