"""A crash at any instant leaves what was committed; `make test-crash` kills many more."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .changes import KINDS, State, after, drawn
from .crash import STEPPED
from .repairs import DAMAGES

RUNS, EVERY = 4, 10

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What the program counted; it fails if a kill cost anything."""
    command = [sys.executable, "-m", "store.crash", "--steps", str(EVERY), "--runs", str(RUNS)]
    folders = (str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", ""))
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    counts: dict[str, Any] = json.loads(done.stdout)
    return counts


def test_a_kill_at_a_random_moment_loses_nothing(found: dict[str, Any]) -> None:
    assert found["killed"] == found["runs"] == RUNS
    assert found["changes"] > 0
    assert found["read_meanwhile"] > 0


def test_a_repair_that_is_killed_loses_nothing(found: dict[str, Any]) -> None:
    assert found["repairs"] == RUNS // 4
    assert found["repairs_killed"] <= found["repairs"]


def test_every_kind_of_change_is_drawn_and_stepped_through() -> None:
    assert {change.kind for change in STEPPED} == set(KINDS)
    draw, state, kinds = random.Random(0), State(), set()
    for _ in range(300):
        change = drawn(state, draw)
        kinds.add(change.kind)
        state = after(state, change)
    assert kinds == set(KINDS)


def test_a_kill_before_any_step_loses_nothing(found: dict[str, Any]) -> None:
    steps = found["steps"]
    assert len(steps) == len(STEPPED) + len(DAMAGES)
    assert min(steps.values()) >= 1
    assert steps["append log"] >= 3
