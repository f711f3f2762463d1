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


def panels(count: int, width: float = 4.2, height: float = 3.4) -> tuple[Figure, list[Axes]]:
    """A figure with some panels side by side; no window is ever opened."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * count, height), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])
