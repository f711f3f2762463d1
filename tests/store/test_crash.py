"""A crash at any instant leaves what was committed; `make test-crash` kills many more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .crash import STEPPED

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


def test_a_kill_before_any_step_loses_nothing(found: dict[str, Any]) -> None:
    steps = found["steps"]
    assert len(steps) == len(STEPPED)
    assert min(steps.values()) >= 1
    assert steps["append log"] >= 3
