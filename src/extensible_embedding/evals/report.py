"""A folder of results -> one report: HTML in a single file, figures, Markdown tables.

In: the .json and .jsonl files that `extensible eval` and `extensible bench` wrote. Out:
`report.html`, `tables.md`, a PNG and an SVG of every figure, in the same folder. Measures nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from ..errors import InputError, StorageError
from . import files
from .ablation_figures import ablation_figures
from .figures import figures
from .files import told_apart
from .markdown import markdown_table
from .panels import Row
from .records import read_records

_LM = ("domain", "method", "k", "context_tokens", "window", "num_targets", "perplexity")
_QA = ("task", "part", "method", "k", "window", "scorer", "num_examples")
_NO_VERSUS = dict.fromkeys(("versus_truncate", "versus_low", "versus_high"))
"""Of records that were made before there was such a comparison."""
_COST = ("method", "mode", "k", "context_tokens", "window", "num_repeats", "rows")
_COST_NUMBERS = (
    "flop_bound",
    "layer_bound",
    "new_tokens_per_s",
    "cache_bytes",
    "cache_saving",
    "peak_bytes",
)
_ABLATION = ("group", "variant", "domain", "k", "training_tokens", "num_targets")
_KNOWN = {"variant", "domain", "task", "ttft_s", "verdict"}
"""Fields that tell what a record is of."""
_NOTHING_KEPT = dict.fromkeys(
    ("domain", "k", "num_targets", "recovery", "low", "high", "own_recovery", "own_low")
    + ("own_high", "share", "share_low", "share_high")
)
"""Of a reader that the embedder cannot be read with at all."""
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Extensible Embedding: evaluation</title>
<style>
body { font: 15px/1.5 sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; font-size: 13px; }
td, th { border-bottom: 1px solid #ccc; padding: 2px 8px; text-align: right; }
figure { margin: 2em 0; } svg { max-width: 100%; height: auto; }
</style></head><body>
<h1>Evaluation</h1>
{% for figure in figures %}<figure>{{ figure.svg | safe }}
<figcaption>{{ figure.caption }}</figcaption></figure>{% endfor %}
{% for table in tables %}<h2>{{ table.title }}</h2>
<table><tr>{% for name in table.names %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in table.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>{% endfor %}
<h2>How it was measured</h2>
{% for file in files %}<h3>{{ file.name }}</h3><pre>{{ file.facts }}</pre>{% endfor %}
</body></html>
"""


def write_report(folder: Path) -> Path:
    """Writes the report of every results file of a folder.

    Returns:
        The HTML file.

    Raises:
        InputError: the folder has no results, or a file is none.
        StorageError: the folder cannot be written.
    """
    from jinja2 import Environment

    reports = read_results(folder)
    ablations = told_apart(reports, "variant", "ttft_s", files.ABLATION)
    lm = told_apart(reports, "domain", "variant", files.LM)
    qa = told_apart(reports, "task", "variant", files.QA)
    cost = told_apart(reports, "ttft_s", "variant", files.COST)
    checks = [row for report in reports.values() for row in report["records"] if "verdict" in row]
    try:
        tables = [
            *map(_with_files, (_lm_table(lm), _qa_table(qa), _cost_table(cost)), (lm, qa, cost)),
            _with_files(_ablation_table(ablations), ablations),
            _check_table(checks),
            *_other_tables(reports),
        ]
        all_figures = [*figures(lm, qa, cost), *ablation_figures(ablations)]
    except KeyError as error:
        raise InputError(
            "Records have the fields that `extensible` of this version writes, but one in "
            f"{', '.join(reports)} has no {error}; measure it again, or move the file elsewhere."
        ) from error
    tables = [table for table in tables if table["rows"]]
    try:
        drawn = [_draw(folder, *each) for each in all_figures]
        page = Environment(autoescape=True).from_string(_PAGE)
        facts = [{"name": name, "facts": _facts(report)} for name, report in reports.items()]
        html = page.render(figures=drawn, tables=tables, files=facts)
        (folder / "tables.md").write_text(_markdown(tables), encoding="utf-8")
        (folder / "report.html").write_text(html, encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"A report is written into the folder of its results, but {str(folder)!r} cannot be "
            f"written ({error}); copy the results to another folder."
        ) from error
    return folder / "report.html"


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Results files of a folder by name.

    Raises:
        InputError: there is none, or one cannot be read.
    """
    paths = sorted(path for ending in ("json", "jsonl") for path in folder.glob(f"*.{ending}"))
    if not paths:
        raise InputError(
            f"A report needs results, but {str(folder)!r} has no .json or .jsonl file; run "
            "`extensible eval` with --json first."
        )
    return {path.name: read_records(path) for path in paths}


def _draw(folder: Path, name: str, caption: str, figure: Any) -> dict[str, str]:
    """Saves a figure as PNG and SVG, and gives what the page needs of it."""
    figure.savefig(folder / f"{name}.png", dpi=150)
    text = StringIO()
    figure.savefig(text, format="svg")
    svg = text.getvalue()
    (folder / f"{name}.svg").write_text(svg, encoding="utf-8")
    return {"svg": svg[svg.index("<svg") :], "caption": caption}


def _lm_table(rows: Sequence[Row]) -> dict[str, Any]:
    names = ["domain", "method", "k", "context", "window", "targets", "perplexity"]
    return {
        "title": "Language modelling",
        "names": [*names, "recovery", "versus truncate", "note"],
        "rows": [
            [
                row["domain"] + (", joined" if row.get("concatenated") else ""),
                *_cells(row, _LM[1:]),
                _interval(row, "recovery", "recovery_low", "recovery_high"),
                _interval(row, "versus_truncate", "versus_low", "versus_high"),
                row["note"],
            ]
            for row in rows
        ],
    }


def _qa_table(rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "title": "Questions",
        "names": [*_QA, "context", "score", "versus truncate", "note"],
        "rows": [
            [
                *_cells(row, _QA),
                _cell(row.get("context_tokens")),
                _interval(row, "score", "low", "high"),
                _interval({**_NO_VERSUS, **row}, *_NO_VERSUS),
                row["note"],
            ]
            for row in rows
        ],
    }


def _cost_table(rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "title": "Cost",
        "names": [*_COST, "s to first token", "speed-up", *_COST_NUMBERS, "note"],
        "rows": [
            [
                *_cells(row, _COST),
                _interval(row, "ttft_s", "ttft_low", "ttft_high"),
                _interval(row, "speedup", "speedup_low", "speedup_high"),
                *_cells(row, _COST_NUMBERS),
                row["note"],
            ]
            for row in rows
        ],
    }


def _ablation_table(rows: Sequence[Row]) -> dict[str, Any]:
    names = ["compared", "variant", "domain", "k", "training tokens", "targets"]
    return {
        "title": "Ablations",
        "names": [*names, "recovery", "recovery minus the baseline's"],
        "rows": [
            [
                *_cells(row, _ABLATION),
                _interval(row, "recovery", "recovery_low", "recovery_high"),
                _interval(row, "versus_baseline", "versus_low", "versus_high"),
            ]
            for row in rows
        ],
    }


def _check_table(rows: Sequence[Row]) -> dict[str, Any]:
    names = ["reader", "embedder's own", "relation", "verdict", "domain", "k", "targets"]
    return {
        "title": "Compatibility",
        "names": [*names, "recovery", "on its own reader", "share kept"],
        "rows": [
            [
                *(row["reader"], row["own_reader"], row["kinship"]["relation"], row["verdict"]),
                *_cells(kept, ("domain", "k", "num_targets")),
                _interval(kept, "recovery", "low", "high"),
                _interval(kept, "own_recovery", "own_low", "own_high"),
                _interval(kept, "share", "share_low", "share_high"),
            ]
            for row in rows
            for kept in row["kept"] or [_NOTHING_KEPT]
        ],
    }


def _other_tables(reports: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each file with records of other kinds, such as training speed: all their numbers."""
    tables = []
    for name, report in reports.items():
        rows = [row for row in report["records"] if not _KNOWN & set(row)]
        fields = [
            field
            for field in dict.fromkeys(field for row in rows for field in row)
            if not any(isinstance(row.get(field), list | dict) for row in rows)
        ]
        cells = [[_cell(row.get(field)) for field in fields] for row in rows]
        tables.append({"title": name, "names": fields, "rows": cells})
    return tables


def _with_files(table: dict[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """The table with the file of each row, where it must be told."""
    if not any(row["file"] for row in rows):
        return table
    lines = [[row["file"] or "-", *cells] for row, cells in zip(rows, table["rows"], strict=True)]
    return {**table, "names": ["file", *table["names"]], "rows": lines}


def _cells(row: Row, names: Iterable[str]) -> list[str]:
    return [_cell(row[name]) for name in names]


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _interval(row: Row, value: str, low: str, high: str) -> str:
    if row[value] is None:
        return "-"
    if row[low] is None:
        return f"{row[value]:.3f}"
    return f"{row[value]:.3f} ({row[low]:.3f} to {row[high]:.3f})"


def _markdown(tables: Sequence[Mapping[str, Any]]) -> str:
    blocks = []
    for table in tables:
        body = markdown_table(table["names"], table["rows"])
        blocks.append(f"## {table['title']}\n\n{body}\n")
    return "\n".join(blocks)


def _facts(report: Mapping[str, Any]) -> str:
    known = {
        name: value for name, value in report.items() if not name.startswith(("rec", "target"))
    }
    return json.dumps(known, indent=2, ensure_ascii=False)
