"""`extensible train`: a run, and a run that goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from extensible_embedding import ExtensibleEmbedder, Reader

from .conftest import Run, refused


def config_file(tmp_path: Path, reader: Path, **settings: Any) -> Path:
    (tmp_path / "train.txt").write_text("All work and no play makes a dull text. " * 40)
    values = {
        "output_dir": str(tmp_path / "run"),
        "data": [str(tmp_path / "train.txt")],
        "cache_dir": str(tmp_path / "tokens"),
        "reader": str(reader),
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
    assert first["steps"] == 2
    assert first["loss"] > 0
    assert "step 1/2, loss" in result.stderr
    config = config_file(tmp_path, tiny_reader_folder, max_steps=3)
    result = run("train", "--config", config, models=False)
    assert result.exit_code == 0, result.output
    assert "Going on from step 2." in result.stderr
    embedder = ExtensibleEmbedder.from_pretrained(first["folder"], tiny_reader)
    assert embedder.training_record["steps"] == 3


def test_train_configuration_errors(run: Run, tiny_reader_folder: Path, tmp_path: Path) -> None:
    config = config_file(tmp_path, tiny_reader_folder, learning_rat=1.0)
    refused(run("train", "--config", config, models=False), 2, "`learning_rat`", "learning_rate")
    refused(run("train", "--config", "none.yaml", models=False), 2, "none.yaml")
