"""Figures of ablations -> records, and one table of them.

In: what every variant is worth. Out: text. Measures nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..evals.markdown import markdown_table
from ..evals.records import MEAN


@dataclass(frozen=True, kw_only=True)
class AblationRecord:
    """What one variant is worth in one domain at one k; intervals are bootstrap, 95 percent."""

    group: str
    """What is compared; empty for the baseline."""
    variant: str
    overrides: dict[str, Any]
    """Settings that differ from the baseline."""
    domain: str
    """Of the documents, or "mean": the unweighted mean over domains."""
    k: int
    context_tokens: int
    num_targets: int
    training_tokens: int
    """Predicted in training."""
    training_steps: int
    tokens_per_s: float | None
    """Speed of the training, or of its last part if it was stopped."""
    loss_nats: float | None
    recovery: float | None
    recovery_low: float | None
    recovery_high: float | None
    versus_baseline: float | None
    """Recovery minus the baseline's, on the same targets."""
    versus_low: float | None
    versus_high: float | None


def table(records: Sequence[AblationRecord]) -> tuple[list[str], list[list[str]]]:
    """Names and cells of one table: a line for each variant, recovery and difference for each k.

    Averaged over domains, if there are several.
    """
    domains = dict.fromkeys(record.domain for record in records)
    shown = [record for record in records if record.domain == (list(domains) or [MEAN])[-1]]
    factors = sorted({record.k for record in shown})
    names = ["group", "variant", "tokens", "steps", "tokens/s"]
    names += [name for k in factors for name in (f"recovery, k={k}", "versus baseline")]
    lines: dict[str, list[str]] = {}
    for record in sorted(shown, key=lambda each: each.k):
        lines.setdefault(record.variant, _first_cells(record))
        lines[record.variant] += _figures(record)
    order = dict.fromkeys(record.variant for record in shown)
    return names, [lines[variant] for variant in order]


def _first_cells(record: AblationRecord) -> list[str]:
    speed = "-" if record.tokens_per_s is None else f"{record.tokens_per_s:,.0f}"
    counts = [f"{record.training_tokens:,}", f"{record.training_steps:,}", speed]
    return [record.group or "-", record.variant, *counts]


def _figures(record: AblationRecord) -> list[str]:
    recovery = _interval(record.recovery, record.recovery_low, record.recovery_high, "")
    same = record.versus_baseline == record.versus_low == record.versus_high == 0
    versus = _interval(record.versus_baseline, record.versus_low, record.versus_high, "+")
    return [recovery, "-" if same else versus]


def _interval(value: float | None, low: float | None, high: float | None, sign: str) -> str:
    if value is None:
        return "-"
    shown = f"{value:{sign}.3f}"
    return shown if low is None else f"{shown} ({low:{sign}.3f} to {high:{sign}.3f})"


def markdown(records: Sequence[AblationRecord]) -> str:
    """The table in Markdown."""
    return markdown_table(*table(records)) + "\n"
