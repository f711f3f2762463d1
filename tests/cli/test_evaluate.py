"""`extensible eval`: tables, records, and refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from extensible_embedding.evals.methods import CannotRunError
from extensible_embedding.evals.methods.plain import Truncate

from .conftest import Run, refused


@pytest.fixture
def text() -> str:
    """No part of it comes twice: the same target is drawn once."""
    return "".join(f"{number} herons, " for number in range(200))


def test_eval_lm(run: Run, tmp_path: Path, text: str) -> None:
    for name in ("one", "two"):
        pq.write_table(pa.table({"text": [text + name]}), tmp_path / f"{name}.parquet")
    shape = ("--context-tokens", "64", "--target-tokens", "16", "--num-targets", "2", "--k", "2,4")
    files = ("--data", tmp_path / "one.parquet", tmp_path / "two.parquet")
    result = run("eval", "lm", *files, *shape, "--json", tmp_path / "out.json")
    assert result.exit_code == 0, result.output
    for word in ("one", "two", "mean", "raw", "extensible", "recovery"):
        assert word in result.stdout
    report = json.loads((tmp_path / "out.json").read_text())
    assert {record["k"] for record in report["records"]} == {0, 1, 2, 4}


def test_eval_lm_refuses(run: Run, tmp_path: Path) -> None:
    data = ("eval", "lm", "--data", "none.parquet", "--target-tokens", "16")
    refused(run(*data, "--context-tokens", "64"), 2, "none.parquet")
    refused(run(*data, "--k", "2,x"), 2, "'x'")
    refused(run(*data, "--k", "auto"), 2, "'auto'")
    refused(run(*data, "--context-tokens", "64,-1"), 2, "--context-tokens", "'-1'")
    refused(run(*data, "--methods", "magic"), 2, "magic")


@pytest.mark.usefixtures("no_reader")
def test_eval_lm_refuses_before_it_loads(run: Run, tmp_path: Path) -> None:
    (tmp_path / "some.parquet").write_bytes(b"")
    data = ("eval", "lm", "--data", "some.parquet")
    refused(
        run(*data, "--methods", "raw,magic"),
        2,
        "Methods are one or more of",
        "'magic' is none of them",
    )
    refused(run(*data, "--methods", ","), 2, "none is given")
    refused(run(*data, "--json", tmp_path / "some.parquet" / "out.json"), 2, "--json")
    refused(run(*data, "--target-tokens", "0"), 2, "--target-tokens")
    result = run(*data, "--methods", "magic", "--json", "out.json")
    assert "magic" in json.loads(result.stdout)["error"]
    result = run(*data, "--json", "out.json", "--num-targets", "none")
    assert json.loads(result.stdout)["type"] == "UsageError"


def test_the_table_fits_80_columns_and_is_whole_in_a_file(
    run: Run, tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.table({"text": [text]}), tmp_path / "a-long-name.parquet")
    shape = ("--context-tokens", "64", "--target-tokens", "16", "--num-targets", "2", "--k", "2")
    command = ("eval", "lm", "--data", tmp_path / "a-long-name.parquet", *shape)
    monkeypatch.setenv("COLUMNS", "20")
    lines = run(*command).stdout.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("a-long-name ") for line in lines[1:])
    monkeypatch.setattr("extensible_embedding.cli.evaluate.stdout", lambda: Console(width=80))
    narrow = run(*command).stdout.splitlines()
    assert max(map(len, narrow)) <= 80
    intervals = [re.findall(r"\S+ \[.*?\]", "\n".join(shown)) for shown in (lines, narrow)]
    assert intervals[0] == intervals[1]
    assert len(intervals[0]) == 6


def test_eval_lm_in_equal_windows_goes_on_from_its_journal(
    run: Run, tmp_path: Path, text: str
) -> None:
    pq.write_table(pa.table({"text": [text]}), tmp_path / "one.parquet")
    shape = ("--context-tokens", "128", "--target-tokens", "16", "--num-targets", "2")
    methods = ("--methods", "truncate,extensible", "--k", "auto", "--windows", "64")
    command = ("eval", "lm", "--data", "one.parquet", *shape, *methods, "--json", "out.json")
    result = run(*command)
    assert result.exit_code == 0, result.output
    assert "vs trunc." in result.stdout
    journal = tmp_path / "out.json.journal"
    lines = journal.read_text().splitlines()
    assert len(lines) == 1 + 2 * 2
    journal.write_text("\n".join(lines[:3]) + "\n")
    assert run(*command).stdout == result.stdout
    assert journal.read_text().splitlines() == lines
    refused(run(*command, "--seed", "5"), 2, "out.json.journal", "begun with seed")


@pytest.fixture
def questions(tmp_path: Path, text: str) -> Path:
    columns = {
        "id": ["1", "2"],
        "doc_id": ["1", "2"],
        "context": [text, text[:200]],
        "question": ["What is acknowledged?", "Who?"],
        "answers": [["a truth"], ["a man", "a wife"]],
        "task": ["squad2"] * 2,
    }
    pq.write_table(pa.table(columns), tmp_path / "q.parquet")
    return tmp_path / "q.parquet"


def test_eval_qa(run: Run, questions: Path, tmp_path: Path) -> None:
    command = ("eval", "qa", "--task", f"squad2={questions}", "--windows", "300")
    result = run(*command, "--json", "out.json")
    assert result.exit_code == 0, result.output
    for word in ("squad2", "retrieve", "extensible", "exact_match", "auto"):
        assert word in result.stdout
    report = json.loads((tmp_path / "out.json").read_text())
    assert {record["scorer"] for record in report["records"]} == {"exact_match", "f1"}
    assert len((tmp_path / "out.json.journal").read_text().splitlines()) == 1 + 2 * 4


def test_eval_qa_takes_published_files(run: Run, text: str, tmp_path: Path) -> None:
    row = {
        "input": "Who?", "context": text, "answers": ["a man"], "length": 90, "language": "en",
        "dataset": "qasper", "all_classes": None,
    }  # fmt: skip
    rows = [json.dumps({**row, "_id": name}) for name in "ab"]
    (tmp_path / "qasper.jsonl").write_text("\n".join(rows))
    needle = {
        "input": "A special magic number is hidden within the following text. Make sure to "
        "memorize it. I will quiz you about the number afterwards.\n" + text + "\nWhat is the "
        "special magic number for a-b mentioned in the provided text?",
        "index": 0, "outputs": ["123"], "length": 500, "answer_prefix": " It is",
    }  # fmt: skip
    (tmp_path / "niah_single_1.jsonl").write_text(json.dumps(needle))
    tasks = ("--task", "longbench=qasper.jsonl", "--task", "ruler=niah_single_1.jsonl")
    result = run("eval", "qa", *tasks, "--methods", "none", "--json", "out.json")
    assert result.exit_code == 0, result.output
    records = json.loads((tmp_path / "out.json").read_text())["records"]
    assert [(record["task"], record["scorer"]) for record in records] == [
        ("longbench-qasper", "longbench_f1"),
        ("ruler-niah_single_1-512", "ruler_all"),
        ("mean", "main"),
    ]


@pytest.mark.usefixtures("no_reader")
def test_eval_qa_refuses_before_it_loads(run: Run, questions: Path) -> None:
    refused(run("eval", "qa", "--task", "squad2"), 2, "--task is NAME=FILE", "squad2")
    refused(run("eval", "qa", "--task", "squad2=gone.parquet"), 2, "no 'gone.parquet'")
    refused(run("eval", "qa", "--task", f"magic={questions}"), 2, "'magic'")
    refused(run("eval", "qa", "--task", f"ruler={questions}"), 2, "one JSON object a line")
    task = ("eval", "qa", "--task", f"squad2={questions}")
    refused(run(*task, "--methods", "magic"), 2, "'magic' is none of them")
    refused(run(*task, "--windows", "x"), 2, "--windows", "'x'")
    refused(run(*task, "--num-examples", "0"), 2, "--num-examples")


@pytest.mark.usefixtures("no_reader")
def test_seeds_and_budgets_below_0_are_refused(run: Run) -> None:
    (data := Path("some.parquet")).write_bytes(b"")
    refused(run("eval", "lm", "--data", data, "--seed", "-1"), 2, "--seed")
    refused(run("eval", "lm", "--data", data, "--budget-minutes", "nan"), 2, "--budget-minutes")
    refused(run("eval", "qa", "--task", f"squad2={data}", "--seed", "-1"), 2, "--seed")


def test_what_could_not_run_says_why(
    run: Run, tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Truncate, *arguments: object) -> None:
        raise CannotRunError("a package is missing")

    monkeypatch.setattr(Truncate, "read", refuse)
    pq.write_table(pa.table({"text": [text]}), tmp_path / "one.parquet")
    shape = ("--context-tokens", "64", "--target-tokens", "16", "--num-targets", "1")
    command = ("eval", "lm", "--data", "one.parquet", *shape, "--windows", "64", "--k", "auto")
    result = run(*command, "--methods", "truncate,extensible")
    assert "truncate: a package is missing" in result.stderr.splitlines()
    columns = {"id": ["1"], "doc_id": ["1"], "context": ["a b"], "question": ["c?"],
               "answers": [["d"]], "task": ["e"]}  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "q.parquet")
    result = run("eval", "qa", "--task", "squad2=q.parquet", "--methods", "truncate")
    assert "truncate: a package is missing" in result.stderr.splitlines()


@pytest.mark.usefixtures("no_reader")
def test_what_cannot_be_told_apart_or_written_is_refused_before_it_loads(
    run: Run, tmp_path: Path
) -> None:
    for name in ("a.parquet", "b.parquet"):
        (tmp_path / name).write_bytes(b"")
    twice = ("--task", "squad2=a.parquet", "--task", "squad2=b.parquet")
    refused(run("eval", "qa", *twice), 2, "told apart by their names, but two are 'squad2'")
    result = run("eval", "lm", "--data", "a.parquet", "--json", tmp_path)
    refused(result, 2, "--json names a file", "is a folder")
