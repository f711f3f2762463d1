"""The table and the figure of ablations, from records that are written here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from extensible_embedding.bench.table import AblationRecord, markdown, table
from extensible_embedding.evals.records import write_records
from extensible_embedding.evals.report import write_report


def record(variant: str, k: int, recovery: float | None, **changed: Any) -> AblationRecord:
    values: dict[str, Any] = {
        "group": "" if variant == "baseline" else "layers",
        "overrides": {},
        "domain": "mean",
        "context_tokens": 1024,
        "num_targets": 24,
        "training_tokens": 200_064,
        "training_steps": 112,
        "tokens_per_s": 201.4,
        "loss_nats": 3.0,
        "recovery_low": None if recovery is None else recovery - 0.05,
        "recovery_high": None if recovery is None else recovery + 0.05,
        "versus_baseline": None if recovery is None else recovery - 0.3,
        "versus_low": None if recovery is None else recovery - 0.32,
        "versus_high": None if recovery is None else recovery - 0.28,
    }
    return AblationRecord(variant=variant, k=k, recovery=recovery, **{**values, **changed})


SAME = {"versus_baseline": 0.0, "versus_low": 0.0, "versus_high": 0.0}
RECORDS = [
    record("baseline", 4, 0.3, domain="books", **SAME),
    *(record("baseline", k, 0.3, **SAME) for k in (4, 16)),
    record("layers-4", 4, 0.25),
    record("layers-4", 16, None, tokens_per_s=None),
]


def test_a_line_for_each_variant_with_figures_of_each_k() -> None:
    names, rows = table(RECORDS)
    assert names[5:] == ["recovery, k=4", "versus baseline", "recovery, k=16", "versus baseline"]
    assert rows == [
        ["-", "baseline", "200,064", "112", "201", *["0.300 (0.250 to 0.350)", "-"] * 2],
        [
            "layers", "layers-4", "200,064", "112", "201",
            "0.250 (0.200 to 0.300)", "-0.050 (-0.070 to -0.030)", "-", "-",
        ],
    ]  # fmt: skip


def test_markdown_holds_the_same_cells() -> None:
    _, rows = table(RECORDS)
    assert markdown(RECORDS).splitlines()[-1] == "| " + " | ".join(rows[-1]) + " |"


def test_nothing_yet_is_an_empty_table() -> None:
    assert table([])[1] == []


def test_the_report_draws_them(tmp_path: Path) -> None:
    write_records(RECORDS, tmp_path / "ablations.json", configuration={"seed": 0})
    page = write_report(tmp_path).read_text()
    assert page.count("<svg") == 1
    assert (tmp_path / "ablations.png").is_file()
    assert "0.250 (0.200 to 0.300)" in page
    assert "| layers | layers-4 | mean | 4 |" in (tmp_path / "tables.md").read_text()
