"""Answers to questions -> records: mean scores with intervals, and paired comparison.

    versus truncate = score of the method - score of `truncate`

on the same questions and in the same window; raw reading, which has the reader's own window, is
compared with the one there is. Above 0 is better. The mean over tasks is of their main scores, each
task as much as any other. Intervals resample documents, with all of their questions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .records import MEAN, QaRecord
from .scoring import RESAMPLES, Bounded
from .tasks import Example, Task

ALL = "all"
"""Part of a record that covers the whole task."""
MAIN = "main"
"""Scorer of records over all tasks: of each its own first one."""


@dataclass(frozen=True)
class QaSetting:
    """One way to read the documents."""

    method: str
    k: int
    """Tokens per row; 0 where the method chooses."""
    window: int | None
    """Rows in all; None: the reader's own."""


Answers = Callable[[Task, Example, QaSetting], Mapping[str, Any] | None]
"""What was answered: a prediction with its rows, or a note why there is none; None: not asked."""


def score_answers(
    drawn: Mapping[Task, Sequence[Example]],
    settings: Sequence[QaSetting],
    answers: Answers,
    *,
    context_tokens: int | None = None,
    seed: int = 0,
) -> list[QaRecord]:
    """Records of every task: of its parts, then of all of it; at last of all tasks together.

    Args:
        drawn: the examples of each task.
        settings: that they were asked in.
        answers: to them.
        context_tokens: for the records.
        seed: of the resamples.
    """
    records, wholes = [], []
    for task, every in drawn.items():
        examples = _asked_alike(task, every, settings, answers)
        parts = list(dict.fromkeys(example.setting for example in examples if example.setting))
        for part in [*(parts if len(parts) > 1 else []), ALL]:
            chosen = [example for example in examples if part in (ALL, example.setting)]
            for scorer in task.scorers:
                scored = [_scored(task, chosen, setting, scorer, answers) for setting in settings]
                records += [_record(task, part, scorer, each, scored, seed) for each in scored]
                if part == ALL and scorer == task.scorers[0]:
                    wholes.append(scored)
    if len(wholes) > 1:
        records += [
            _mean_record(of_setting, wholes, seed) for of_setting in zip(*wholes, strict=True)
        ]
    return [replace(record, context_tokens=context_tokens) for record in records]


def _asked_alike(
    task: Task, examples: Sequence[Example], settings: Sequence[QaSetting], answers: Answers
) -> list[Example]:
    """Those asked in every setting: of some a journal may hold more, from a run with others."""
    return [
        example
        for example in examples
        if all(answers(task, example, setting) is not None for setting in settings)
    ]


@dataclass(frozen=True)
class _Scored:
    """The scores of one setting."""

    setting: QaSetting
    scores: Mapping[int, float]
    """Of each example that was answered, by its number."""
    groups: Sequence[str]
    """Of every example."""
    rows: float | None
    note: str


def _scored(
    task: Task, examples: Sequence[Example], setting: QaSetting, scorer: str, answers: Answers
) -> _Scored:
    found = [answers(task, example, setting) or {} for example in examples]
    answered = {n: value for n, value in enumerate(found) if "prediction" in value}
    return _Scored(
        setting=setting,
        scores={n: task.score(scorer, v["prediction"], examples[n]) for n, v in answered.items()},
        groups=[example.group for example in examples],
        rows=float(np.mean([value["rows"] for value in answered.values()])) if answered else None,
        note=next((value["note"] for value in found if "note" in value), ""),
    )


_Means = tuple[float, NDArray[np.float64] | None]
"""A mean, and the means of its resamples (RESAMPLES,); None where there is one document."""
_NOTHING: Bounded = (None, None, None)


def _record(
    task: Task, part: str, scorer: str, mine: _Scored, scored: Sequence[_Scored], seed: int
) -> QaRecord:
    """Of one task or part."""
    record = _as_record(
        mine.setting, _means(mine, seed), _differences(mine, _truncate_of(mine, scored), seed)
    )
    return replace(
        record,
        task=task.name,
        version=task.version,
        part=part,
        scorer=scorer,
        num_examples=len(mine.scores),
        mean_rows=mine.rows,
        note=mine.note,
    )


def _mean_record(
    mine: Sequence[_Scored], of_tasks: Sequence[Sequence[_Scored]], seed: int
) -> QaRecord:
    """Of all tasks; without a score where one task has none."""
    setting = mine[0].setting
    scores = [_means(each, seed + number) for number, each in enumerate(mine)]
    versus = [
        _differences(each, _truncate_of(each, scored), seed + number)
        for number, (each, scored) in enumerate(zip(mine, of_tasks, strict=True))
    ]
    record = _as_record(setting, _averaged(scores), _averaged(versus))
    rows = [each.rows for each in mine if each.rows is not None]
    return replace(
        record,
        num_examples=sum(len(each.scores) for each in mine),
        mean_rows=float(np.mean(rows)) if len(rows) == len(mine) else None,
        note=next((each.note for each in mine if each.note), ""),
    )


def _as_record(setting: QaSetting, score: _Means | None, versus: _Means | None) -> QaRecord:
    mean, low, high = _bounded(score)
    better, least, most = _bounded(versus)
    return QaRecord(
        task=MEAN,
        version=1,
        part=ALL,
        method=setting.method,
        k=setting.k,
        window=setting.window,
        scorer=MAIN,
        num_examples=0,
        score=mean,
        low=low,
        high=high,
        versus_truncate=better,
        versus_low=least,
        versus_high=most,
        mean_rows=None,
    )


def _truncate_of(mine: _Scored, scored: Sequence[_Scored]) -> _Scored | None:
    """The most recent tokens in the same window; of raw reading, in the one that there is."""
    found = [each for each in scored if each.setting.method == "truncate"]
    same = [each for each in found if each.setting.window == mine.setting.window]
    if not same and mine.setting.method == "raw" and len(found) == 1:
        return found[0]
    return same[0] if same else None


def _means(mine: _Scored, seed: int) -> _Means | None:
    """Of its scores."""
    return _resampled(mine.scores, mine.groups, seed)


def _differences(mine: _Scored, other: _Scored | None, seed: int) -> _Means | None:
    """Of its scores to another's, on the questions that both answered."""
    if other is None:
        return None
    both = {n: score - other.scores[n] for n, score in mine.scores.items() if n in other.scores}
    return _resampled(both, mine.groups, seed)


def _resampled(scores: Mapping[int, float], groups: Sequence[str], seed: int) -> _Means | None:
    if not scores:
        return None
    values = np.array(list(scores.values()))
    names, members = np.unique([groups[n] for n in scores], return_inverse=True)
    if len(names) < 2:
        return float(values.mean()), None
    sums, counts = np.bincount(members, weights=values), np.bincount(members)
    picks = np.random.default_rng(seed).integers(len(names), size=(RESAMPLES, len(names)))
    return float(values.mean()), sums[picks].sum(1) / counts[picks].sum(1)


def _averaged(of_tasks: Sequence[_Means | None]) -> _Means | None:
    found = [each for each in of_tasks if each is not None]
    if len(found) < len(of_tasks):
        return None
    resampled = [each[1] for each in found if each[1] is not None]
    mean = float(np.mean([each[0] for each in found]))
    return mean, np.mean(resampled, axis=0) if len(resampled) == len(found) else None


def _bounded(means: _Means | None) -> Bounded:
    if means is None:
        return _NOTHING
    if means[1] is None:
        return means[0], None, None
    low, high = np.percentile(means[1], [2.5, 97.5])
    return means[0], float(low), float(high)
