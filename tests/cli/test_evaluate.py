"""`extensible eval lm`: the table, the records, and refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from .conftest import Run, refused


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
    refused(run(*data, "--methods", "raw,magic"), 2, "--methods names", "'magic' is none of them")
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
