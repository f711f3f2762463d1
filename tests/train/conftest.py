"""A tiny run, and callbacks that watch it or break it off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer, tiny_llama
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainerCallback

from extensible_embedding import Reader
from extensible_embedding.train.config import TrainConfig


class Killed(Exception):
    """Stands for a power cut."""


class KillAfter(TrainerCallback):
    """Raises once step `step` is done, before anything that follows it."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise Killed


class Watch(TrainerCallback):
    """Keeps the learning rate in force at each step, and all logs."""

    def __init__(self) -> None:
        self.rates: dict[int, list[float]] = {}
        self.logs: list[dict[str, float]] = []

    def on_step_begin(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any
    ) -> None:
        self.rates[state.global_step] = [group["lr"] for group in optimizer.param_groups]

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.logs.append(dict(logs))

    def losses(self, name: str = "loss") -> list[float]:
        return [log[name] for log in self.logs if name in log]


@pytest.fixture
def reader() -> Reader:
    return Reader(tiny_llama(), byte_tokenizer(), name="tiny")


@pytest.fixture
def config(tmp_path: Path, text: str) -> TrainConfig:
    return tiny_config(tmp_path, text)


def tiny_config(tmp_path: Path, text: str) -> TrainConfig:
    """Twelve steps on a text, kept in the folder."""
    (tmp_path / "data.txt").write_text(text * 4)
    return TrainConfig(
        output_dir=str(tmp_path / "run"),
        cache_dir=str(tmp_path / "cache"),
        data=[str(tmp_path / "data.txt")],
        num_layers=2,
        reading_chunk_tokens=16,
        scale_factors=[2, 4],
        instance_tokens=[48, 64],
        chunk_tokens=[8, 16],
        max_steps=12,
        learning_rate=1e-3,
        projection_learning_rate=3e-3,
        warmup_steps=4,
        decay_steps=4,
        save_steps=4,
        logging_steps=1,
        bf16=False,
    )


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
