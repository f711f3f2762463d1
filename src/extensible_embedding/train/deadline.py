"""A run that ends by the clock: on a machine that is there for half an hour, say.

In: minutes. Out: which share of them has passed, step by step, also before the run went on; the end
of the run. The same in all processes, or their rates would part. Knows nothing of rates.
"""

from __future__ import annotations

from pathlib import Path
from time import monotonic
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from ..folders import read_json


class Deadline(TrainerCallback, ExportableState):
    """Ends a run in time; looks at the clock once a step.

    Args:
        max_minutes: that it may take, with the time before the checkpoint that it goes on from,
            without loading; None: as long as its steps take.
    """

    def __init__(self, max_minutes: float | None) -> None:
        self.max_minutes, self.seconds, self._before, self._start = max_minutes, 0.0, 0.0, 0.0

    @property
    def share(self) -> float:
        """Of the time, that had passed after the last step: 0 to 1."""
        if self.max_minutes is None:
            return 0.0
        return min(1.0, self.seconds / (60 * self.max_minutes))

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        kept = {"seconds": self.seconds, "share": self.share}
        return {"args": {"max_minutes": self.max_minutes}, "attributes": kept}

    def restore(self, checkpoint: Path) -> None:
        """Takes the time that had passed at a checkpoint, before rates are made of it."""
        saved = read_json(checkpoint / TRAINER_STATE, "a checkpoint")["stateful_callbacks"]
        self.seconds = float(saved[NAME]["attributes"]["seconds"]) if NAME in saved else 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._before, self._start = self.seconds, monotonic()
        state.stateful_callbacks[NAME] = self.state()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.max_minutes is None:
            return
        self._look(state)
        if self.share >= 1:
            control.should_training_stop = control.should_save = control.should_log = True

    def _look(self, state: Any) -> None:
        """Looks at the clock of the first process."""
        here = torch.tensor([self._before + monotonic() - self._start], dtype=torch.float64)
        processes = PartialState()
        if processes.num_processes > 1:
            there = here.float().to(processes.device)
            torch.distributed.broadcast(there, 0)
            here = there.cpu()
        self.seconds = float(here)
        state.stateful_callbacks[NAME] = self.state()


TRAINER_STATE = "trainer_state.json"
"""Where transformers keeps it, in a checkpoint."""
NAME = Deadline.__name__
"""Under which transformers keeps its state."""


def share_of(state: Any) -> float:
    """Of a run's time, that has passed, from the Trainer's state; 0 without an end by the clock."""
    found = state.stateful_callbacks.get(NAME)
    return float(found["attributes"]["share"]) if found else 0.0
