"""Names and cells -> a table in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def markdown_table(names: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """A line for the names, one below it, one for each row; no line end at the end."""
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value: object) -> str:
    """On one line, and with no bar that would end it."""
    return " ".join(str(value).split()).replace("|", "\\|")
