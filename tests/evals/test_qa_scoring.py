"""Scores of answers by hand: means, paired differences and the mean over tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from extensible_embedding.evals.qa_scoring import ALL, MAIN, QaSetting, score_answers
from extensible_embedding.evals.records import MEAN, QaRecord
from extensible_embedding.evals.tasks import Example, Task

TRUNCATE, MIXED = QaSetting("truncate", 0, 512), QaSetting("extensible-mixed", 0, 512)
RAW = QaSetting("raw", 0, None)


class Words(Task):
    """The word is there, or not."""

    scorers = ("contains", "exact_match")

    def __init__(self, name: str) -> None:
        self.name = name

    def examples(self) -> Iterator[Example]:
        yield from ()


def examples(groups: str) -> list[Example]:
    return [
        Example(id=str(n), group=group, context="", question="", answers=("yes",))
        for n, group in enumerate(groups)
    ]


def scored(
    right: Mapping[tuple[str, QaSetting], str],
    groups: str = "abcd",
    settings: tuple[QaSetting, ...] = (TRUNCATE, MIXED, RAW),
) -> list[QaRecord]:
    """Right is what each task and setting answered: + right, - wrong, blank not at all."""

    def answers(task: Task, example: Example, setting: QaSetting) -> dict[str, Any] | None:
        mark = right[task.name, setting][int(example.id)]
        if mark == "!":
            return {"note": "no room"}
        return (
            {"prediction": "oh yes" if mark == "+" else "no", "rows": 10} if mark != " " else None
        )

    drawn = {Words(name): examples(groups) for name in dict.fromkeys(name for name, _ in right)}
    return score_answers(drawn, settings, answers, context_tokens=4096)


def only(records: list[QaRecord], **fields: object) -> QaRecord:
    (found,) = [r for r in records if all(getattr(r, name) == v for name, v in fields.items())]
    return found


ONE = {("t", TRUNCATE): "+---", ("t", MIXED): "+++-", ("t", RAW): "++++"}


def test_a_difference_is_of_the_same_questions() -> None:
    records = scored({**ONE, ("t", MIXED): " ++-"})
    found = only(records, method="extensible-mixed", scorer="contains")
    assert found.num_examples == 3
    assert found.score == pytest.approx(2 / 3)
    assert found.versus_truncate == pytest.approx(2 / 3)  # 2 of 3 to 0 of 3
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.score < found.high
    assert found.context_tokens == 4096
    assert only(records, method="truncate", scorer="contains").versus_truncate == 0


def test_raw_is_compared_with_the_one_window_there_is() -> None:
    assert only(scored(ONE), method="raw", scorer="contains").versus_truncate == 0.75
    wider = QaSetting("truncate", 0, 1024)
    records = scored({**ONE, ("t", wider): "+++-"}, settings=(TRUNCATE, wider, MIXED, RAW))
    assert only(records, method="raw", scorer="contains").versus_truncate is None
    assert only(records, method="extensible-mixed", scorer="contains").versus_truncate == 0.5


def test_without_truncate_there_is_no_comparison() -> None:
    (found, _) = scored({("t", MIXED): "+++-"}, settings=(MIXED,))
    assert found.versus_truncate is None


def test_the_mean_counts_every_task_alike_by_its_main_score() -> None:
    two = {("u", TRUNCATE): "++++", ("u", MIXED): "++ +", ("u", RAW): "----"}
    records = scored({**ONE, **two})
    mean = only(records, task=MEAN, method="extensible-mixed")
    assert (mean.part, mean.scorer, mean.num_examples) == (ALL, MAIN, 7)
    assert mean.score == pytest.approx((0.75 + 1) / 2)
    assert mean.versus_truncate == pytest.approx((0.5 + 0) / 2)
    assert mean.versus_low is not None
    assert mean.versus_high is not None
    assert mean.versus_low <= mean.versus_truncate <= mean.versus_high
    assert only(records, task=MEAN, method="raw").versus_truncate == pytest.approx((0.75 - 1) / 2)
    assert not [record for record in scored(ONE) if record.task == MEAN]


def test_a_task_without_an_answer_leaves_no_mean() -> None:
    two = {("u", TRUNCATE): "++++", ("u", MIXED): "!!!!", ("u", RAW): "----"}
    mean = only(scored({**ONE, **two}), task=MEAN, method="extensible-mixed")
    assert (mean.score, mean.versus_truncate, mean.note) == (None, None, "no room")


def test_one_document_gives_no_interval() -> None:
    found = only(scored(ONE, groups="aaaa"), method="raw", scorer="contains")
    assert (found.low, found.versus_low) == (None, None)
    assert found.versus_truncate == 0.75
