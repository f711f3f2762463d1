"""Tasks: questions about long documents, a file for each kind; `base` has the contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from ...errors import InputError
from .babi import Babi
from .base import Example, Filler, ParquetTask, Task
from .fairytaleqa import FairytaleQa
from .longbench import LongBench
from .needle import Needle, Passkey
from .nq_open import NqOpen
from .qmsum import QmSum
from .retrieval import KeyValue, LongEvalLines, LongEvalTopics
from .ruler import Ruler
from .squad import CovidQa, Squad, Xquad

__all__ = ["TASKS", "Example", "Filler", "ParquetTask", "Task", "make_task"]

TASKS: Mapping[str, Callable[[Path], Task]] = {
    task.name: task
    for task in (
        Squad, Xquad, CovidQa, FairytaleQa, QmSum, Babi, LongEvalTopics, LongEvalLines, KeyValue,
        NqOpen, Passkey, Needle, LongBench, Ruler,
    )
}  # fmt: skip
"""Every task by its name, made from its file."""


def make_task(name: str, path: Path) -> Task:
    """The task of a name on a file.

    Raises:
        InputError: there is none of that name.
    """
    if name not in TASKS:
        raise InputError(f"A task is one of {', '.join(TASKS)}, but it is {name!r}.")
    return TASKS[name](path)
