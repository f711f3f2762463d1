"""Peak memory of a reading."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from extensible_embedding import ExtensibleEmbedder
from extensible_embedding.evals import memory
from extensible_embedding.evals.cost_settings import OFFLINE, ONLINE, CostSetting
from extensible_embedding.evals.memory import (
    ModelSource,
    measure_request,
    peak_bytes,
    peak_memory,
)
from extensible_embedding.evals.methods import CannotRunError

MEGABYTE = 1 << 20
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells the peak")
RAW = CostSetting("raw", ONLINE, 1, 400)


@pytest.fixture
def source(
    tiny_reader_folder: Path, tiny_embedder: ExtensibleEmbedder, tmp_path: Path
) -> ModelSource:
    tiny_embedder.save_pretrained(tmp_path / "embedder")
    return ModelSource(reader=str(tiny_reader_folder), embedder=str(tmp_path / "embedder"))


@pytest.fixture
def ids_file(tmp_path: Path) -> Path:
    torch.save(torch.randint(97, 123, (600,)), tmp_path / "ids.pt")
    return tmp_path / "ids.pt"


_MEASURED = """
import torch
from extensible_embedding.evals.memory import peak_bytes
def run():
    for _ in range(4):
        torch.ones(40 << 20, dtype=torch.uint8)
print(peak_bytes(run, torch.device("cpu")))
torch.ones(200 << 20, dtype=torch.uint8)
print(peak_bytes(lambda: None, torch.device("cpu")))
"""


@on_linux
def test_the_peak_is_the_most_at_a_time_and_no_earlier_one() -> None:
    """In a process of its own, as it is used: others may have told the C library to keep memory."""
    command = [sys.executable, "-c", _MEASURED]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    most, nothing = map(int, output.split())
    assert 38 * MEGABYTE < most < 60 * MEGABYTE
    assert nothing < 10 * MEGABYTE


def test_a_device_that_does_not_tell_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CannotRunError, match="peak memory on mps of .* is not counted"):
        peak_bytes(lambda: None, torch.device("mps"))
    monkeypatch.setattr(memory, "_CLEAR", Path("/no/such/file"))
    with pytest.raises(CannotRunError, match="peak memory on cpu"):
        peak_bytes(lambda: None, torch.device("cpu"))


def request(source: ModelSource, setting: CostSetting, ids_file: Path) -> dict[str, Any]:
    return {
        "source": dataclasses.asdict(source),
        "setting": dataclasses.asdict(setting),
        "ids_file": str(ids_file),
        "new_tokens": 4,
        "folder": None,
        "num_threads": 1,
    }


@on_linux
def test_a_request_is_answered(source: ModelSource, ids_file: Path) -> None:
    answer = measure_request(request(source, RAW, ids_file))
    assert answer["note"] == ""
    assert 0 <= answer["peak_bytes"] < 100 * MEGABYTE


def test_a_reading_that_cannot_run_says_why(source: ModelSource, ids_file: Path) -> None:
    beyond = dataclasses.replace(RAW, context_tokens=600)
    answer = measure_request(request(source, beyond, ids_file))
    assert answer["peak_bytes"] is None
    assert "must fit in 507 rows" in answer["note"]


@pytest.mark.slow
@on_linux
def test_a_process_of_its_own(
    source: ModelSource, ids_file: Path, tiny_embedder: ExtensibleEmbedder, tmp_path: Path
) -> None:
    assert peak_memory(source, RAW, ids_file, 4) >= 0
    rows = dataclasses.replace(RAW, method="extensible", mode=OFFLINE, k=4)
    assert peak_memory(source, rows, ids_file, 4, tmp_path / "rows") >= 0
    with pytest.raises(CannotRunError, match="must fit in 507 rows"):
        peak_memory(source, dataclasses.replace(RAW, context_tokens=600), ids_file, 4)
    nowhere = dataclasses.replace(source, reader=str(tmp_path / "nothing"))
    with pytest.raises(CannotRunError, match="its process failed: .*cannot be loaded"):
        peak_memory(nowhere, RAW, ids_file, 4)


def test_a_killed_process_says_so(
    source: ModelSource, ids_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nkill -9 $$\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(CannotRunError, match="killed by signal 9"):
        peak_memory(source, RAW, ids_file, 4)
