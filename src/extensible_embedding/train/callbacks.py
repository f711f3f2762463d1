"""What a run keeps and says step by step: its record of tokens, and a log line for the last step.

In: transformers' events. Out: `embedder.training_record`, fields of the log lines. Knows nothing of
losses and files.
"""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback

from ..embedder import ExtensibleEmbedder
from .config import TrainConfig
from .packing import PackedSequences
from .questions import Mixed

RECORD_KEYS = ("tokens", "steps", "answer_tokens")
"""Tokens that were predicted, optimizer steps, and how many of the tokens were of answers."""


class TokenCounter(TrainerCallback):
    """Keeps what the embedder was trained on: predicted tokens and steps, of all processes."""

    def __init__(
        self,
        embedder: ExtensibleEmbedder,
        instances: Mixed | PackedSequences,
        config: TrainConfig,
        num_processes: int = 1,
    ) -> None:
        self.embedder, self.instances, self.one_stream = embedder, instances, config.one_stream
        self.per_step = config.batch_size * config.gradient_accumulation_steps * num_processes
        self.before = {key: embedder.training_record.get(key, 0) for key in RECORD_KEYS}
        self.start = 0.0
        self.tokens = self.answer_tokens = self.counted = self.first = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start = time.monotonic()
        self.counted = self.tokens = self.answer_tokens = 0
        self._record(state.global_step)
        self.first = self.tokens

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._record(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs is not None and "loss" in logs:
            seconds = max(time.monotonic() - self.start, 1e-9)
            logs["tokens"] = self.embedder.training_record["tokens"]
            logs["tokens_per_s"] = round((self.tokens - self.first) / seconds, 1)

    def _record(self, steps: int) -> None:
        """Counts the instances up to this step; their shapes are drawn again, not stored."""
        while self.counted < steps * self.per_step:
            tokens, of_answers = self.instances.num_predicted(self.counted, self.one_stream)
            self.tokens, self.answer_tokens = self.tokens + tokens, self.answer_tokens + of_answers
            self.counted += 1
        new = {"tokens": self.tokens, "steps": steps, "answer_tokens": self.answer_tokens}
        total = {key: int(self.before[key]) + new[key] for key in RECORD_KEYS}  # type: ignore[call-overload]
        self.embedder.training_record = {**self.embedder.training_record, **total}


class Pace(TrainerCallback):
    """When to save, evaluate and log: as configured, also in a run that goes on; the end always."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.compute_steps(args, state.max_steps)  # a checkpoint brings its own along

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = True
