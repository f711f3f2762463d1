"""`extensible bench ablations`: one table, records, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from .conftest import Run, refused


@pytest.fixture
def command(tmp_path: Path, tiny_reader_folder: Path, text: str) -> list[object]:
    (tmp_path / "data.txt").write_text(text * 4)
    for name in ("one", "two"):
        pq.write_table(pa.table({"text": [text + name]}), tmp_path / f"{name}.parquet")
    config = {
        "output_dir": "unused",
        "cache_dir": "cache",
        "data": ["data.txt"],
        "reader": str(tiny_reader_folder),
        "num_layers": 2,
        "reading_chunk_tokens": 16,
        "instance_tokens": [64],
        "chunk_tokens": [16],
        "scale_factors": [2, 4],
        "logging_steps": 1,
        "bf16": False,
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(config))
    shape = ("--context-tokens", "64", "--target-tokens", "16", "--num-targets", "2", "--k", "2,4")
    files = ("--config", "base.yaml", "--out", "out", "--data", "one.parquet", "two.parquet")
    return ["bench", "ablations", *files, *shape, "--budget-tokens", "150"]


def test_one_command_one_table(run: Run, command: list[object], tmp_path: Path) -> None:
    chosen = (*command, "--variants", "mean,residual")
    result = run(*chosen, models=False)
    assert result.exit_code == 0, result.output
    assert "mean: step 2/2, loss" in result.stderr
    assert result.stdout.splitlines()[0].split()[:2] == ["group", "variant"]
    assert [line.split()[1] for line in result.stdout.splitlines()[1:]] == [
        "baseline", "strided", "mean", "residual",
    ]  # fmt: skip
    report: dict[str, Any] = json.loads((tmp_path / "out" / "ablations.json").read_text())
    assert {row["domain"] for row in report["records"]} == {"one", "two", "mean"}
    configuration = report["configuration"]
    assert (configuration["seed"], configuration["budget_tokens"]) == (0, 150)
    assert configuration["baseline"]["seed"] == 0
    table = (tmp_path / "out" / "ablations.md").read_text()
    assert table.count("\n") == 2 + 4
    again = run(*chosen, models=False)
    assert again.stdout == result.stdout
    assert "step" not in again.stderr
    shown = run("eval", "report", "out", models=False)
    assert shown.exit_code == 0, shown.output
    assert "Ablations" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.usefixtures("no_reader")
def test_refusals_before_a_reader_is_loaded(
    run: Run, command: list[object], tmp_path: Path
) -> None:
    refused(run(*command, "--variants", "magic", models=False), 2, "Variants are", "'magic'")
    refused(run(*command, "--variants", ",", models=False), 2, "none is given")
    refused(run(*command, "--k", "x", models=False), 2, "'x'")
    refused(run(*command, "--budget-tokens", "0", models=False), 2, "--budget-tokens")
    refused(run(*command, "--config", "gone.yaml", models=False), 2, "'gone.yaml'")
    refused(run(*command, "--out", "one.parquet", models=False), 2, "--out", "one.parquet")
    (tmp_path / "two.parquet").unlink()
    refused(run(*command, models=False), 2, "'two.parquet' is none")


def test_an_interrupt_is_told(
    run: Run, command: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def press(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("extensible_embedding.bench.ablations.train", press)
    result = run(*command, "--variants", "mean", models=False)
    assert result.exit_code == 130
    assert "Interrupted" in result.stderr
