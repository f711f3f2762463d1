"""A run goes on only from a whole checkpoint of its own, and leaves no half of one."""

from __future__ import annotations

import dataclasses
import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer, tiny_llama
from transformers import TrainerCallback

from extensible_embedding import ExtensibleEmbedder, Reader
from extensible_embedding.checkpoint import CONFIG
from extensible_embedding.errors import CheckpointError, ConfigError, MismatchError, StorageError
from extensible_embedding.train import checkpoints
from extensible_embedding.train.checkpoints import last_checkpoint
from extensible_embedding.train.config import TrainConfig
from extensible_embedding.train.trainer import train

from .conftest import KillAfter, Killed, Watch, tiny_config


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, text: str) -> TrainConfig:
    """A run of 12 steps that was killed after step 6, so that its checkpoint is 4."""
    config = tiny_config(tmp_path_factory.mktemp("killed"), text)
    with pytest.raises(Killed):
        train(config, reader=Reader(tiny_llama(), byte_tokenizer()), callbacks=[KillAfter(6)])
    return config


@pytest.fixture
def stopped(killed: TrainConfig, tmp_path: Path) -> TrainConfig:
    """A copy of the killed run, to be spoilt."""
    folder = shutil.copytree(killed.output_dir, tmp_path / "stopped")
    return dataclasses.replace(killed, output_dir=str(folder))


def names(config: TrainConfig) -> list[str]:
    return sorted(path.name for path in Path(config.output_dir).glob("checkpoint-*"))


def test_half_a_checkpoint_is_ignored(config: TrainConfig, reader: Reader) -> None:
    with pytest.raises(Killed):
        train(config, reader=reader, callbacks=[KillAfter(9)])
    run = Path(config.output_dir)
    (run / "checkpoint-8" / "trainer_state.json").unlink()
    shutil.copytree(run / "checkpoint-4", run / "checkpoint-10")
    (run / "checkpoint-10" / "trainer_state.json").write_text('{"global_st')
    (run / "checkpoint-99x").mkdir()
    assert last_checkpoint(config.output_dir) == str(run / "checkpoint-4")
    watch = Watch()
    train(config, reader=reader, callbacks=[watch])
    assert sorted(watch.rates) == list(range(4, 12))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 1),
        ("data_weights", [2.0]),
        ("scale_factors", [2]),
        ("instance_tokens", [64]),
        ("chunk_tokens", [8]),
        ("one_stream", True),
        ("batch_size", 2),
        ("gradient_accumulation_steps x number of processes", 1),
        ("num_layers", 1),
        ("reading_chunk_tokens", 8),
        ("down_sampling", "mean"),
        ("residual", False),
        ("final_norm", False),
        ("projection_start", 4.0),
    ],
)
def test_what_must_stay_the_same(
    stopped: TrainConfig, reader: Reader, name: str, value: object
) -> None:
    field = name.partition(" ")[0]
    changed = dataclasses.replace(stopped, **{field: value})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=f"`{name}` was .* another output_dir with init_from"):
        train(changed, reader=reader)


def test_a_run_of_before_projections_had_a_start_goes_on_as_it_began(
    stopped: TrainConfig, reader: Reader
) -> None:
    """Its embedder's configuration does not say where: at 0, or what it started with is in P."""
    checkpoint = last_checkpoint(stopped.output_dir)
    path = Path(str(checkpoint)) / "embedder" / CONFIG
    saved = json.loads(path.read_text())
    del saved["embedder"]["projection_start"]
    path.write_text(json.dumps(saved))
    with pytest.raises(ConfigError, match="`projection_start` was 0.0 .* and is 2.0 now"):
        train(dataclasses.replace(stopped, projection_start=2.0), reader=reader)
    trained = ExtensibleEmbedder.from_pretrained(train(stopped, reader=reader), reader)
    assert trained.config.projection_start == 0.0


def test_where_a_projection_started_is_not_measured_again(
    stopped: TrainConfig, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another dtype or device may round it otherwise."""
    monkeypatch.setattr("extensible_embedding.embedder.measured_start", lambda *_: 99.0)
    trained = ExtensibleEmbedder.from_pretrained(train(stopped, reader=reader), reader)
    assert 0 < trained.config.projection_start < 99


def test_other_data_are_refused(stopped: TrainConfig, reader: Reader, tmp_path: Path) -> None:
    shutil.copy(stopped.data[0], tmp_path / "other.txt")
    changed = dataclasses.replace(stopped, data=[str(tmp_path / "other.txt")])
    with pytest.raises(ConfigError, match="`data` was"):
        train(changed, reader=reader)


def test_other_text_under_the_same_name_is_refused(stopped: TrainConfig, reader: Reader) -> None:
    path = Path(stopped.data[0])
    before = path.read_text()
    path.write_text(before + "More.")
    try:
        with pytest.raises(ConfigError, match="`bytes of data` was .* another output_dir"):
            train(stopped, reader=reader)
    finally:
        path.write_text(before)


def test_steps_of_a_run_have_as_many_batches_on_any_number_of_processes(
    stopped: TrainConfig, reader: Reader
) -> None:
    file = Path(stopped.output_dir) / "checkpoint-4" / checkpoints.SETTINGS
    saved = json.loads(file.read_text())
    batches = saved.pop("gradient_accumulation_steps x number of processes")
    # As an earlier version wrote it.
    old = saved | {"gradient_accumulation_steps": batches, "number of processes": 4}
    file.write_text(json.dumps(old))
    with pytest.raises(ConfigError, match=rf"processes` was {4 * batches} .* and is {batches} now"):
        train(stopped, reader=reader)
    file.write_text(json.dumps(old | {"number of processes": 1}))
    train(stopped, reader=reader)


def test_another_reader_is_refused(stopped: TrainConfig) -> None:
    other = Reader(tiny_llama(seed=5), byte_tokenizer(), name="other")
    with pytest.raises(MismatchError, match="checkpoint-4' was trained with .* but 'other' has"):
        train(stopped, reader=other)


def test_what_may_change(stopped: TrainConfig, reader: Reader) -> None:
    """A checkpoint of an older version has no settings; it goes on as well."""
    (Path(stopped.output_dir) / "checkpoint-4" / checkpoints.SETTINGS).unlink()
    watch = Watch()
    changed = dataclasses.replace(
        stopped, max_steps=9, decay_steps=3, save_steps=3, save_total_limit=5, logging_steps=2
    )
    train(changed, reader=reader, callbacks=[watch])
    assert sorted(watch.rates) == [4, 5, 6, 7, 8]
    assert names(changed) == ["checkpoint-4", "checkpoint-6", "checkpoint-9"]
    assert len(watch.losses()) == 3  # steps 6, 8 and, being the last, 9


def test_rates_and_decay_of_the_configuration_win(stopped: TrainConfig, reader: Reader) -> None:
    seen = []

    class Decay(TrainerCallback):
        def on_step_begin(self, *args: Any, optimizer: Any = None, **kwargs: Any) -> None:
            seen.append([group["weight_decay"] for group in optimizer.param_groups])

    watch = Watch()
    changed = dataclasses.replace(
        stopped,
        learning_rate=5e-4,
        projection_learning_rate=7e-4,
        weight_decay=0.1,
        decay_steps=0,
        warmup_steps=0,
    )
    train(changed, reader=reader, callbacks=[watch, Decay()])
    assert all(rates == [7e-4, 5e-4, 5e-4] for rates in watch.rates.values())
    assert all(decay == [0.1, 0.1, 0.0] for decay in seen)


def test_other_rates_after_the_end_do_nothing(config: TrainConfig, reader: Reader) -> None:
    short = dataclasses.replace(config, max_steps=4)
    folder = train(short, reader=reader)
    before = (folder / "model.safetensors").read_bytes()
    train(dataclasses.replace(short, learning_rate=1e-2), reader=reader)
    assert (folder / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    "name",
    [
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "embedder/model.safetensors",
        "embedder/config.json",
        checkpoints.SETTINGS,
    ],
)
@pytest.mark.parametrize("size", [0, 40])
def test_a_truncated_file_is_named(
    stopped: TrainConfig, reader: Reader, name: str, size: int
) -> None:
    checkpoint = Path(stopped.output_dir) / "checkpoint-4"
    (checkpoint / name).write_bytes((checkpoint / name).read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"checkpoint-4' is damaged \(.*; delete that folder"):
        train(stopped, reader=reader)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt"])
def test_a_missing_file_is_named(stopped: TrainConfig, reader: Reader, name: str) -> None:
    (Path(stopped.output_dir) / "checkpoint-4" / name).unlink()
    with pytest.raises(CheckpointError, match=f"checkpoint-4' is damaged .{name} is missing"):
        train(stopped, reader=reader)


def test_too_little_memory_is_no_damage(tmp_path: Path) -> None:
    for name in ("optimizer.pt", "scheduler.pt"):
        (tmp_path / name).touch()
    with pytest.raises(torch.OutOfMemoryError), checkpoints.damage_named(tmp_path):
        raise torch.OutOfMemoryError("on purpose")


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """Lets the kernel refuse longer files, which looks like a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("share", [0.5, 1.5], ids=["weights", "optimizer"])
def test_a_full_disk_leaves_no_checkpoint(
    stopped: TrainConfig, reader: Reader, share: float
) -> None:
    weights = Path(stopped.output_dir) / "checkpoint-4" / "embedder" / "model.safetensors"
    with (
        largest_file(int(share * weights.stat().st_size)),
        pytest.raises(StorageError, match=r"cannot be written .* free some space"),
    ):
        train(stopped, reader=reader)
    assert names(stopped) == ["checkpoint-4"]
    train(stopped, reader=reader)
    assert names(stopped)[0] == "checkpoint-12"


def test_an_interrupt_while_saving_leaves_no_half(config: TrainConfig, reader: Reader) -> None:
    class Interrupt(TrainerCallback):
        """Pressed while the trainer's state, the last file, is about to be written."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 8:
                state.save_to_json = self.press

        @staticmethod
        def press(*args: Any) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, reader=reader, callbacks=[Interrupt()])
    assert names(config) == ["checkpoint-4"]


def test_only_its_owner_removes_a_half(tmp_path: Path) -> None:
    """Other processes are done while the first one still writes."""
    with checkpoints.whole_checkpoint(tmp_path, owner=False):
        pass
    with pytest.raises(StorageError), checkpoints.whole_checkpoint(tmp_path, owner=False):
        raise OSError("on purpose")
    assert tmp_path.is_dir()
    with pytest.raises(StorageError), checkpoints.whole_checkpoint(tmp_path, owner=True):
        raise OSError("on purpose")
    assert not tmp_path.exists()
