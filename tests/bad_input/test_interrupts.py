"""Interrupts and kills: nothing half-written is left."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from extensible_embedding import (
    CheckpointError,
    Context,
    ExtensibleEmbedder,
    Reader,
    StorageError,
)
from extensible_embedding import folders as folders_module

from .conftest import IDS, WRITES, Save, break_write, full_disk, press_ctrl_c, refusal, tree


def test_ctrl_c_while_compressing(tiny_embedder: ExtensibleEmbedder) -> None:
    seen = []

    def interrupt(done: int, total: int) -> None:
        seen.append((done, total))
        if len(seen) == 2:
            raise KeyboardInterrupt

    before = tiny_embedder.fingerprint
    with pytest.raises(KeyboardInterrupt):
        tiny_embedder.compress(IDS, k=4, batch_chunks=1, progress=interrupt)
    assert seen == [(16, 40), (32, 40)]
    assert tiny_embedder.fingerprint == before
    assert tiny_embedder.compress(IDS, k=4).num_rows == 10


@pytest.mark.parametrize("write", WRITES)
def test_ctrl_c_while_saving(
    older: Path, save: Save, monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    before = tree(older.parent)
    break_write(monkeypatch, write, press_ctrl_c)
    for folder in (older, older.parent / "new"):
        with pytest.raises(KeyboardInterrupt):
            save(folder)
    assert tree(older.parent) == before


@pytest.mark.parametrize("fault", [full_disk, press_ctrl_c])
@pytest.mark.parametrize("after", [0, 1])
def test_a_fault_between_the_two_renames(
    older: Path,
    save: Save,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[..., None],
    after: int,
) -> None:
    before, rename, done = tree(older.parent), Path.rename, []

    def rename_or_fault(self: Path, target: Path) -> Path:
        """The old folder is away; the fault strikes before (0) or at (1) the second rename."""
        done.append(target)
        if len(done) == 1:
            moved = rename(self, target)
            if after == 0:
                fault()
            return moved
        if len(done) == 2 and after == 1:
            fault()
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", rename_or_fault)
    with pytest.raises((StorageError, KeyboardInterrupt)):
        save(older)
    assert tree(older.parent) == before


@pytest.mark.parametrize("fault", [full_disk, press_ctrl_c])
def test_a_fault_after_the_second_rename(
    older: Path, save: Save, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., None]
) -> None:
    rename, done = Path.rename, []

    def both_are_done(self: Path, target: Path) -> Path:
        moved = rename(self, target)
        done.append(target)
        if len(done) == 2:
            fault()
        return moved

    save(older.parent / "expected")
    expected = tree(older.parent / "expected")
    shutil.rmtree(older.parent / "expected")
    monkeypatch.setattr(Path, "rename", both_are_done)
    with pytest.raises((StorageError, KeyboardInterrupt)):
        save(older)
    assert tree(older) == expected
    assert [folder.name for folder in older.parent.iterdir()] == ["kept"]


@pytest.fixture
def cut_off(saved_context: Path) -> Path:
    """What a process leaves that is killed between the two renames."""
    saved_context.rename(folders_module._previous(saved_context))
    return saved_context


def test_a_kill_between_the_two_renames_is_told_and_mended(
    cut_off: Path, tiny_reader: Reader, context: Context
) -> None:
    for load in (Context.load, lambda f: ExtensibleEmbedder.from_pretrained(f, tiny_reader)):
        message = refusal(CheckpointError, cut_off, lambda load=load: load(cut_off))
        assert f"`mv '{cut_off.parent}/.context.previous' '{cut_off}'`" in message
    subprocess.run(message.split("`")[1], shell=True, check=True)
    assert torch.equal(Context.load(cut_off).rows, context.rows)


def test_the_next_save_puts_back_what_a_kill_left(
    cut_off: Path, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        break_write(patch, "save_file", full_disk)
        refusal(StorageError, cut_off, lambda: context.save(cut_off))
    assert Context.load(cut_off).title == "Old"
    context.save(cut_off)
    assert [folder.name for folder in cut_off.parent.iterdir()] == ["context"]


KILLED = """
import sys, torch
from pathlib import Path
from extensible_embedding import Context
contexts = [
    Context(
        rows=torch.full((20000, 64), float(value)), token_ids=torch.full((20000,), value), k=1,
        chunk_tokens=16, down_sampling="strided", embedder_fingerprint="e", reader_fingerprint="r",
    )
    for value in (1, 2)
]
contexts[0].save(sys.argv[1])
print("ready", flush=True)
while True:
    for context in contexts:
        context.save(sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("delay_s", [0.0, 0.013, 0.031, 0.05])
def test_a_kill_while_saving_leaves_a_whole_context(tmp_path: Path, delay_s: float) -> None:
    folder = tmp_path / "context"
    command = [sys.executable, "-c", KILLED, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay_s)
        process.send_signal(signal.SIGKILL)
    try:
        loaded = Context.load(folder)
    except CheckpointError as error:
        subprocess.run(str(error).split("`")[1], shell=True, check=True)
        loaded = Context.load(folder)
    value = int(loaded.token_ids[0])
    assert value in (1, 2)
    assert bool((loaded.token_ids == value).all() and (loaded.rows == value).all())
