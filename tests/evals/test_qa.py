"""Tasks read their files, and predictions are kept, scored and scored again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from extensible_embedding import ExtensibleEmbedder
from extensible_embedding.errors import InputError, WindowError
from extensible_embedding.evals import scorers
from extensible_embedding.evals.methods import CannotRunError
from extensible_embedding.evals.methods.plain import Truncate
from extensible_embedding.evals.qa import evaluate_qa
from extensible_embedding.evals.qa_scoring import ALL
from extensible_embedding.evals.records import QaRecord, write_records
from extensible_embedding.evals.tasks import TASKS, ParquetTask, make_task

PARQUET = [name for name, kind in TASKS.items() if issubclass(kind, ParquetTask)]  # type: ignore[arg-type]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    columns: dict[str, list[object]] = {
        "id": [f"q{number}" for number in range(6)],
        "doc_id": [f"d{number // 2}" for number in range(6)],
        "context": [f"Document {number // 2} says {number}. " * 9 for number in range(6)],
        "question": [f"What is {number}?" for number in range(6)],
        "answers": [[f"{number}"] for number in range(6)],
        "task": ["easy", "hard"] * 3,
    }
    pq.write_table(pa.table(columns), tmp_path / "q.parquet")
    return tmp_path / "q.parquet"


@pytest.fixture
def books(tmp_path: Path) -> Path:
    text = ["One sentence. Another sentence. " * 40, "Words of a book. " * 90]
    pq.write_table(pa.table({"text": text}), tmp_path / "books.parquet")
    return tmp_path / "books.parquet"


@pytest.fixture
def evaluate(tiny_embedder: ExtensibleEmbedder, questions: Path) -> Callable[..., list[QaRecord]]:
    task = make_task("squad2", questions)
    return lambda **changed: evaluate_qa(tiny_embedder, [task], windows=[120], **changed)


def find(records: list[QaRecord], **fields: object) -> list[QaRecord]:
    return [r for r in records if all(getattr(r, name) == v for name, v in fields.items())]


def test_there_is_a_record_for_each_part_setting_and_scorer(
    evaluate: Callable[..., list[QaRecord]],
) -> None:
    records = evaluate(methods=["none", "extensible"], scale_factors=[2, 4])
    assert len(records) == 3 * 3 * 2
    assert [record.part for record in records[::6]] == ["easy", "hard", ALL]
    assert {record.num_examples for record in find(records, part=ALL)} == {6}
    assert all(record.score == 0 for record in records)


def test_predictions_are_kept_and_scored_again(
    evaluate: Callable[..., list[QaRecord]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = tmp_path / "p.jsonl"
    evaluate(journal=journal, methods=["truncate"])
    lines = journal.read_text().splitlines()
    assert len(lines) == 1 + 6
    assert {"prediction", "k", "rows"} == set(json.loads(lines[1])["value"])
    monkeypatch.setitem(scorers.SCORERS, "f1", lambda prediction, answers: 0.25)
    again = evaluate(journal=journal, methods=["truncate"])
    assert journal.read_text().splitlines() == lines
    assert find(again, scorer="f1", part=ALL)[0].score == 0.25
    assert find(again, scorer="f1", part=ALL)[0].low == 0.25


def test_answers_of_a_method_that_read_otherwise_are_given_anew(
    evaluate: Callable[..., list[QaRecord]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = tmp_path / "p.jsonl"
    evaluate(journal=journal, methods=["truncate"])
    monkeypatch.setattr(Truncate, "version", Truncate.version + 1)
    evaluate(journal=journal, methods=["truncate"])
    methods = [json.loads(line)["key"][4] for line in journal.read_text().splitlines()[1:]]
    assert methods == ["truncate"] * 6 + ["truncate/2"] * 6


def test_what_does_not_fit_says_why(
    tiny_embedder: ExtensibleEmbedder, questions: Path, tmp_path: Path
) -> None:
    table = pq.read_table(questions)
    long = pa.array(["Words upon words. " * tiny_embedder.reader.window] * len(table))
    place = table.column_names.index("context")
    pq.write_table(table.set_column(place, "context", long), tmp_path / "long.parquet")
    task = make_task("squad2", tmp_path / "long.parquet")
    record = find(evaluate_qa(tiny_embedder, [task], methods=["raw"]), part=ALL)[0]
    assert record.score is None
    assert record.num_examples == 0
    assert "Raw context must fit in" in record.note


def test_examples_are_drawn_from_every_part(evaluate: Callable[..., list[QaRecord]]) -> None:
    records = evaluate(methods=["none"], num_examples=2)
    assert [record.num_examples for record in find(records, scorer="f1")] == [1, 1, 2]


def test_unknown_names_are_refused(
    evaluate: Callable[..., list[QaRecord]], questions: Path
) -> None:
    with pytest.raises(InputError, match="'magic' is none of them"):
        evaluate(methods=["magic"])
    with pytest.raises(InputError, match="A task is one of squad2, .*, but it is 'magic'"):
        make_task("magic", questions)


@pytest.mark.parametrize("name", PARQUET)
def test_tasks_of_files_ask_what_the_file_asks(name: str, questions: Path) -> None:
    task = make_task(name, questions)
    examples = list(task.examples())
    assert [example.id for example in examples] == [f"q{number}" for number in range(6)]
    assert all(example.question in task.text(example) for example in examples)
    assert set(task.scorers) <= set(scorers.SCORERS)


def test_a_file_without_the_columns_is_refused(books: Path) -> None:
    with pytest.raises(InputError, match="lacks answers, context"):
        list(make_task("squad2", books).examples())
    books.write_bytes(b"no parquet")
    with pytest.raises(InputError, match="cannot be read as such"):
        list(make_task("needle", books).examples())


def test_distractors_hold_no_answer_and_the_passage_is_there(tmp_path: Path) -> None:
    columns: dict[str, list[object]] = {
        "id": ["a", "b", "c", "d"],
        "doc_id": ["1", "2", "3", "1"],
        "context": ["Paris is here.", "It is Paris too.", "Rome.", "Of the same page."],
        "question": ["Where?"] * 4,
        "answers": [["paris"], ["it"], ["rome"], ["page"]],
        "task": ["nq"] * 4,
    }
    pq.write_table(pa.table(columns), tmp_path / "nq.parquet")
    first = next(iter(make_task("nq-open", tmp_path / "nq.parquet").examples()))
    assert sorted(first.context.split("\n\n")) == ["Paris is here.", "Rome."]


@pytest.mark.parametrize("name", ["passkey", "needle"])
def test_needles_stand_at_their_depth(name: str, books: Path) -> None:
    task = TASKS[name](books)
    task.lengths, task.depths, task.repeats = (400,), (0.0, 0.5, 1.0), 2  # type: ignore[attr-defined]
    examples = list(task.examples())
    assert len(examples) == 6
    for example in examples:
        depth = example.context.index(example.answers[0]) / len(example.context)
        wanted = float(example.id.split("-")[1])
        assert abs(depth - wanted) < 0.3
        assert example.answers[0] not in example.question
    assert len({example.answers[0] for example in examples}) == 6
    assert examples == list(task.examples())


def test_written_records_are_json(evaluate: Callable[..., list[QaRecord]], tmp_path: Path) -> None:
    records = evaluate(methods=["none"])
    write_records(records, tmp_path / "out.json", configuration={"seed": 0})
    found = json.loads((tmp_path / "out.json").read_text())
    assert [record["scorer"] for record in found["records"]] == [r.scorer for r in records]
    assert "target_loss_nats" not in found


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("answers", ["Paris", "Oslo"], "answers to a question are a list of texts.*'Paris'"),
        ("answers", [None, ["Oslo"]], "answers to a question are a list of texts.*None"),
        ("answers", [[None], ["Oslo"]], "answers to a question are a list of texts"),
        ("context", [None, "a"], "has a text under `context`.*None"),
        ("question", ["a", None], "has a text under `question`.*None"),
    ],
)
def test_columns_of_another_type_are_refused(
    tmp_path: Path, column: str, values: list[object], message: str
) -> None:
    """The letters of a text are no answers: each of them stands in any prediction."""
    columns: dict[str, list[object]] = {
        "id": ["1", "2"], "doc_id": [None, "b"], "context": ["a", "b"], "question": ["c", "d"],
        "answers": [["e"], ["f"]], "task": ["t", "t"],
    }  # fmt: skip
    pq.write_table(pa.table({**columns, column: values}), tmp_path / "q.parquet")
    with pytest.raises(InputError, match=message):
        list(make_task("squad2", tmp_path / "q.parquet").examples())


@pytest.mark.parametrize("texts", [[], [None], [""]])
def test_a_haystack_needs_a_book_with_text(tmp_path: Path, texts: list[str | None]) -> None:
    pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match="made from books, but .* has none with text"):
        next(make_task("passkey", tmp_path / "b.parquet").examples())


def test_answers_to_other_questions_of_the_same_id_are_not_taken_over(
    tiny_embedder: ExtensibleEmbedder, tmp_path: Path
) -> None:
    """Another file, or another row of the same file: neither gets an answer that is not its own."""
    columns: dict[str, list[object]] = {
        "id": ["1", "1"], "doc_id": ["a", "b"], "context": ["abc " * 9, "xyz " * 9],
        "question": ["What?", "Who?"], "answers": [["e"], ["f"]], "task": ["t", "t"],
    }  # fmt: skip
    other = {**columns, "context": ["another " * 9, "xyz " * 9]}
    tasks = []
    for name, table in (("one", columns), ("two", other)):
        pq.write_table(pa.table(table), tmp_path / f"{name}.parquet")
        tasks.append(make_task("squad2", tmp_path / f"{name}.parquet"))
    journal = tmp_path / "p.journal"
    for task, answers in zip(tasks, (2, 3), strict=True):  # the second row is in both files
        evaluate_qa(tiny_embedder, [task], methods=["truncate"], journal=journal)
        assert len(journal.read_text().splitlines()) == 1 + answers


def test_a_window_beyond_the_readers_is_refused(
    tiny_embedder: ExtensibleEmbedder, questions: Path
) -> None:
    with pytest.raises(InputError, match="at most the reader's window of 512 rows, but .* 600"):
        evaluate_qa(tiny_embedder, [make_task("squad2", questions)], windows=[None, 600])


def test_raw_has_the_readers_own_window(evaluate: Callable[..., list[QaRecord]]) -> None:
    records = evaluate(methods=["raw", "truncate"])
    (raw,) = find(records, method="raw", part=ALL, scorer="f1")
    assert (raw.window, raw.num_examples) == (None, 6)
    assert raw.versus_truncate == 0


def test_what_could_not_run_is_tried_again(
    evaluate: Callable[..., list[QaRecord]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package that was missing may be there when the same command goes on."""
    journal = tmp_path / "p.jsonl"

    def refuse(self: Truncate, *arguments: object) -> None:
        raise CannotRunError("a package is missing")

    with monkeypatch.context() as missing:
        missing.setattr(Truncate, "read", refuse)
        for _ in range(2):
            record = find(evaluate(journal=journal, methods=["truncate"]), part=ALL)[0]
            assert (record.num_examples, record.note) == (0, "a package is missing")
        assert len(journal.read_text().splitlines()) == 1 + 6
    record = find(evaluate(journal=journal, methods=["truncate"]), part=ALL)[0]
    assert (record.num_examples, record.note) == (6, "")


def test_what_does_not_fit_is_not_read_again(
    evaluate: Callable[..., list[QaRecord]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = list[object]()

    def refuse(self: Truncate, *arguments: object) -> None:
        read.append(arguments)
        raise WindowError("it is too long")

    monkeypatch.setattr(Truncate, "read", refuse)
    for _ in range(2):
        record = find(evaluate(journal=tmp_path / "p.jsonl", methods=["truncate"]), part=ALL)[0]
        assert (record.num_examples, record.note) == (0, "it is too long")
        assert len(read) == 6


def test_methods_are_scored_on_the_same_questions_after_a_longer_run(
    evaluate: Callable[..., list[QaRecord]], tmp_path: Path
) -> None:
    journal = tmp_path / "p.jsonl"
    assert find(evaluate(journal=journal, methods=["none"]), part=ALL)[0].num_examples == 6
    hurried = evaluate(journal=journal, methods=["none", "truncate"], budget_minutes=1e-9)
    assert [record.num_examples for record in find(hurried, part=ALL, scorer="f1")] == [1, 1]


def test_lines_are_asked_for_a_number(questions: Path) -> None:
    """Before anything is answered: scoring could not read it."""
    table = pq.read_table(questions)
    place = table.column_names.index("answers")
    words = pa.array([["line ten"]] * len(table))
    pq.write_table(table.set_column(place, "answers", words), questions)
    with pytest.raises(InputError, match="asked for a number, but an answer of .* is 'line ten'"):
        list(make_task("longeval-lines", questions).examples())
