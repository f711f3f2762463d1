"""What all figures are made of: panels, and lines with intervals.

In: records as JSON objects. Out: matplotlib figures without a window. Knows nothing of what they
show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
"""A record as it is in a results file."""


NUM_COLORS = 10
"""Of matplotlib's cycle."""


def of_file(row: Row) -> str:
    """The file of a record, in brackets, where `files` found that it must be told."""
    return f" ({row['file']})" if row.get("file") else ""


def line_of(
    axes: Axes,
    rows: Sequence[Row],
    x: str,
    y: tuple[str, str, str],
    label: str,
    **style: Any,
) -> None:
    """A line with its interval shaded."""
    places, values = [row[x] for row in rows], [row[y[0]] for row in rows]
    (drawn,) = axes.plot(places, values, marker="o", label=label, **style)
    if all(row[y[1]] is not None for row in rows):
        low, high = [row[y[1]] for row in rows], [row[y[2]] for row in rows]
        axes.fill_between(places, low, high, alpha=0.12, color=drawn.get_color())


def style(number: int) -> dict[str, str]:
    """Colour and line of what comes as number `number`: dashes where colours begin again."""
    lines = ("-", "--", ":", "-.")
    return {"color": f"C{number}", "linestyle": lines[number // NUM_COLORS % len(lines)]}


def panels(count: int, width: float = 4.2, height: float = 3.4) -> tuple[Figure, list[Axes]]:
    """A figure with some panels side by side; no window is ever opened."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * count, height), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def ways(rows: Sequence[Row], place: tuple[str, ...]) -> list[str]:
    """A name for the method of each record, with k or window where it is there several times.

    Args:
        rows: the records of a figure.
        place: fields of what a method may have one record for, such as the context's length.
    """

    def several(row: Row, name: str) -> bool:
        def of(row: Row) -> tuple[Any, ...]:
            return row["method"], row.get("file"), *(row[each] for each in place)

        return len({each[name] for each in rows if of(each) == of(row)}) > 1

    crowded = {
        (row["method"], name) for row in rows for name in ("k", "window") if several(row, name)
    }
    return [_way(row, crowded) for row in rows]


def _way(row: Row, crowded: set[tuple[str, str]]) -> str:
    method = str(row["method"])
    k = f" k={row['k'] or 'auto'}" if (method, "k") in crowded else ""
    window = f"{row['window']:,}" if row["window"] else "the reader's own"
    where = f" in {window}" if (method, "window") in crowded else ""
    return method + k + where + of_file(row)
