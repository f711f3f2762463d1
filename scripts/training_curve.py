"""Keeps the curve of a training: the trainer's own log -> docs/results/training.json and a figure.

    python scripts/training_curve.py runs/one/checkpoint-2320 runs/two/checkpoint-440 \
        --hours 4.9 --hardware "two CPU cores"

The checkpoints are the last of each stage. The model card takes the hours, the hardware and
the losses from there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any

from extensible_embedding.evals.panels import panels

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "training.json"
FIGURE = ROOT / "docs" / "images" / "training-loss.svg"
PARTS = 8
"""Of each stage, whose mean losses the model card has."""


def main() -> None:
    """Reads the states, writes both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", type=Path, nargs="+", help="the last of each stage")
    parser.add_argument("--hours", type=float, required=True, help="of all stages")
    parser.add_argument("--hardware", required=True)
    options = parser.parse_args()
    stages = [stage_of(folder) for folder in options.checkpoints]
    kept = {"hours": options.hours, "hardware": options.hardware, "stages": stages}
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    draw(stages)


def stage_of(folder: Path) -> dict[str, Any]:
    """Steps of a stage, and (step, loss) as the trainer has logged them."""
    state = json.loads((folder / "trainer_state.json").read_text("utf-8"))
    log = state["log_history"]
    losses = [(each["step"], round(each["loss"], 4)) for each in log if "loss" in each]
    return {"steps": state["global_step"], "losses": losses}


def parts_of(stage: dict[str, Any]) -> list[tuple[int, float]]:
    """(last step, mean loss) of equal parts of a stage; of those in which a loss was logged."""
    ends = [stage["steps"] * part // PARTS for part in range(PARTS + 1)]
    parts = [
        (end, [loss for step, loss in stage["losses"] if start < step <= end])
        for start, end in zip(ends, ends[1:], strict=False)
    ]
    return [(end, fmean(losses)) for end, losses in parts if losses]


def draw(stages: Sequence[dict[str, Any]]) -> None:
    """Loss against steps, of all stages one after the other."""
    figure, (axes,) = panels(1, width=7.0)
    starts = accumulate((stage["steps"] for stage in stages), initial=0)
    for number, (start, stage) in enumerate(zip(starts, stages, strict=False)):
        steps, losses = zip(*stage["losses"], strict=True)
        axes.plot([start + step for step in steps], losses, color=f"C{number}", alpha=0.25)
        ends, means = zip(*parts_of(stage), strict=True)
        places = [start + end - ends[0] / 2 for end in ends]
        axes.plot(places, means, color=f"C{number}", marker="o", label=f"stage {number + 1}")
    axes.set(xlabel="optimizer steps", ylabel="training loss, nats a predicted token")
    axes.legend()
    figure.savefig(FIGURE, metadata={"Date": None})


if __name__ == "__main__":
    main()
