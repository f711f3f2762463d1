"""Two processes make the steps that one makes, and one goes on where two were."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
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
from extensible_embedding import Reader
from extensible_embedding.train.config import TrainConfig
from extensible_embedding.train.trainer import own_device, train
config = TrainConfig(**json.loads(sys.argv[1]))
assert own_device() == torch.device("cpu")
reader = Reader.from_pretrained(config.reader, dtype=torch.float32, device=own_device())
train(config, reader=reader)
"""


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def launch(config: TrainConfig, num_processes: int) -> None:
    """What `accelerate launch` does: a process for each rank, told by its environment."""
    command = [sys.executable, "-c", SCRIPT, json.dumps(dataclasses.asdict(config))]
    shared = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(num_processes),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    started = [
        subprocess.Popen(
            command,
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(num_processes)
    ]
    try:
        errors = [process.communicate(timeout=300)[1] for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert [process.returncode for process in started] == [0] * num_processes, "\n".join(errors)


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
    found, expected = weights(tmp_path / "two" / "embedder"), weights(one)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-4, atol=2e-5)
    records = [
        json.loads((folder / "config.json").read_text())["training"]
        for folder in (one, tmp_path / "two" / "embedder")
    ]
    assert records[0] == records[1]
