"""`extensible bench cost`: table, records, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from .conftest import Run, refused

SMALL = ("--k", "4", "--context-tokens", "64,1000", "--new-tokens", "2", "--repeats", "2")


def test_bench_cost(run: Run, book: Path, tmp_path: Path) -> None:
    command = ("bench", "cost", "--data", book, *SMALL, "--no-memory", "--json", "out.json")
    result = run(*command)
    assert result.exit_code == 0, result.output
    for word in ("raw", "offline", "stream", "speed-up", "Raw context must fit"):
        assert word in result.stdout
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["configuration"]["num_repeats"] == 2
    assert len(report["records"]) == 2 * 4
    assert {record["peak_bytes"] for record in report["records"]} == {None}
    assert len((tmp_path / "out.json.journal").read_text().splitlines()) == 1 + 2 * 2
    assert run(*command).stdout == result.stdout


def test_texts_of_parquet_files_and_documents(run: Run, book: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a text", "another"]}), tmp_path / "texts.parquet")
    settings = (*SMALL, "--no-memory", "--modes", "online")
    result = run("bench", "cost", "--data", "texts.parquet", book, *settings)
    assert result.exit_code == 0, result.output
    refused(run("bench", "cost", "--data", "texts.parquet", "none.txt", *settings), 2, "none.txt")


@pytest.mark.slow
def test_memory_of_every_setting(run: Run, book: Path, tmp_path: Path) -> None:
    small = ("--k", "4", "--context-tokens", "64", "--new-tokens", "2", "--repeats", "1")
    result = run("bench", "cost", "--data", book, *small, "--modes", "online", "--json", "o.json")
    assert result.exit_code == 0, result.output
    records = json.loads((tmp_path / "o.json").read_text())["records"]
    assert all(record["peak_bytes"] is not None for record in records), records


@pytest.mark.usefixtures("no_reader")
def test_bench_cost_refuses_before_it_loads(run: Run, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a text")
    refused(run("bench", "cost", "--data", "gone.txt"), 2, "--data", "gone.txt")
    refused(run("bench", "cost", "--methods", "magic"), 2, "'magic' is none of them")
    refused(run("bench", "cost", "--modes", "fast"), 2, "'fast' is none of them")
    refused(run("bench", "cost", "--k", "auto"), 2, "'auto'")
    refused(run("bench", "cost", "--context-tokens", "x"), 2, "--context-tokens", "'x'")
    refused(run("bench", "cost", "--repeats", "0"), 2, "--repeats")
    refused(run("bench", "cost", "--json", "text.txt/out.json"), 2, "--json")
