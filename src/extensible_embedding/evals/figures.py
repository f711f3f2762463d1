"""Records -> figures.

In: the records of evaluations, as JSON objects. Out: matplotlib figures, one for each question that
the records can answer. Knows nothing of files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .cost_figures import cost_figures
from .panels import NUM_COLORS, Row, line_of, of_file, panels, style, ways

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NEEDLE_PART = re.compile(r"([\d,]+) characters, depth ([\d.]+)")


def figures(
    lm: Sequence[Row], qa: Sequence[Row], cost: Sequence[Row] = ()
) -> Iterator[tuple[str, str, Figure]]:
    """(name, caption, figure) of everything that can be drawn."""
    recovery = [r for r in lm if r["window"] is None and r["k"] > 1 and r["recovery"] is not None]
    for length in sorted({row["context_tokens"] for row in recovery}):
        rows = [row for row in recovery if row["context_tokens"] == length]
        caption = f"Share of raw context's benefit that rows keep, {length:,} context tokens."
        yield f"recovery-{length}", caption, recovery_figure(rows)
    windowed = [row for row in lm if row["window"] and row["perplexity"] is not None]
    for window in sorted({row["window"] for row in windowed}):
        rows = [row for row in windowed if row["window"] == window]
        caption = f"Perplexity of what follows, every method in {window:,} rows. Lower is better."
        yield f"perplexity-{window}", caption, perplexity_figure(rows)
    for task in dict.fromkeys(row["task"] for row in qa):
        rows = [row for row in qa if row["task"] == task and row["score"] is not None]
        if any(_NEEDLE_PART.fullmatch(row["part"]) for row in rows):
            caption = f"{task}: share found, by length of the context and depth of the sentence."
            yield f"{task}-depth", caption, needle_figure(rows)
    whole = [row for row in qa if row["part"] == "all" and row["score"] is not None]
    for length in dict.fromkeys(row.get("context_tokens") for row in whole):
        rows = [row for row in whole if row.get("context_tokens") == length]
        caption = "Main score of every task, from 0 to 1"
        if length is None:
            yield "answers", f"{caption}.", answers_figure(rows)
        else:
            caption += f", on contexts of about {length:,} tokens."
            yield f"answers-{length}", caption, answers_figure(rows)
    yield from cost_figures(lm, cost)


def recovery_figure(rows: Sequence[Row]) -> Figure:
    """Recovery against k, a line for each domain and method, with intervals."""
    figure, (axes,) = panels(1, width=6.4)
    names = {id(row): row["method"] + of_file(row) for row in rows}
    methods = list(dict.fromkeys(names.values()))
    for domain, method in dict.fromkeys((row["domain"], names[id(row)]) for row in rows):
        mine = (r for r in rows if (r["domain"], names[id(r)]) == (domain, method))
        line = sorted(mine, key=lambda row: row["k"])
        label = domain if len(methods) == 1 else f"{domain}, {method}"
        look: dict[str, Any] = {"linewidth": 2.5} if domain == "mean" else {}
        if look and method == methods[0]:
            look["color"] = "black"
        line_of(axes, line, "k", ("recovery", "recovery_low", "recovery_high"), label, **look)
    axes.set_xscale("log", base=2)
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set(xlabel="scale factor k (tokens per row)", ylabel="recovery")
    figure.legend(loc="outside right upper", fontsize=7)
    return figure


def perplexity_figure(rows: Sequence[Row]) -> Figure:
    """Perplexity against context length: a panel for each domain, a line for each method and k."""
    names = dict(zip(map(id, rows), ways(rows, ("domain", "context_tokens")), strict=True))
    domains = [d for d in dict.fromkeys(row["domain"] for row in rows) if d != "mean"]
    styles = {name: style(number) for number, name in enumerate(dict.fromkeys(names.values()))}
    figure, parts = panels(len(domains), height=max(3.4, 0.17 * len(styles)))
    drawn: dict[str, Any] = {}
    for axes, domain in zip(parts, domains, strict=True):
        mine = [row for row in rows if row["domain"] == domain]
        for name in dict.fromkeys(names[id(row)] for row in mine):
            line = [_with_perplexities(row) for row in mine if names[id(row)] == name]
            line.sort(key=lambda row: row["context_tokens"])
            line_of(axes, line, "context_tokens", _PERPLEXITY, name, **styles[name])
            drawn.setdefault(name, axes.get_lines()[-1])
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set(title=domain, xlabel="context tokens", ylabel="perplexity")
    figure.legend(drawn.values(), drawn, loc="outside right upper", fontsize=7)
    return figure


_PERPLEXITY = ("perplexity", "low", "high")


def _with_perplexities(row: Row) -> Row:
    """The record with the interval of its perplexity, which that of its loss tells."""
    low, high = row["loss_low"], row["loss_high"]
    if low is None:
        return {**row, "low": None, "high": None}
    return {**row, "low": math.exp(low), "high": math.exp(high)}


def needle_figure(rows: Sequence[Row]) -> Figure:
    """A heat map for each method: length of the context across, depth down."""
    import numpy as np

    names = ways(rows, ("part", "scorer"))
    methods = list(dict.fromkeys(names))
    figure, parts = panels(len(methods))
    found = {
        (name, *_needle_place(row["part"])): row["score"]
        for name, row in zip(names, rows, strict=True)
        if _NEEDLE_PART.fullmatch(row["part"])
    }
    lengths = sorted({length for _, length, _ in found})
    depths = sorted({depth for _, _, depth in found})
    for axes, method in zip(parts, methods, strict=True):
        grid = [[found.get((method, n, d), np.nan) for n in lengths] for d in depths]
        axes.imshow(grid, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
        axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
        axes.set(title=method, xlabel="characters", ylabel="depth")
        for y, line in enumerate(grid):
            for x, value in enumerate(line):
                axes.text(x, y, f"{value:.2f}", ha="center", va="center")
    return figure


def answers_figure(rows: Sequence[Row]) -> Figure:
    """Bars of each task's main score, a colour for each method."""
    main = {row["task"]: row["scorer"] for row in reversed(rows)}
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    names = ways(rows, ("task", "scorer"))
    methods = list(dict.fromkeys(names))
    figure, (axes,) = panels(1, width=4.0 + 1.2 * len(tasks))
    width = 0.8 / len(methods)
    for number, method in enumerate(methods):
        for place, task in enumerate(tasks):
            mine = [
                row
                for name, row in zip(names, rows, strict=True)
                if (row["task"], name, row["scorer"]) == (task, method, main[task])
            ]
            if mine:
                x = place + (number - (len(methods) - 1) / 2) * width
                _bar(axes, mine[0], x, width, number)
        axes.bar(0, 0, width, **_paint(number), label=method)
    labels = [f"{task}\n{main[task]}" for task in tasks]
    axes.set_xticks(range(len(tasks)), labels, fontsize=8)
    axes.set(ylabel="score", ylim=(0, 1))
    figure.legend(loc="outside right upper", fontsize=7)
    return figure


def _bar(axes: Axes, row: Row, x: float, width: float, number: int) -> None:
    """A score with its interval, if it has one."""
    axes.bar(x, row["score"], width, **_paint(number))
    if row["low"] is not None:
        axes.vlines(x, row["low"], row["high"], color="black", linewidth=0.8)


def _paint(number: int) -> dict[str, Any]:
    """Colour of a method's bars; hatched where colours begin again."""
    return {"color": f"C{number}", "hatch": "//" if number >= NUM_COLORS else ""}


def _needle_place(part: str) -> tuple[int, float]:
    found = _NEEDLE_PART.fullmatch(part)
    assert found is not None
    return int(found[1].replace(",", "")), float(found[2])
