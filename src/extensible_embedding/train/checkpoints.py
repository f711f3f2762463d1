"""Checkpoints of a run: which one is whole, who may go on from it, how one is written and read.

In: `output_dir`, the run's configuration and its embedder. Out: the folder to go on from, or one
clear refusal. A checkpoint holds an embedder, what transformers' Trainer needs to go on, and the
settings that decide which instances come next. Knows nothing of losses and schedules.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import CONFIG, check_reader
from ..embedder import ExtensibleEmbedder
from ..errors import CheckpointError, ConfigError, StorageError
from ..folders import read_json
from .config import TrainConfig

SETTINGS = "settings.json"
LAST_FILE = "trainer_state.json"
_NEEDED = ("optimizer.pt", "scheduler.pt")
_SHAPING = (
    "seed",
    "data",
    "data_weights",
    "questions",
    "question_share",
    "span_tokens",
    "init_from",
    "scale_factors",
    "instance_tokens",
    "chunk_tokens",
    "one_stream",
    "first_scale_factors",
    "first_steps",
    "sequence_places",
    "batch_size",
)
_START = "projection_start"
_ACCUMULATION, _NUM_PROCESSES = "gradient_accumulation_steps", "number of processes"
_STEP_BATCHES = f"{_ACCUMULATION} x {_NUM_PROCESSES}"


def shaping_settings(config: TrainConfig, num_processes: int) -> dict[str, Any]:
    """The settings that decide which tokens a step predicts, and what the record begins with.

    Processes are among them by the batches that they make together: a run may go on with fewer.
    Files are told by their sizes too: other text under an old name is drawn from in other places.
    """
    batches = config.gradient_accumulation_steps * num_processes
    sizes = {
        f"bytes of {name}": [Path(path).stat().st_size for path in getattr(config, name) or []]
        for name in ("data", "questions")
    }
    return {name: getattr(config, name) for name in _SHAPING} | {_STEP_BATCHES: batches} | sizes


def last_checkpoint(output_dir: str) -> str | None:
    """The newest checkpoint folder that is whole, or None; a killed run may leave half of one."""
    found = {int(path.name.rpartition("-")[2]): path for path in _checkpoints(output_dir)}
    whole = [step for step, path in found.items() if _is_whole(path)]
    return str(found[max(whole)]) if whole else None


def check_goes_on(
    checkpoint: str | Path, embedder: ExtensibleEmbedder, settings: dict[str, Any]
) -> None:
    """Refuses to go on with another reader, architecture or order of instances.

    Args:
        checkpoint: a whole checkpoint folder.
        embedder: what the configuration builds, for the reader in use.
        settings: of the configuration, from `shaping_settings`.

    Raises:
        MismatchError: the checkpoint was made with another reader.
        ConfigError: a setting that must stay the same has changed.
        CheckpointError: the checkpoint is damaged.
    """
    checkpoint = Path(checkpoint)
    with damage_named(checkpoint):
        saved = read_json(checkpoint / "embedder" / CONFIG, "an embedder")
        made_for = dict(saved["reader"])
        architecture = {_START: _start_of(saved), **saved["embedder"]}
        before = {}
        if (checkpoint / SETTINGS).is_file():  # older checkpoints have none
            before = _as_now(read_json(checkpoint / SETTINGS, "the settings of a run"))
    check_reader(made_for, embedder.reader, derivative=False, name=str(checkpoint))
    _check_same(_as_settings(architecture), _as_settings(asdict(embedder.config)), checkpoint)
    _check_same(before, settings, checkpoint)


def projection_start_of(checkpoint: str | Path) -> float:
    """Where the projection of a run started; raises CheckpointError if that cannot be read."""
    with damage_named(Path(checkpoint)):
        return _start_of(read_json(Path(checkpoint) / "embedder" / CONFIG, "an embedder"))


def _start_of(saved: dict[str, Any]) -> float:
    """Of a saved configuration; earlier versions have it in the weights, if at all."""
    return float(saved["embedder"].get(_START, 0.0))


def _as_now(saved: dict[str, Any]) -> dict[str, Any]:
    """Settings as this version names them.

    Earlier ones kept both factors of a step's batches, and read no spans.
    """
    saved.setdefault("span_tokens", [0])
    if _NUM_PROCESSES in saved:
        saved[_STEP_BATCHES] = saved.pop(_NUM_PROCESSES) * saved.pop(_ACCUMULATION)
    return saved


def _as_settings(architecture: dict[str, Any]) -> dict[str, Any]:
    """Fields of an embedder under the names that a configuration has for them."""
    names = {"chunk_tokens": "reading_chunk_tokens"}
    return {names.get(name, name): value for name, value in architecture.items()}


def _check_same(before: dict[str, Any], now: dict[str, Any], checkpoint: Path) -> None:
    for name, value in now.items():
        if name in before and before[name] != value:
            raise ConfigError(
                f"A run goes on with the settings that it began with, but `{name}` was "
                f"{before[name]!r} in {str(checkpoint)!r} and is {value!r} now; set it back, or "
                f"give another output_dir with init_from: {checkpoint / 'embedder'}."
            )


@contextmanager
def damage_named(checkpoint: Path) -> Iterator[None]:
    """Turns whatever reading a checkpoint raises into one sentence that names its folder."""
    try:
        missing = [name for name in _NEEDED if not (checkpoint / name).is_file()]
        if missing:
            raise CheckpointError(f"{missing[0]} is missing")
        yield
    except torch.OutOfMemoryError:
        raise
    except _DAMAGE as error:
        raise CheckpointError(
            f"A run goes on from its newest checkpoint, but {str(checkpoint)!r} is damaged "
            f"({_first_line(error)}); delete that folder and run the same command again."
        ) from error


_DAMAGE = (
    CheckpointError,
    pickle.UnpicklingError,
    EOFError,
    OSError,
    RuntimeError,
    KeyError,
    TypeError,
    ValueError,
)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")


@contextmanager
def whole_checkpoint(folder: Path, *, owner: bool) -> Iterator[None]:
    """Removes the checkpoint folder that is being written if that fails.

    Args:
        folder: of the checkpoint.
        owner: whether this process may remove it: of several that write to it, only the first,
            since the others are done before it is whole.

    Raises:
        StorageError: the disk is full or not writable.
    """
    try:
        yield
    except BaseException as error:
        if owner and folder.is_dir() and not _is_whole(folder):
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError) or _is_torch_on_full_disk(error):
            raise StorageError(
                f"A checkpoint needs a writable disk with room, but {str(folder)!r} cannot be "
                f"written ({_first_line(error)}); free some space and run the same command to go "
                "on."
            ) from error
        raise


def _is_torch_on_full_disk(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and any(part in str(error) for part in _FULL_DISK)


_FULL_DISK = ("inline_container", "PytorchStreamWriter", "iostream")
"""What torch.save, which knows no OSError, says of a disk that refuses."""


def _checkpoints(output_dir: str) -> list[Path]:
    folders = Path(output_dir).glob("checkpoint-*")
    return [path for path in folders if path.name.removeprefix("checkpoint-").isdecimal()]


def _is_whole(checkpoint: Path) -> bool:
    """Whether its last file was written to the end."""
    try:
        return isinstance(json.loads((checkpoint / LAST_FILE).read_text("utf-8")), dict)
    except (OSError, ValueError):
        return False
