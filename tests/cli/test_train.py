"""`extensible train`: a run, and a run that goes on."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from extensible_embedding import ExtensibleEmbedder, Reader

from .conftest import Run, refused


def config_file(tmp_path: Path, reader_folder: Path, **settings: Any) -> Path:
    (tmp_path / "train.txt").write_text("All work and no play makes a dull text. " * 40)
    values = {
        "output_dir": str(tmp_path / "run"),
        "data": [str(tmp_path / "train.txt")],
        "cache_dir": str(tmp_path / "tokens"),
        "reader": str(reader_folder),
        "num_layers": 2,
        "reading_chunk_tokens": 16,
        "instance_tokens": [64],
        "chunk_tokens": [16],
        "scale_factors": [2, 4],
        "max_steps": 2,
        "save_steps": 1,
        "logging_steps": 1,
        "bf16": False,
    }
    file = tmp_path / "train.yaml"
    file.write_text(yaml.safe_dump(values | settings))
    return file


def test_train_and_go_on(
    run: Run, tiny_reader_folder: Path, tiny_reader: Reader, tmp_path: Path
) -> None:
    config = config_file(tmp_path, tiny_reader_folder)
    result = run("train", "--config", config, "--json", models=False)
    assert result.exit_code == 0, result.output
    first = json.loads(result.stdout)
    measured = {"folder", "steps", "tokens", "answer_tokens", "loss", "seconds", "tokens_per_s"}
    assert set(first) == measured
    assert (first["steps"], first["tokens"]) == (2, 2 * 2 * 48)
    assert all(first[name] > 0 for name in ("loss", "seconds", "tokens_per_s"))
    assert "step 1/2, loss" in result.stderr
    config = config_file(tmp_path, tiny_reader_folder, max_steps=3)
    result = run("train", "--config", config, models=False)
    assert result.exit_code == 0, result.output
    assert "Going on from step 2." in result.stderr
    embedder = ExtensibleEmbedder.from_pretrained(first["folder"], tiny_reader)
    assert embedder.training_record["steps"] == 3
    result = run("train", "--config", config, "--json", models=False)
    assert "Already at max_steps=3; raise it to train on." in result.stderr
    again = json.loads(result.stdout)
    assert (again["steps"], again["tokens"]) == (3, 3 * 2 * 48)
    assert again["loss"] > 0
    assert again["tokens_per_s"] is None


def test_a_short_run_shows_its_last_step(
    run: Run, tiny_reader_folder: Path, tmp_path: Path
) -> None:
    config = config_file(tmp_path, tiny_reader_folder, logging_steps=100)
    result = run("train", "--config", config, models=False)
    assert "step 2/2, loss" in result.stderr


@pytest.mark.parametrize(
    ("settings", "code", "words"),
    [
        ({"learning_rat": 1.0}, 2, "`learning_rat`"),
        ({"logging_steps": 0}, 2, "`logging_steps` is a whole number, 1 or more"),
        ({"data": ["none.txt"], "reader": "none"}, 2, "'none.txt' is none; check `data`"),
        ({"output_dir": "train.yaml"}, 2, "'train.yaml' is a file"),
    ],
)
def test_train_configuration_errors(
    run: Run,
    tiny_reader_folder: Path,
    tmp_path: Path,
    settings: dict[str, Any],
    code: int,
    words: str,
) -> None:
    config = config_file(tmp_path, tiny_reader_folder, **settings)
    refused(run("train", "--config", config, models=False), code, words)


def test_a_missing_configuration(run: Run) -> None:
    refused(run("train", "--config", "none.yaml", models=False), 2, "none.yaml")


def test_a_damaged_checkpoint(run: Run, tiny_reader_folder: Path, tmp_path: Path) -> None:
    config = config_file(tmp_path, tiny_reader_folder)
    assert run("train", "--config", config, models=False).exit_code == 0
    (tmp_path / "run" / "checkpoint-2" / "optimizer.pt").write_bytes(b"half")
    config = config_file(tmp_path, tiny_reader_folder, max_steps=3)
    refused(run("train", "--config", config, models=False), 4, "checkpoint-2' is damaged")


def test_an_interrupt_before_training(
    run: Run, tiny_reader_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("extensible_embedding.train.trainer.tokenize_file", press)
    result = run("train", "--config", config_file(tmp_path, tiny_reader_folder), models=False)
    assert result.exit_code == 130
    words = "Stopped before the first step; there is no checkpoint yet (save_steps is 1), so the"
    assert words in result.stderr


@pytest.mark.slow
def test_a_real_interrupt(tiny_reader_folder: Path, tmp_path: Path) -> None:
    """Ctrl-C between two checkpoints of the real program."""
    config = config_file(tmp_path, tiny_reader_folder, max_steps=1_000_000, save_steps=3)
    process = subprocess.Popen(
        [sys.executable, "-m", "extensible_embedding", "train", "--config", str(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    with process:
        next(line for line in process.stderr if line.startswith("step 7/"))
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert output == ""
    assert "Traceback" not in errors
    found = re.search(
        r"Stopped at step ([\d,]+); checkpoint ([\d,]+) is kept in (.*); run the", errors
    )
    assert found, errors
    step, kept = (int(found[group].replace(",", "")) for group in (1, 2))
    assert step - 3 <= kept <= step
    assert (Path(found[3]) / f"checkpoint-{kept}" / "trainer_state.json").is_file()
