"""Kills processes that repair a damaged store: nothing whole is lost, and the next one mends it.

Nobody reads and verifies beside them, for a damaged context is one.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from functools import partial
from pathlib import Path

from extensible_embedding.store.checking import verify
from extensible_embedding.store.mending import repair
from extensible_embedding.store.names import folder_of
from extensible_embedding.store.store import ContextStore

from .changes import Change, Checker, Kept, State, apply
from .children import die_before, ended, forked

REPAIR = Change("repair")
DAMAGES = ("rows lost", "rows changed", "text lost", "text changed")
LONG = Kept(17, 60, 4, "bfloat16")
"""A context whose repair takes a while."""


def damage(folder: Path, name: str, what: str, draw: random.Random) -> None:
    """One file of a context is lost or changed; others that share it keep theirs."""
    manifest = ContextStore(folder).manifest(name)
    segment = draw.choice(manifest.segments)
    kind, done = what.split()
    file = segment.rows_file if kind == "rows" else segment.text_file
    path = folder / folder_of(name) / file
    data = bytearray(path.read_bytes())
    path.unlink()
    if done == "changed":
        data[draw.randrange(len(data))] ^= 1
        path.write_bytes(data)


def others_are_whole(checker: Checker, state: State, damaged: set[str]) -> None:
    """What was not damaged or is mended already is as before; the rest is told as faults."""
    store = ContextStore(checker.folder)
    assert sorted(each.name for each in store.manifests()) == sorted(state)
    faulty = {each.context for each in verify(store)}
    assert faulty <= damaged, (faulty, damaged)
    for name in state.keys() - faulty:
        assert checker.read(store, name) == state[name], name


def mended(checker: Checker, state: State) -> None:
    """The next repair makes all of it again, and nothing else."""
    store = ContextStore(checker.folder, wait_s=1.0)
    assert not repair(store, checker.embedder)
    assert not verify(store)
    store.compact()
    assert checker.state() == state


def kill_repairs(checker: Checker, runs: int, seed: int) -> dict[str, int]:
    """Damages contexts and kills what repairs them at a random moment, again and again."""
    store, draw = ContextStore(checker.folder), random.Random(f"repairs {seed}")
    report = dict.fromkeys(("repairs", "repairs_killed", "repairs_left_faults"), 0)
    for number in range(3):
        change = Change("add", f"long {number}", poem=number, lines=LONG.lines)
        apply(store, change, {}, checker.embedder)
    state, repair_s = checker.state(), 0.0
    for number in range(runs + 1):  # the first one is measured
        damaged = set(draw.sample(sorted(state), 3))
        for name in damaged:
            damage(checker.folder, name, draw.choice(DAMAGES), draw)
        began = time.monotonic()
        process = forked(partial(repair, ContextStore(checker.folder), checker.embedder))
        if number:
            time.sleep(draw.uniform(0, repair_s))
            os.kill(process, signal.SIGKILL)
        killed = ended(process) == -signal.SIGKILL
        repair_s = repair_s or time.monotonic() - began
        report["repairs"] += number > 0
        report["repairs_killed"] += killed
        report["repairs_left_faults"] += bool(verify(store))
        others_are_whole(checker, state, damaged)
        mended(checker, state)
    return report


def kill_each_repair(base: Path, checker: Checker, every: int) -> dict[str, int]:
    """Every kind of damage; repairs die before every `every`-th call that changes the disk."""
    state = Checker(base, checker.embedder).state()
    return {f"repair {what}": _steps(base, checker, state, what, every) for what in DAMAGES}


def _steps(base: Path, checker: Checker, state: State, what: str, every: int) -> int:
    code, step = -signal.SIGKILL, 0
    while code:
        copy = Path(shutil.copytree(base, checker.folder))
        damage(copy, "log", what, random.Random(0))
        code = ended(forked(partial(_killed_before, copy, checker, step)))
        others_are_whole(checker, state, {"log"} if code else set())
        mended(checker, state)
        shutil.rmtree(copy)
        step += every
    return step // every - 1


def _killed_before(folder: Path, checker: Checker, step: int) -> None:
    store = ContextStore(folder)
    die_before(step)
    apply(store, REPAIR, {}, checker.embedder)
