"""Question files cut to a training length, and the script that makes a file of questions."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from extensible_embedding.errors import InputError
from extensible_embedding.evals.tasks import make_task
from extensible_embedding.train.question_cache import read_questions
from extensible_embedding.train.question_files import (
    QA_TASKS,
    Group,
    Room,
    is_kept_back,
    read_question_file,
    regroup,
    split,
)
from extensible_embedding.train.synthetic import CODE_KINDS, PROSE_KINDS

from .made_texts import CODE, PROSE

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
CHARS = 1_500


def row(task: str, doc: str, context: str, gold: str, question: str, answer: str) -> dict[str, Any]:
    fields = {"id": f"{doc}-{question}", "doc_id": doc, "context": context, "gold_context": gold}
    return {**fields, "question": question, "answers": [answer], "task": task, "source": "made up"}


def tale_rows() -> list[dict[str, Any]]:
    rows = []
    for doc in range(20):
        parts = [f"Tale {doc} part {part}. " + "It was so. " * 20 for part in range(12)]
        rows += [
            row(
                "fairytaleqa-explicit",
                f"tale {doc}",
                "\n\n".join(parts),
                part,
                f"Which {part}",
                f"{doc}",
            )
            for part in parts
        ]
    return rows


def meeting_rows() -> list[dict[str, Any]]:
    rows = []
    for doc in range(20):
        turns = [
            f"Speaker {turn}: In meeting {doc} I say {turn}. " + "Yes. " * 20 for turn in range(40)
        ]
        question, answer = f"What is said in meeting {doc}?", "They say much. " + "So it is. " * 40
        gold = "\n".join(turns[5:9])
        rows.append(row("qmsum-specific", f"m{doc}", "\n".join(turns), gold, question, answer))
        rows.append(row("qmsum-general", f"m{doc}", "\n".join(turns), "", "Sum it all up.", "It."))
    return rows


def passage_rows() -> list[dict[str, Any]]:
    texts = [
        f"Title {number}\n\nThe height of hill {number} is {number * 13} feet."
        for number in range(60)
    ]
    return [
        row(
            "nq-open-oracle",
            f"Title {number}",
            text,
            text,
            f"how high is hill {number}?",
            f"{number * 13}",
        )
        for number, text in enumerate(texts)
    ]


def statement_rows() -> list[dict[str, Any]]:
    rows = []
    for doc in range(40):
        facts = [f"Ann{doc} went to room {step}." for step in range(6)]
        for end in (2, 4, 6):
            context = "\n".join(facts[:end])
            question = (f"Where is Ann{doc} after {end}?", f"{end - 1}")
            rows += [row("babi-qa1", f"qa1-{doc}", context, facts[end - 1], *question)] * 2
    return rows


ROWS = {
    "fairytaleqa": tale_rows,
    "qmsum": meeting_rows,
    "nq-open-oracle": passage_rows,
    "babi": statement_rows,
}


def question_file(folder: Path, task: str) -> Path:
    path = folder / f"{task}-dev.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS[task]()), path)
    return path


def regrouped(folder: Path, task: str, seed: int = 0) -> list[Group]:
    _, rows = split(read_question_file(question_file(folder, task)))
    room = Room(context_chars=CHARS, haystack=PROSE)
    return list(regroup(task, rows, room, random.Random(seed)))


@pytest.mark.parametrize("task", list(QA_TASKS))
def test_the_kept_part_and_the_used_one_share_no_document(tmp_path: Path, task: str) -> None:
    table = read_question_file(question_file(tmp_path, task))
    kept, used = split(table)
    kept_ids, used_ids = set(kept["doc_id"].to_pylist()), {each["doc_id"] for each in used}
    assert kept_ids.isdisjoint(used_ids)
    assert kept_ids | used_ids == set(table["doc_id"].to_pylist())
    assert all(map(is_kept_back, kept_ids))
    assert kept.schema == table.schema
    assert 0 < len(kept_ids) < len(used_ids)


def test_rows_that_are_kept_back_under_another_name_are_not_used(tmp_path: Path) -> None:
    path = tmp_path / "babi-dev.parquet"
    names = [f"story {number}" for number in range(50)]
    rows = [row("babi-qa1", name, "A is here.", "A is here.", "Where?", "here") for name in names]
    pq.write_table(pa.Table.from_pylist(rows), path)
    kept, used = split(read_question_file(path))
    assert kept.num_rows
    assert not used


@pytest.mark.parametrize("task", list(QA_TASKS))
def test_contexts_fit_and_a_seed_gives_the_same_ones(tmp_path: Path, task: str) -> None:
    groups = regrouped(tmp_path, task)
    assert groups
    assert all(len(group.context) <= CHARS and group.questions for group in groups)
    assert groups == regrouped(tmp_path, task)
    assert groups != regrouped(tmp_path, task, seed=1)


def test_each_question_on_a_tale_is_asked_once_or_twice_where_its_part_is(tmp_path: Path) -> None:
    asked = [
        (question, group.context)
        for group in regrouped(tmp_path, "fairytaleqa")
        for question, _ in group.questions
    ]
    questions = [question for question, _ in asked]
    used = {each["question"] for each in tale_rows() if not is_kept_back(each["doc_id"])}
    assert set(questions) == used
    assert max(map(questions.count, used)) <= 2
    assert all(question.removeprefix("Which ") in context for question, context in asked)


def test_answers_about_meetings_are_cut_at_a_sentence(tmp_path: Path) -> None:
    for group in regrouped(tmp_path, "qmsum"):
        (((_, (answer,)),)) = group.questions
        assert len(answer.split()) <= 60
        assert answer.endswith("So it is.")
        assert "I say 5." in group.context
        assert "I say 8." in group.context


def test_passages_come_in_small_groups_with_all_their_questions(tmp_path: Path) -> None:
    for group in regrouped(tmp_path, "nq-open-oracle"):
        titles = re.findall(r"^Title (\d+)$", group.context, re.MULTILINE)
        assert 4 <= len(titles) <= 7
        assert [question for question, _ in group.questions] == [
            f"how high is hill {title}?" for title in titles
        ]
        assert not any(is_kept_back(f"Title {title}") for title in titles)


def test_a_question_on_statements_has_just_those_before_it(tmp_path: Path) -> None:
    groups = regrouped(tmp_path, "babi")
    for group in groups:
        (((question, _)),) = group.questions
        end = int(question.removesuffix("?").split()[-1])
        rooms = [int(found) for found in re.findall(r"went to room (\d)", group.context)]
        assert rooms == list(range(end))
    spread = ["schooner" in group.context or "rock" in group.context for group in groups]
    assert sum(spread) == len(groups) / 2


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(SCRIPTS)
    return import_module("make_questions")


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, Path]:
    found = {"text": tmp_path / "prose.parquet", "code": tmp_path / "code.parquet"}
    pq.write_table(pa.table({"text": PROSE.texts}), found["text"])
    pq.write_table(pa.table({"text": CODE.texts}), found["code"])
    return found


@pytest.fixture
def run(script: Any, texts: dict[str, Path], tmp_path: Path) -> Callable[..., int]:
    def call(qa: Sequence[Path], *words: object, text: Path | None = None) -> int:
        given: list[object] = ["--text", text or texts["text"], "--code", texts["code"]]
        given += ["--out", tmp_path / "out.parquet", "--contexts", 28, "--context-chars", CHARS]
        given += ["--qa", *qa, "--kept", tmp_path / "kept"] if qa else []
        return int(script.main([str(word) for word in (*given, *words)]))

    return call


def test_the_script_writes_questions_and_what_is_kept_back(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [question_file(tmp_path, task) for task in QA_TASKS]
    assert run(paths, "--qa-contexts", 15) == 0
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column_names == ["context", "question", "answers", "task"]
    rows = table.to_pylist()
    assert {each["task"] for each in rows} == {*PROSE_KINDS, *CODE_KINDS, *QA_TASKS}
    contexts = [
        task for (task, _), _ in groupby(rows, lambda each: (each["task"], each["context"]))
    ]
    assert sum(task not in QA_TASKS for task in contexts) == 28
    assert len(list(read_questions(tmp_path / "out.parquet"))) == len(rows)
    short = sum(each["question"].startswith("Answer in a few words. ") for each in rows)
    assert 0 < short < len(rows)
    for path in paths:
        assert pq.read_table(tmp_path / "kept" / path.name).schema == pq.read_table(path).schema
    examples = list(make_task("qmsum", tmp_path / "kept" / "qmsum-dev.parquet").examples())
    assert all(is_kept_back(example.group) for example in examples)
    assert "fairytaleqa" in capsys.readouterr().out


def test_the_script_gives_the_same_file_for_the_same_seed(
    run: Callable[..., int], tmp_path: Path
) -> None:
    out = tmp_path / "out.parquet"
    tables = [pq.read_table(out) for seed in (0, 0, 1) if run([], "--seed", seed) == 0]
    assert tables[0].equals(tables[1])
    assert not tables[0].equals(tables[2])


@pytest.mark.parametrize(
    "name",
    ["longeval-lines-dev", "kv-retrieval-dev", "squad2-articles-dev", "babi-eval", "babi-test"],
)
def test_questions_for_evaluation_are_refused(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path = question_file(tmp_path, "babi").rename(tmp_path / f"{name}.parquet")
    assert run([path]) == InputError.exit_code
    assert "for evaluation only" in capsys.readouterr().err
    assert not (tmp_path / "out.parquet").exists()


def test_questions_for_evaluation_are_refused_under_another_name(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = question_file(tmp_path, "babi").rename(tmp_path / "qmsum-dev.parquet")
    assert run([path]) == InputError.exit_code
    assert "some are of 'babi-qa1'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--context-chars", "10"], "--context-chars is 600 or more, but it is 10"),
        (["--qa", "babi-dev.parquet"], "name a folder for it with --kept"),
        (["--text", "no.parquet"], "'no.parquet' is none"),
        (["--text", "books-eval.parquet"], "'books-eval.parquet' is for evaluation only"),
        (["--qa", "babi-dev.parquet", "--kept", "."], "it cannot be written"),
        (["--qa", "babi-dev.parquet", "--kept", "kept"], "cannot be read as such"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_sentence(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert run([], *words) == InputError.exit_code
    error = capsys.readouterr().err
    assert error.startswith("Error: ")
    assert message in error


def test_a_file_without_columns_or_text_is_refused(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "babi-dev.parquet"
    pq.write_table(pa.table({"doc_id": ["a"]}), path)
    assert run([path]) == InputError.exit_code
    assert "lacks answers, context, gold_context, question, task" in capsys.readouterr().err
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n")
    assert run([], text=empty) == InputError.exit_code
    assert "has none; leave it out" in capsys.readouterr().err


def test_kinds_that_a_text_does_not_allow_are_left_out(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = tmp_path / "plain.txt"
    plain.write_text(
        "\n\n".join(f"Day {n} was a long one. Nobody came to Rome." for n in range(99))
    )
    assert run([], text=plain) == 0
    assert "who-said: 4 contexts fewer" in capsys.readouterr().err
    tasks = pq.read_table(tmp_path / "out.parquet")["task"].to_pylist()
    assert "who-said" not in tasks
    assert "passkey" not in tasks or "key-value" in tasks
