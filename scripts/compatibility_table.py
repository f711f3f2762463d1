"""Fills docs/compatibility.md with what `extensible check` found: one row for each results file.

    python scripts/compatibility_table.py docs/results/compatibility

The files must have been measured alike: the same embedder, texts and amounts, by the same commit.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from release import fill

from extensible_embedding.evals.markdown import markdown_table

PAGE = "docs/compatibility.md"

Report = Mapping[str, Any]

_ALIKE: dict[str, Callable[[Report], object]] = {
    "configuration": lambda report: report["configuration"],
    "commit": lambda report: str(report["git_commit"]).partition("-")[0],
    "versions": lambda report: report["versions"],
    "embedder": lambda report: report["records"][0]["embedder_fingerprint"],
}


def main() -> None:
    """Reads, compares and fills in."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    paths = sorted(parser.parse_args().folder.glob("*.json"))
    if not paths:
        sys.exit(
            "There is no .json file of `extensible check` in that folder; check readers first."
        )
    reports = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}
    if differing := differences(list(reports.values())):
        sys.exit(f"The files differ in {', '.join(differing)}; check all readers again, alike.")
    fill(PAGE, block(reports))


def differences(reports: Sequence[Report]) -> list[str]:
    """What the reports should have in common, but have not."""
    return [
        name
        for name, part in _ALIKE.items()
        if any(part(each) != part(reports[0]) for each in reports)
    ]


def block(reports: Mapping[str, Report]) -> str:
    """The table, and how it was measured."""
    first = next(iter(reports.values()))
    settings, facts = first["configuration"], first["records"][0]
    factors = settings["scale_factors"]
    head = ["derivative", "is", *(f"kept at k={k}" for k in factors), "raw loss", "verdict"]
    rows = [row(name, report["records"][0], factors) for name, report in reports.items()]
    table = markdown_table(head, rows)
    commit, _, changed = str(first["git_commit"]).partition("-")
    commit = commit[:12] + (" with changes" if changed else "")
    return f"""\
Embedder: {settings["embedder"]} (fingerprint {facts["embedder_fingerprint"]}), on its own reader
{facts["own_reader"]} and on each derivative; of several domains the mean, bootstrap 95% interval in
brackets. Raw loss: nats per token after raw context, on the own reader and on the derivative.

{table}

`{command(settings)}`, {first["date"][:10]}, commit {commit}, {first["hardware"]["cpu"]},
{first["hardware"]["num_threads"]} threads.
"""


def row(name: str, found: Report, factors: Sequence[int]) -> list[str]:
    """Cells of one derivative."""
    deciding = {each["k"]: each for each in found["kept"]}  # of several domains the mean comes last
    return [
        name,
        found["kinship"]["relation"],
        *(share(deciding.get(k)) for k in factors),
        f"{raw_loss(found['own_records'])} to {raw_loss(found['records'])}",
        found["verdict"] + ("" if found["certain"] else ", not certain"),
    ]


def share(kept: Report | None) -> str:
    """A share with its interval, as far as there is one."""
    if kept is None or kept["share"] is None:
        return "-"
    if kept["share_low"] is None:
        return f"{kept['share']:.2f}"
    return f"{kept['share']:.2f} ({kept['share_low']:.2f} to {kept['share_high']:.2f})"


def raw_loss(records: Sequence[Report]) -> str:
    """Loss after raw context, of the mean where there are several domains."""
    found = [each["loss_nats"] for each in records if each["method"] == "raw"]
    return f"{found[-1]:.3f}" if found else "-"


def command(settings: Report) -> str:
    """What was run for each row."""
    return (
        f"extensible check READER --data {' '.join(settings['data'])} --k "
        f"{','.join(map(str, settings['scale_factors']))} --context-tokens "
        f"{settings['context_tokens']} --target-tokens {settings['target_tokens']} --num-targets "
        f"{settings['num_targets']} --seed {settings['seed']}"
    )


if __name__ == "__main__":
    main()
