"""Kills processes that change a store, and looks at what they leave.

    PYTHONPATH=tests python -m store.crash --runs 500

Importing torch takes seconds and changing a store takes milliseconds, so this program imports once
and forks a child for each run: a killed child then costs no more than what it did. The child makes
random changes and writes each into a journal, before it and after it. It is killed at a random
moment: what it has finished must be there, what it was at is there whole or not at all, and another
process, which reads and verifies all contexts all the time, must never see an error, a fault or
half of a context.

Children that repair what was damaged follow, one for each four of these runs, killed as well.

With --steps 1, children also kill themselves before each call that changes the disk, in turn; with
--steps 2 before every other one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

import conftest
import torch

from extensible_embedding import ExtensibleEmbedder, Reader
from extensible_embedding.errors import InputError
from extensible_embedding.store.checking import verify
from extensible_embedding.store.store import ContextStore

from .changes import Change, Checker, Kept, State, after, apply, drawn, prepare, stages
from .children import die_before, ended, forked
from .repairs import kill_each_repair, kill_repairs

CHANGES = 8
"""Within so many changes a run is killed."""


# -- a child's journal ----------------------------------------------------------------------------


def write_down(journal: int, said: object) -> None:
    """A line of the journal, on the disk when this returns."""
    os.write(journal, json.dumps(said).encode() + b"\n")
    os.fsync(journal)


def make_changes(
    folder: Path, state: State, embedder: ExtensibleEmbedder, changes: Iterator[Change], told: int
) -> None:
    """The child: changes a store, with a line of the journal before and after each change.

    Args:
        folder: of the store; the journal is beside it.
        state: of the store.
        embedder: for all contexts.
        changes: may depend on `state`, which is kept current.
        told: where a byte goes whenever a change begins or ends.
    """
    journal = os.open(f"{folder}.journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC)
    store = ContextStore(folder, wait_s=5.0)  # the lock of a killed child went with it
    for change in changes:
        prepare(store, change, embedder)
        write_down(journal, asdict(change))
        os.write(told, b"b")
        apply(store, change, state, embedder)
        write_down(journal, "done")
        os.write(told, b"e")
        now = after(state, change)
        state.clear()
        state.update(now)


def possible(folder: Path, state: State) -> list[State]:
    """States that a store may be in by its journal: the last change may have been committed."""
    states, path = [state], Path(f"{folder}.journal")
    for line in path.read_bytes().split(b"\n")[:-1] if path.exists() else []:
        said = json.loads(line)
        states = states[-1:] if said == "done" else stages(states[-1], Change(**said))
    path.unlink(missing_ok=True)
    return states


@contextmanager
def reading(folder: Path, embedder: ExtensibleEmbedder, report: dict[str, int]) -> Iterator[None]:
    """A process beside that reads all contexts all the time; fails if it saw half of one."""
    stop, counts = os.pipe(), os.pipe()
    process = forked(partial(read_always, folder, embedder, stop, counts[1]))
    os.close(stop[0])
    try:
        yield
    finally:
        os.close(stop[1])
        found = os.read(counts[0], 100)
        ended(process)
        report["read_meanwhile"] = int(found)


def read_always(
    folder: Path, embedder: ExtensibleEmbedder, stop: tuple[int, int], counts: int
) -> None:
    """Until the other end of `stop` is closed."""
    os.close(stop[1])
    os.set_blocking(stop[0], False)
    checker, number = Checker(folder, embedder), 0
    try:
        while True:
            store = ContextStore(folder)
            assert not verify(store)
            for name in [each.name for each in store]:
                try:
                    checker.read(store, name)
                    number += 1
                except InputError as error:
                    if "has no" not in str(error):  # deleted or renamed since it was listed
                        raise
            try:
                if os.read(stop[0], 1) == b"":
                    return
            except BlockingIOError:
                time.sleep(0.005)
    finally:
        os.write(counts, str(number).encode())


# -- random moments -------------------------------------------------------------------------------


def random_changes(state: State, draw: random.Random) -> Iterator[Change]:
    """The changes of a run, without an end."""
    while True:
        yield drawn(state, draw)


class Killer:
    """Knows how long changes take, and kills within one or anywhere in a run."""

    def __init__(self, draw: random.Random) -> None:
        self.draw, self.change_s = draw, 0.05

    def wait(self, told: int, number: int) -> None:
        """Waits until it is time to kill the child of a run; the first run is measured."""
        if number == 0:
            self.await_bytes(told, 2 * CHANGES)
        elif number % 2:
            time.sleep(self.draw.uniform(0, CHANGES * self.change_s))
        else:
            self.await_bytes(told, 2 * self.draw.randrange(CHANGES) + 1)
            time.sleep(self.draw.uniform(0, 1.2 * self.change_s))

    def await_bytes(self, told: int, number: int) -> None:
        """Waits for that many beginnings and ends of changes, and measures their mean time."""
        began = time.monotonic()
        for seen in range(number):
            if not os.read(told, 1):
                return
            if seen % 2:
                passed = time.monotonic() - began
                self.change_s += 0.1 * (passed - self.change_s)
            began = time.monotonic()


def kill_often(folder: Path, embedder: ExtensibleEmbedder, runs: int, seed: int) -> dict[str, int]:
    """Runs on one store, each killed; what one leaves the next goes on with."""
    report = dict.fromkeys(("runs", "killed", "within_a_change", "committed_by_then", "changes"), 0)
    draw, checker, state = random.Random(seed), Checker(folder, embedder), State()
    killer = Killer(draw)
    with reading(folder, embedder, report):
        for number in range(runs):
            states = possible_after_a_run(folder, embedder, state, (seed, number), killer, report)
            state = checker.state()
            assert state in states, f"run {number}: found {state}, but expected one of {states}"
            report["runs"] += 1
            report["within_a_change"] += states[0] != states[-1]
            report["committed_by_then"] += states[0] != states[-1] == state
    for _ in range(2):  # what the last one left is no fault
        faults = verify(ContextStore(folder))
        assert not faults, faults
        ContextStore(folder).compact()
    assert checker.state() == state
    assert report["killed"] == report["runs"]
    return report


def possible_after_a_run(
    folder: Path,
    embedder: ExtensibleEmbedder,
    state: State,
    seed: tuple[int, int],
    killer: Killer,
    report: dict[str, int],
) -> list[State]:
    """Has a child change the store and kills it."""
    told, mine = os.pipe(), dict(state)
    changes = random_changes(mine, random.Random(f"{seed}"))
    process = forked(lambda: make_changes(folder, mine, embedder, changes, told[1]))
    os.close(told[1])
    killer.wait(told[0], seed[1])
    os.kill(process, signal.SIGKILL)
    report["killed"] += ended(process) == -signal.SIGKILL
    os.close(told[0])
    journal = Path(f"{folder}.journal")
    report["changes"] += journal.read_bytes().count(b'"done"') if journal.exists() else 0
    return possible(folder, state)


# -- every step -----------------------------------------------------------------------------------

BASE: State = {
    "log": Kept(3, 9, 4, "bfloat16"),
    "Novel": Kept(5, 4, 8, "int8"),
    "x": Kept(7, 1, 4, "int8"),
}
STEPPED = (
    Change("add", "new", poem=11, lines=6),
    Change("add", "twin", **asdict(BASE["log"])),
    Change("append", "log", poem=3, lines=7),
    Change("append", "x", poem=7, lines=1),
    Change("replace", "log", poem=11, lines=6),
    Change("reembed", "log", k=8, row_type="int8"),
    Change("import", "log", "copy"),
    Change("merge", "one", "two", poem=13, lines=4),
    Change("rename", "log", "tree"),
    Change("rename", "x", "X"),
    Change("delete", "log"),
    Change("compact"),
)


def kill_each_step(folder: Path, embedder: ExtensibleEmbedder, every: int) -> dict[str, int]:
    """Every kind of change, killed before every `every`-th of its calls that change the disk."""
    base = folder / "base"
    for name, kept in BASE.items():
        apply(ContextStore(base), Change("add", name, **asdict(kept)), {}, embedder)
    orphan = base / "contexts" / ("0" * 40)
    orphan.mkdir()
    (orphan / f"{'0' * 64}.txt").write_text("left by a killed change")
    checker = Checker(folder / "copy", embedder)
    counts = {
        f"{change.kind} {change.name}".strip(): steps_of(change, base, checker, every)
        for change in STEPPED
    }
    return {**counts, **kill_each_repair(base, checker, every)}


def steps_of(change: Change, base: Path, checker: Checker, every: int) -> int:
    """How many children were killed, each before another call of a change."""
    code, step, committed = -signal.SIGKILL, 0, False
    while code:
        copy = Path(shutil.copytree(base, checker.folder))
        code = ended(forked(partial(killed_before, copy, change, checker.embedder, step)))
        state, states = checker.state(), stages(BASE, change)
        done = states[-1]
        assert state in (states if code and not committed else [done]), (change, step, state)
        assert not verify(ContextStore(copy)), (change, step)
        committed = state == done != BASE
        next_change_works(checker, state, change)
        shutil.rmtree(copy)
        step += every
    return step // every - 1


def killed_before(folder: Path, change: Change, embedder: ExtensibleEmbedder, step: int) -> None:
    """Makes a change, but does not live to make a call to the disk."""
    store = ContextStore(folder)
    prepare(store, change, embedder)
    die_before(step)
    apply(store, change, BASE, embedder)


def next_change_works(checker: Checker, state: State, killed: Change) -> None:
    """Whatever a killed change left, the next one, of what it changed, succeeds."""
    store = ContextStore(checker.folder, wait_s=1.0)
    name = next(each for each in (killed.name, killed.new_name, *state) if each in state)
    more = Change("append", name, poem=state[name].poem, lines=2)
    apply(store, more, state, checker.embedder)
    state = after(state, more)
    store.compact()
    assert checker.state() == state
    assert not verify(store)


def main() -> None:
    """Kills, and prints what was counted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="kill before each so-many-th call to the disk")
    options = parser.parse_args()
    torch.set_num_threads(1)  # others would not live in a forked child
    reader = Reader(conftest.tiny_llama(), conftest.byte_tokenizer(), name="tiny")
    embedder = conftest.make_embedder(reader, chunk_tokens=32)
    began, found = time.monotonic(), dict[str, object]()
    with tempfile.TemporaryDirectory(prefix="crash-") as folder:
        if options.steps:
            found["steps"] = kill_each_step(Path(folder), embedder, options.steps)
        found.update(kill_often(Path(folder) / "store", embedder, options.runs, options.seed))
        checker = Checker(Path(folder) / "store", embedder)
        found.update(kill_repairs(checker, -(-options.runs // 4), options.seed))
    found["seconds"] = round(time.monotonic() - began, 1)
    sys.stdout.write(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    finally:
        shutil.rmtree(conftest._HOME, ignore_errors=True)
