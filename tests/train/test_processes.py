"""Two processes make the steps that one makes, and one goes on where two were, or they for it."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from extensible_embedding import Reader
from extensible_embedding.train.config import TrainConfig
from extensible_embedding.train.trainer import train

from .conftest import weights

SCRIPT = """
import json, sys
import torch
from torch.distributed.tensor import DTensor
from extensible_embedding import Reader
from extensible_embedding.train.config import TrainConfig
from extensible_embedding.train.processes import end_together, own_device
from extensible_embedding.train.trainer import train
config = TrainConfig(**json.loads(sys.argv[1]))
assert own_device() == torch.device("cpu")
reader = Reader.from_pretrained(config.reader, dtype=torch.float32, device=own_device())
before = {name: weight.clone() for name, weight in reader.model.state_dict().items()}
train(config, reader=reader)
after = reader.model.state_dict()
divided = {name for name, weight in after.items() if isinstance(weight, DTensor)}
assert divided == ({name for name in after if ".layers." in name} if sys.argv[2:] else set())
for name, weight in after.items():
    assert torch.equal(weight.full_tensor() if name in divided else weight, before[name]), name
end_together()
"""
FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
"""What `accelerate launch --use_fsdp --fsdp_version 2` puts into the environment."""


def launch(
    config: TrainConfig, num_processes: int, environment: dict[str, str] | None = None
) -> None:
    """What `accelerate launch` does: a process for each rank, told by its environment.

    The launcher keeps the store open at which they meet. A port that is chosen here and opened
    there would be anybody's in between.
    """
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python"]
    launcher += ["--nproc-per-node", str(num_processes), "--local-addr", "127.0.0.1"]
    command = [sys.executable, "-c", SCRIPT, json.dumps(dataclasses.asdict(config))]
    command += ["divided"] if environment else []
    shared = os.environ | (environment or {})
    shared |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    launcher += ["--log-dir", config.output_dir + "-launcher"]
    started = subprocess.Popen(
        [*launcher, *command], env=shared, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        _, errors = started.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGKILL)  # those that it started, too
        raise
    assert started.returncode == 0, errors


@pytest.mark.slow
def test_two_processes_follow_one(
    config: TrainConfig, reader: Reader, tiny_reader_folder: Path, tmp_path: Path
) -> None:
    config = dataclasses.replace(config, reader=str(tiny_reader_folder), max_steps=6, decay_steps=0)
    one = train(dataclasses.replace(config, gradient_accumulation_steps=4), reader=reader)
    two = dataclasses.replace(config, output_dir=str(tmp_path / "two"))
    launch(dataclasses.replace(two, max_steps=2), 2)
    launch(dataclasses.replace(two, max_steps=4), 2)  # goes on from step 2
    train(dataclasses.replace(two, gradient_accumulation_steps=4), reader=reader)  # one is lost
    assert_same_run(tmp_path / "two" / "embedder", one)


@pytest.mark.slow
def test_two_processes_that_divide_the_model_go_on_for_one_and_one_for_them(
    config: TrainConfig, reader: Reader, tiny_reader_folder: Path, tmp_path: Path
) -> None:
    config = dataclasses.replace(config, reader=str(tiny_reader_folder), max_steps=6, decay_steps=0)
    single = dataclasses.replace(config, gradient_accumulation_steps=4)
    one = train(single, reader=reader)
    divided = str(tmp_path / "divided")
    train(dataclasses.replace(single, output_dir=divided, max_steps=2), reader=reader)
    launch(dataclasses.replace(config, output_dir=divided, max_steps=4), 2, FSDP2)
    train(dataclasses.replace(single, output_dir=divided), reader=reader)
    assert_same_run(Path(divided) / "embedder", one)
    curves = [losses(folder.parent / "checkpoint-6") for folder in (one, Path(divided) / "any")]
    assert len(curves[0]) == 6
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)


def losses(checkpoint: Path) -> list[float]:
    """Of each step up to a checkpoint."""
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return [log["loss"] for log in history if "loss" in log]


def assert_same_run(two: Path, one: Path) -> None:
    """Embedders in two folders are the same up to rounding, their records exactly."""
    found, expected = weights(two), weights(one)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-4, atol=2e-5)
    records = [
        json.loads((folder / "config.json").read_text())["training"] for folder in (one, two)
    ]
    assert records[0] == records[1]
