"""The engine of llama.cpp: quantised GGUF readers, on a CPU too, through llama-cpp-python.

In: requests of token ids and rows. Out: new token ids. One thread owns the model (`worker`) and
runs requests side by side (`llama_schedule`), each as a sequence of one llama.cpp context; what a
request shares with others is kept there, and read once (`llama_cells`). What llama.cpp is asked is
in `llama_context`.

A batch of llama.cpp is tokens or embeddings, so a prompt is read part by part. Cancelling takes
effect between two batches. Not guaranteed: that a request's logits are the same to the last bit
whatever runs beside it, since the number of rows in a batch decides how they are multiplied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from ...errors import InputError
from .llama_context import LlamaContext
from .llama_schedule import LlamaSchedule, Model
from .worker import WorkerEngine


@dataclass(frozen=True, kw_only=True)
class LlamaSettings:
    """How much one model does at a time."""

    num_cells: int = 16384
    """Rows of all running prompts, their answers and the kept prefixes together."""
    num_requests: int = 4
    """The most that run side by side; others wait."""
    num_prefixes: int = 8
    """The most shared prefixes that are kept, as long as there are cells for them."""
    batch_rows: int = 256
    """Rows of a prompt that are read at once: running answers wait as long."""
    num_threads: int | None = None
    """By default as many as torch uses."""

    def __post_init__(self) -> None:
        num_threads = 1 if self.num_threads is None else self.num_threads
        least = min(self.num_cells, self.num_requests, self.batch_rows, num_threads)
        if least < 1 or self.num_prefixes < 0 or self.num_requests > self.batch_rows:
            raise InputError(
                "An engine has at least 1 cell, 1 request and 1 thread, no less than 0 prefixes, "
                "and batches that hold a row of each request, but these are its settings: "
                f"{self}; give others."
            )


class LlamaCppEngine(WorkerEngine):
    """Runs a .gguf file.

    Args:
        source: the file, or what opens a model in the thread that owns it.
        settings: how much it does at a time.
    """

    name = "llama.cpp"

    def __init__(
        self, source: str | Path | Callable[[], Model], settings: LlamaSettings | None = None
    ) -> None:
        self.settings = settings or LlamaSettings()
        open_model = source if callable(source) else partial(_open, source, self.settings)
        super().__init__(partial(_schedule, open_model, self.settings))


def _open(path: str | Path, settings: LlamaSettings) -> LlamaContext:
    return LlamaContext(
        path,
        # One more for each request, see `Cells`.
        num_cells=settings.num_cells + settings.num_requests,
        num_sequences=settings.num_requests + settings.num_prefixes,
        batch_rows=settings.batch_rows,
        num_threads=settings.num_threads or torch.get_num_threads(),
    )


def _schedule(open_model: Callable[[], Model], settings: LlamaSettings) -> LlamaSchedule:
    return LlamaSchedule(
        open_model(),
        num_cells=settings.num_cells,
        num_requests=settings.num_requests,
        num_prefixes=settings.num_prefixes,
    )
