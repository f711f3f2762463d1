"""Questions about long documents: predictions of every method, kept before they are scored.

In: an embedder with its reader, tasks, methods and windows. Out: one record for every task, part
of a task, setting and scorer. Greedy decoding, the reader's own chat template, one fixed prompt a
task. It knows nothing of how a method reads and of how a score is made.
"""

from __future__ import annotations

import hashlib
import itertools
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..embedder import ExtensibleEmbedder
from ..errors import InputError, WindowError
from ..prompt import message_frame, question_frame
from ..reader import Reader
from .journal import Journal, Key
from .kinship import belongs_to_reader
from .lengths import Lengthener
from .methods import (
    METHODS,
    WITH_K,
    CannotRunError,
    Passage,
    RowCache,
    check_methods,
    check_windows,
    make_method,
)
from .qa_scoring import QaSetting, score_answers
from .records import QaRecord
from .tasks import Example, Task

RAW = "raw"
Progress = Callable[[int, int], None]
"""Called with (answers done, answers in all)."""


def evaluate_qa(
    embedder: ExtensibleEmbedder,
    tasks: Sequence[Task],
    *,
    methods: Sequence[str] = ("none", "truncate", "extensible"),
    scale_factors: Sequence[int] = (),
    windows: Sequence[int | None] = (None,),
    context_tokens: int | None = None,
    num_examples: int = 50,
    seed: int = 0,
    journal: Path | None = None,
    budget_minutes: float | None = None,
    progress: Progress | None = None,
) -> list[QaRecord]:
    """Answers and scores, the same examples for every method.

    Args:
        embedder: with the reader that it is for.
        tasks: what is asked.
        methods: names of `METHODS`.
        scale_factors: tokens per row; empty: the method chooses.
        windows: rows in all; None is the reader's own, which `raw` always has: it is what the
            others are to come near.
        context_tokens: of every context, about: see `Lengthener`; None: contexts as the tasks
            have them.
        num_examples: of each task, drawn at random.
        seed: of the draw and the resamples.
        journal: file that keeps every prediction before it is scored.
        budget_minutes: time after which no more examples are begun.
        progress: called after every answer.

    Returns:
        Records: for each task its parts, then the whole; at last the mean over tasks.

    Raises:
        InputError: an argument or a file is not usable.
    """
    settings = _settings(methods, scale_factors, windows)
    check_windows([each for each in windows if each is not None], embedder.reader.window)
    belongs_to = {
        "embedder": embedder.fingerprint,
        **belongs_to_reader(embedder.reader),
        "seed": seed,
    }
    run = _Run(embedder, settings, Journal(journal, belongs_to))
    deadline = None if budget_minutes is None else time.monotonic() + 60 * budget_minutes
    draws = {
        task: _draw(embedder.reader, task, num_examples, context_tokens, seed) for task in tasks
    }
    drawn = {task: examples for task, (examples, _) in draws.items()}
    left_out = {task.name: number for task, (_, number) in draws.items()}
    with torch.inference_mode():
        run.predict(drawn, deadline, progress)
    records = score_answers(drawn, settings, run.answer, context_tokens=context_tokens, seed=seed)
    return [replace(record, num_left_out=left_out.get(record.task, 0)) for record in records]


def _settings(
    methods: Sequence[str], scale_factors: Sequence[int], windows: Sequence[int | None]
) -> list[QaSetting]:
    check_methods(methods)
    settings = [
        QaSetting(method, k, None if method == RAW else window)
        for window in windows
        for method in methods
        for k in ((scale_factors or [0]) if method in WITH_K else [0])
    ]
    return list(dict.fromkeys(settings))


def _draw(
    reader: Reader, task: Task, num_examples: int, context_tokens: int | None, seed: int
) -> tuple[list[Example], int]:
    """Some of a task's examples, as many of each part as of any other where they allow it.

    And how many others allowed no context of the length.
    """
    if context_tokens is None:
        examples = _in_turn(task, list(task.examples()), seed)
        return list(itertools.islice(examples, num_examples)), 0
    lengthener = Lengthener(reader, task, context_tokens, seed)
    found: list[Example] = []
    left_out = 0
    for example in _in_turn(task, lengthener.examples, seed):
        if len(found) == num_examples:
            break
        lengthened = lengthener.lengthen(example)
        if lengthened is None:
            left_out += 1
        else:
            found.append(lengthened)
    if not found:
        raise InputError(
            f"A context of {context_tokens:,} tokens must be cut around what answers, or filled, "
            f"but no example of {task.name!r} allows it; give another --context-tokens, or none."
        )
    return found, left_out


def _in_turn(task: Task, examples: Sequence[Example], seed: int) -> Iterator[Example]:
    parts: dict[str, list[Example]] = {}
    for example in examples:
        parts.setdefault(example.setting, []).append(example)
    rng = np.random.default_rng((seed, zlib.crc32(task.name.encode())))
    shuffled = [[each[place] for place in rng.permutation(len(each))] for each in parts.values()]
    if not shuffled:
        raise InputError(f"A task has examples, but {task.name!r} has none; check its file.")
    for place in range(max(map(len, shuffled))):
        yield from (each[place] for each in shuffled if place < len(each))


class _Run:
    """Fills the journal, example by example."""

    def __init__(
        self, embedder: ExtensibleEmbedder, settings: Sequence[QaSetting], journal: Journal
    ) -> None:
        self.reader, self.settings, self.journal = embedder.reader, settings, journal
        cache = RowCache(embedder)
        self.methods = {
            each: make_method(each.method, embedder, k=each.k or None, cache=cache)
            for each in settings
        }

    def predict(
        self,
        drawn: Mapping[Task, Sequence[Example]],
        deadline: float | None,
        progress: Progress | None,
    ) -> None:
        """Every task in turn, so that a deadline cuts all alike."""
        total = sum(len(examples) for examples in drawn.values()) * len(self.settings)
        done = 0
        for number in range(max(len(examples) for examples in drawn.values())):
            if number and deadline is not None and time.monotonic() > deadline:
                return
            for task, examples in drawn.items():
                for setting in self.settings if number < len(examples) else ():
                    self._answer(task, examples[number], setting)
                    done += 1
                    if progress is not None:
                        progress(done, total)

    def answer(self, task: Task, example: Example, setting: QaSetting) -> dict[str, Any] | None:
        """What the journal has."""
        found: dict[str, Any] | None = self.journal.get(_key(task, example, setting))
        return found

    def _answer(self, task: Task, example: Example, setting: QaSetting) -> None:
        key = _key(task, example, setting)
        kept = self.journal.get(key, {})
        if "prediction" in kept or kept.get("too_long"):
            return
        head, tail = _frame(self.reader, task, example)
        passage = Passage(
            head=head,
            context=self.reader.encode(example.context),
            tail=tail,
            question=example.question,
        )
        room = (setting.window or self.reader.window) - task.max_new_tokens
        try:
            reading = self.methods[setting].read(passage, room)
        except (WindowError, CannotRunError) as error:
            # What is missing now, such as a package, may be there when the run goes on.
            left_out: dict[str, Any] = {"note": str(error)}
            if isinstance(error, WindowError):
                left_out["too_long"] = True
            if kept != left_out:
                self.journal.put(key, left_out)
            return
        prediction = reading.generate(task.max_new_tokens)
        self.journal.put(key, {"prediction": prediction, "k": reading.k, "rows": reading.num_rows})


def _frame(reader: Reader, task: Task, example: Example) -> tuple[Tensor, Tensor]:
    """Head and tail of the prompt."""
    if task.own_words:
        head, tail = message_frame(reader, example.before, task.text(example), chat=task.chat)
    else:
        head, tail = question_frame(reader, task.text(example))
    return head, torch.cat([tail, reader.encode(example.answer_prefix)])


def _key(task: Task, example: Example, setting: QaSetting) -> Key:
    """An id alone may be another file's, or twice in one: what is asked is part of it."""
    asked = (example.before, example.context, example.question, example.answer_prefix)
    return (
        task.name,
        task.version,
        example.id,
        hashlib.sha256(repr(asked).encode()).hexdigest()[:12],
        METHODS[setting.method].label(),
        setting.k,
        setting.window or 0,
    )
