"""The engine of transformers: the reader itself, in a thread of this process. The default.

In: requests of token ids and rows. Out: new token ids. Requests that come while others are answered
join them at the next step (`transformers_schedule`), share the passes of the reader
(`transformers_passes`) and what prompts begin with (`prefix_cache`); the thread is `worker`'s.

Greedy tokens are those of the model's own `generate`. Not guaranteed: that logits are the same to
the last bit whatever runs beside a request, since the number of rows in a pass decides how they are
multiplied. Of a model's generation configuration, end tokens and the penalty of repetitions are
respected; the rest is what a request says.
"""

from __future__ import annotations

from functools import partial

from ...reader import Reader
from .transformers_schedule import TransformersSchedule, TransformersSettings
from .worker import WorkerEngine


class TransformersEngine(WorkerEngine):
    """Runs a reader.

    Args:
        reader: its weights are shared, and it can be used elsewhere at the same time.
        settings: how much it does at a time.
    """

    name = "transformers"

    def __init__(self, reader: Reader, settings: TransformersSettings | None = None) -> None:
        self.settings = settings or TransformersSettings()
        super().__init__(partial(TransformersSchedule, reader, self.settings))
