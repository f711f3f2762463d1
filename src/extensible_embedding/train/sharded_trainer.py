"""transformers' Trainer for a model that is divided among processes already.

In: a model that `sharding` has divided. Out: checkpoints as those of one process, which goes on
from them as well. Knows nothing of data and losses.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from .sharding import put_state, whole_state, whole_weights


class ShardedTrainer(Trainer):
    """Gathers what is saved, and leaves the model as it was divided.

    Name it after the class whose `_save` writes the weights that it gathers.
    """

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        # As for evaluation: bfloat16, but neither DDP around the model nor a move of its parts.
        prepare = self.accelerator.prepare_model

        def prepare_model(model: Any, **_: Any) -> Any:
            return prepare(model, device_placement=False, evaluation_mode=True)

        vars(self.accelerator)["prepare_model"] = prepare_model

    def _move_model_to_device(self, model: Any, device: Any) -> None:
        """Every part is where it shall be."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        model: Any = self.model
        weights = whole_weights(model.embedder)
        if self.args.should_save:
            self._save(output_dir, state_dict=weights)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        model, optimizer, schedule = self._prepared()
        state = whole_state(model, optimizer)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(schedule.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        model, optimizer, schedule = self._prepared()
        load = partial(torch.load, map_location="cpu", weights_only=True)
        put_state(model, optimizer, load(Path(checkpoint) / OPTIMIZER_NAME, mmap=True))
        schedule.load_state_dict(load(Path(checkpoint) / SCHEDULER_NAME))

    def _prepared(self) -> tuple[nn.Module, torch.optim.Optimizer, LambdaLR]:
        assert self.model is not None
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        return self.model, self.optimizer, self.lr_scheduler
