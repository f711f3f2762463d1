"""Records of cost -> figures, and of cost with quality.

In: records of language modelling and of cost, as JSON objects. Out: matplotlib figures: time and
memory against the context's length, quality against time. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from .panels import Row, line_of, of_file, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TIME = ("ttft_s", "ttft_low", "ttft_high")
_WITHOUT_INTERVAL = ("peak_bytes",) * 3


def cost_figures(lm: Sequence[Row], cost: Sequence[Row]) -> Iterator[tuple[str, str, Figure]]:
    """(name, caption, figure) of everything that can be drawn."""
    windows = sorted({row["window"] for row in cost if row["window"]})
    for window in [None, *windows]:
        rows = [row for row in cost if row["window"] in (window, None)]
        if window is None or any(row["window"] for row in rows):
            yield from _against_length(rows, window)
    joined = with_quality(lm, cost)
    for length, window in sorted({_place(row) for row in joined}):
        rows = [row for row in joined if _place(row) == (length, window)]
        measure = "Perplexity" if window else "Recovery"
        caption = f"{measure} against time to first token, {length:,} context tokens" + (
            f" in {window:,} rows." if window else "."
        )
        yield f"quality-cost-{length}-{window or 'all'}", caption, quality_figure(rows)


def _against_length(rows: Sequence[Row], window: int | None) -> Iterator[tuple[str, str, Figure]]:
    ending = f"-{window}" if window else ""
    where = f" in {window:,} rows" if window else ""
    timed = [row for row in rows if row["ttft_s"] is not None]
    if timed:
        caption = f"Time to the first new token{where}, by length of the context."
        figure = length_figure(timed, _TIME, "seconds to first token", 1.0)
        yield f"cost-time{ending}", caption, figure
    weighed = [row for row in rows if row["peak_bytes"] is not None]
    if weighed:
        caption = f"Peak memory beside the models{where}, by length of the context."
        figure = length_figure(weighed, _WITHOUT_INTERVAL, "MB", 1e6)
        yield f"cost-memory{ending}", caption, figure


def length_figure(
    rows: Sequence[Row], names: tuple[str, str, str], label: str, unit: float
) -> Figure:
    """A number against context length, a line for each method, mode and k; both axes by powers."""
    figure, (axes,) = panels(1, width=7.0)
    for name in dict.fromkeys(_label(row) for row in rows):
        mine = sorted((r for r in rows if _label(r) == name), key=lambda r: r["context_tokens"])
        scaled = [{**row, **{key: row[key] and row[key] / unit for key in names}} for row in mine]
        line_of(axes, scaled, "context_tokens", names, name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set(xlabel="context tokens", ylabel=label)
    figure.legend(loc="outside right upper", fontsize=7)
    return figure


def with_quality(lm: Sequence[Row], cost: Sequence[Row]) -> list[Row]:
    """Records of language modelling with the cost of the same method, k, length and window.

    Both are of the same models: with others a method takes another time.
    """
    costs: dict[tuple[object, ...], list[Row]] = {}
    for row in cost:
        if row["ttft_s"] is not None:
            costs.setdefault(_key(row), []).append(row)
    return [
        {
            **row,
            **{name: each[name] for name in ("mode", "ttft_s", "rows", "peak_bytes")},
            "file": row.get("file") or each.get("file"),
        }
        for row in lm
        if (row["perplexity"] if row["window"] else row["recovery"]) is not None
        for each in costs.get(_key(row), [])
    ]


def quality_figure(rows: Sequence[Row]) -> Figure:
    """Perplexity (in a window) or recovery against time: a panel for each domain."""
    domains = list(dict.fromkeys(row["domain"] for row in rows))
    figure, parts = panels(len(domains))
    measure = "perplexity" if rows[0]["window"] else "recovery"
    for axes, domain in zip(parts, domains, strict=True):
        for row in (row for row in rows if row["domain"] == domain):
            axes.plot(row["ttft_s"], row[measure], marker="o")
            axes.annotate(_label(row), (row["ttft_s"], row[measure]), fontsize=6)
        axes.set_xscale("log")
        axes.set(title=domain, xlabel="seconds to first token", ylabel=measure)
    return figure


def _key(row: Row) -> tuple[object, ...]:
    return row["method"], row["k"], row["context_tokens"], row["window"], row.get("models")


def _place(row: Row) -> tuple[int, int]:
    return row["context_tokens"], row["window"] or 0


def _label(row: Row) -> str:
    if row["k"] == 1 and row["mode"] == "online":
        return str(row["method"]) + of_file(row)
    return f"{row['method']} {row['mode']} k={row['k']}" + of_file(row)
