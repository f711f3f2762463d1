"""`extensible eval lm`: the table, the records, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

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
