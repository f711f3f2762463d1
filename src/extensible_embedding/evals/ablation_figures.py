"""Records of ablations -> figures.

In: the records as JSON objects. Out: a matplotlib figure. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from .panels import Row, of_file, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def ablation_figures(rows: Sequence[Row]) -> Iterator[tuple[str, str, Figure]]:
    """(name, caption, figure) of ablations, if there are any."""
    shown = [row for row in rows if row["recovery"] is not None]
    if shown:
        domain = list(dict.fromkeys(row["domain"] for row in shown))[-1]
        shown = [row for row in shown if row["domain"] == domain]
        caption = f"Recovery after equal training, each variant with its interval ({domain})."
        yield "ablations", caption, ablation_figure(shown)


def ablation_figure(rows: Sequence[Row]) -> Figure:
    """A line for each variant, a colour for each k, the baseline's recovery dotted."""
    labels = list(dict.fromkeys(map(_label, rows)))
    figure, (axes,) = panels(1, width=7.0, height=1.4 + 0.32 * len(labels))
    factors = sorted({row["k"] for row in rows})
    for number, k in enumerate(factors):
        mine = {_label(row): row for row in rows if row["k"] == k}
        shift = 0.5 * (number - (len(factors) - 1) / 2) / len(factors)
        for place, label in enumerate(labels):
            if label in mine:
                _interval_mark(axes, mine[label], place + shift, f"C{number}")
                if not label[0]:
                    axes.axvline(mine[label]["recovery"], color=f"C{number}", linestyle=":")
        axes.plot([], [], marker="o", color=f"C{number}", label=f"k={k}")
    names = [f"{group}: {variant}" if group else variant for group, variant in labels]
    axes.set_yticks(range(len(labels)), names)
    axes.invert_yaxis()
    axes.set(xlabel="recovery")
    axes.legend()
    return figure


def _label(row: Row) -> tuple[str, str]:
    """What is compared, and the variant."""
    return row["group"], row["variant"] + of_file(row)


def _interval_mark(axes: Axes, row: Row, y: float, color: str) -> None:
    """A point with its interval, if it has one."""
    axes.plot(row["recovery"], y, marker="o", color=color)
    if row["recovery_low"] is not None:
        axes.hlines(y, row["recovery_low"], row["recovery_high"], color=color)
