"""Records of several files -> records that tell of which file they are, where that is not clear.

Measurements of two embedders or readers may lie in one folder. One line through both
would be a figure of nothing, so their files are named in figures and tables. Knows nothing of how
anything is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .panels import Row

LM = ("domain", "method", "k", "context_tokens", "window", "concatenated")
QA = ("task", "part", "method", "k", "window", "scorer", "context_tokens")
COST = ("method", "mode", "k", "context_tokens", "window")
ABLATION = ("group", "variant", "domain", "k")


def told_apart(
    reports: Mapping[str, Mapping[str, Any]], kind: str, without: str, place: Sequence[str]
) -> list[Row]:
    """Records of one kind, with their `models` and, where it must be told, their `file`.

    It must be told where files are of different readers or embedders, and where they have a record
    of the same thing.

    Args:
        reports: results by the file's name, as `read_records` gives them.
        kind: a field that records of this kind have.
        without: a field that they do not have.
        place: fields that say what a record is of.
    """
    found = {
        name: [row for row in report["records"] if kind in row and without not in row]
        for name, report in reports.items()
    }
    found = {name: rows for name, rows in found.items() if rows}
    models = {name: models_of(reports[name]) for name in found}
    named = set(found) if len(set(models.values())) > 1 else _overlapping(found, place)
    return [
        {**row, "models": models[name], "file": name if name in named else ""}
        for name, rows in found.items()
        for row in rows
    ]


def models_of(report: Mapping[str, Any]) -> tuple[str, str]:
    """The reader and the embedder of a file, as it was called with them."""
    configuration = report.get("configuration") or {}
    return str(configuration.get("reader")), str(configuration.get("embedder"))


def _overlapping(found: Mapping[str, Sequence[Row]], place: Sequence[str]) -> set[str]:
    """Names of files that have a record of what another one has a record of."""
    holders: dict[tuple[Any, ...], set[str]] = {}
    for name, rows in found.items():
        for row in rows:
            holders.setdefault(tuple(row.get(each) for each in place), set()).add(name)
    return {name for names in holders.values() if len(names) > 1 for name in names}
