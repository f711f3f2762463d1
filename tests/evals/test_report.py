"""A report shows every record, in one file."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from extensible_embedding.errors import InputError
from extensible_embedding.evals import files
from extensible_embedding.evals.cost_figures import with_quality
from extensible_embedding.evals.figures import answers_figure, perplexity_figure, recovery_figure
from extensible_embedding.evals.files import told_apart
from extensible_embedding.evals.records import (
    CostRecord,
    LmRecord,
    QaRecord,
    read_records,
    write_records,
)
from extensible_embedding.evals.report import read_results, write_report


def lm(domain: str, method: str, k: int, **changed: Any) -> LmRecord:
    values: dict[str, Any] = {
        "context_tokens": 1024, "window": None, "num_targets": 4, "loss_nats": 3.0,
        "loss_low": 2.9, "loss_high": 3.1, "perplexity": 20.0, "recovery": 0.4,
        "recovery_low": 0.3, "recovery_high": 0.5, "versus_truncate": None, "versus_low": None,
        "versus_high": None, "target_loss_nats": [3.0] * 4,
    }  # fmt: skip
    return LmRecord(domain=domain, method=method, k=k, **{**values, **changed})


def qa(task: str, part: str, method: str, score: float | None) -> QaRecord:
    return QaRecord(
        task=task, version=1, part=part, method=method, k=0, window=None, scorer="contains",
        num_examples=3, score=score, low=None, high=None, mean_rows=100.0,
        note="" if score is not None else "<b>no room</b>",
    )  # fmt: skip


def cost(method: str, mode: str, k: int, tokens: int, **changed: Any) -> CostRecord:
    values: dict[str, Any] = {
        "k_read": k, "window": None, "new_tokens": 4, "num_repeats": 3, "rows": tokens // k,
        "ttft_s": 2.0 / k, "ttft_low": 1.9 / k, "ttft_high": 2.1 / k, "make_s": 0.5, "read_s": 1.0,
        "load_s": None, "context_tokens_per_s": 100.0, "new_tokens_per_s": 9.0, "speedup": 1.0 * k,
        "speedup_low": 0.9 * k, "speedup_high": 1.1 * k, "flops": 10**9, "flop_bound": 2.0,
        "layer_bound": None, "cache_bytes": 10**6, "cache_saving": 1.0 * k, "peak_bytes": 10**8,
        "ttft_samples_s": [2.0 / k] * 3,
    }  # fmt: skip
    return CostRecord(method=method, mode=mode, k=k, context_tokens=tokens, **{**values, **changed})


def costs() -> list[CostRecord]:
    nothing = dict.fromkeys(
        ("k_read", "rows", "ttft_s", "ttft_low", "ttft_high", "make_s", "read_s", "flops",
         "context_tokens_per_s", "new_tokens_per_s", "speedup", "speedup_low", "speedup_high",
         "flop_bound", "cache_bytes", "cache_saving", "peak_bytes")
    )  # fmt: skip
    cannot = cost(
        "raw", "online", 1, 4096, note="too long", num_repeats=0, ttft_samples_s=[], **nothing
    )
    rows = [
        cost("extensible", mode, 4, tokens)
        for mode in ("online", "offline")
        for tokens in (1024, 4096)
    ]
    return [cost("raw", "online", 1, 1024), cannot, *rows]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    recovery = [lm(domain, "extensible", k) for domain in ("books", "mean") for k in (2, 4, 8)]
    windows = {"window": 512, "recovery": None, "versus_truncate": -0.02}
    equal = [
        lm("books", method, 1, context_tokens=length, **windows)
        for method in ("truncate", "extensible")
        for length in (1024, 4096)
    ]
    write_records([*recovery, *equal], tmp_path / "lm.json", configuration={"seed": 7})
    parts = [
        f"{length} characters, depth {depth}" for length in (4000, 16000) for depth in (0.0, 1.0)
    ]
    needle = [qa("needle", part, "extensible", 0.5) for part in [*parts, "all"]]
    write_records([*needle, qa("squad2", "all", "raw", None)], tmp_path / "qa.json")
    return tmp_path


def test_one_page_with_every_figure_and_record(results: Path) -> None:
    page = write_report(results).read_text()
    assert page.count("<svg") == 4
    assert "src=" not in page
    assert page.count("<tr>") == 2 + 10 + 6
    assert "&lt;b&gt;no room&lt;/b&gt;" in page
    assert "&#34;seed&#34;: 7" in page
    figures = {"recovery-1024", "perplexity-512", "needle-depth", "answers"}
    for ending in ("png", "svg"):
        assert {path.stem for path in results.glob(f"*.{ending}")} == figures
    tables = (results / "tables.md").read_text()
    assert len(re.findall(r"^\| ", tables, flags=re.MULTILINE)) == 4 + 10 + 6


def test_json_lines_are_read_as_well(results: Path) -> None:
    before = write_report(results).read_text()
    tables = (results / "tables.md").read_text()
    report = read_records(results / "lm.json")
    lines = [{"run": {"configuration": {"seed": 7}}}, *report["records"]]
    (results / "lm.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (results / "lm.json").unlink()
    page = write_report(results).read_text()
    assert page.count("<svg") == before.count("<svg")
    assert (results / "tables.md").read_text() == tables


def test_joined_documents_are_told_in_the_table(tmp_path: Path) -> None:
    write_records([lm("books", "raw", 1, concatenated=True)], tmp_path / "lm.json")
    write_report(tmp_path)
    assert "| books, joined |" in (tmp_path / "tables.md").read_text()


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no .json or .jsonl file"):
        write_report(tmp_path)
    (tmp_path / "other.json").write_text(json.dumps({"a": 1}))
    with pytest.raises(InputError, match="other.json' is none"):
        write_report(tmp_path)


def test_records_of_another_version_are_refused_in_a_sentence(results: Path) -> None:
    report = json.loads((results / "lm.json").read_text())
    del report["records"][0]["recovery_low"]
    (results / "lm.json").write_text(json.dumps(report))
    with pytest.raises(InputError, match=r"one in lm.json, qa.json has no 'recovery_low'; measure"):
        write_report(results)


def test_cost_has_its_figures_and_its_table(results: Path) -> None:
    write_records(costs(), results / "cost.json")
    page = write_report(results).read_text()
    figures = {path.stem for path in results.glob("*.svg")}
    assert figures >= {"cost-time", "cost-memory", "quality-cost-1024-all"}
    assert page.count("<svg") == 4 + 3
    tables = (results / "tables.md").read_text()
    assert "| raw | online | 1 | 4,096 |" in tables
    assert "too long |" in tables


def test_equal_windows_have_figures_of_their_own(tmp_path: Path) -> None:
    windowed = [cost("truncate", "online", 1, tokens, window=512) for tokens in (1024, 4096)]
    lm_rows = [lm("books", "truncate", 1, context_tokens=4096, window=512, recovery=None)]
    write_records([*windowed, *costs()], tmp_path / "cost.json")
    write_records(lm_rows, tmp_path / "lm.json")
    write_report(tmp_path)
    assert {path.stem for path in tmp_path.glob("*.svg")} == {
        "cost-time", "cost-memory", "cost-time-512", "cost-memory-512", "perplexity-512",
        "quality-cost-4096-512",
    }  # fmt: skip


def test_quality_joins_cost_of_the_same_method_k_length_and_window() -> None:
    quality = [vars(lm("books", "extensible", k)) for k in (2, 4)]
    joined = with_quality(quality, [vars(each) for each in costs()])
    assert [(row["k"], row["mode"]) for row in joined] == [(4, "online"), (4, "offline")]
    assert all(row["ttft_s"] == 0.5 and row["recovery"] == 0.4 for row in joined)


def test_lines_of_different_methods_and_scale_factors_are_kept_apart() -> None:
    rows = [
        dataclasses.asdict(lm("books", method, k)) for method in ("extensible", "mean-pool")
        for k in (2, 4)
    ]  # fmt: skip
    lines = recovery_figure(rows).axes[0].get_lines()
    shown = {line.get_label(): len(line.get_xdata()) for line in lines}
    assert shown["books, extensible"] == shown["books, mean-pool"] == 2
    lines = perplexity_figure([{**row, "window": 512} for row in rows]).axes[0].get_lines()
    assert [line.get_label() for line in lines] == [
        f"{method} k={k}" for method in ("extensible", "mean-pool") for k in (2, 4)
    ]


def test_bars_of_different_windows_are_kept_apart() -> None:
    rows = [
        {**dataclasses.asdict(qa("squad2", "all", "truncate", 0.5)), "window": window}
        for window in (512, 1024)
    ]
    labels = answers_figure(rows).axes[0].get_legend_handles_labels()[1]
    assert labels == ["truncate in 512", "truncate in 1,024"]


def write(folder: Path, name: str, embedder: str, records: list[Any]) -> None:
    configuration = {"reader": "a", "embedder": embedder}
    write_records(records, folder / name, configuration=configuration)


def labels_of(figure: Any) -> list[str]:
    return figure.axes[0].get_legend_handles_labels()[1]


@pytest.mark.parametrize(
    ("embedder", "k"), [("two", 16), ("one", 4)], ids=["other models", "the same record again"]
)
def test_files_that_must_not_be_one_line_are_told_apart(
    tmp_path: Path, embedder: str, k: int
) -> None:
    write(tmp_path, "a.json", "one", [lm("books", "extensible", 4)])
    write(tmp_path, "b.jsonl", embedder, [lm("books", "extensible", k)])
    write_report(tmp_path)
    tables = (tmp_path / "tables.md").read_text()
    assert "| a.json | books |" in tables
    assert "| b.jsonl | books |" in tables
    reports = read_results(tmp_path)
    rows = told_apart(reports, "domain", "variant", files.LM)
    wanted = [f"books, extensible ({name})" for name in ("a.json", "b.jsonl")]
    assert labels_of(recovery_figure(rows)) == wanted
    windowed = [{**row, "window": 512} for row in rows]
    assert labels_of(perplexity_figure(windowed)) == [
        f"extensible ({name})" for name in ("a.json", "b.jsonl")
    ]


def test_files_that_belong_together_are_one_line(tmp_path: Path) -> None:
    write(tmp_path, "a.json", "one", [lm("books", "extensible", 4)])
    write(tmp_path, "b.json", "one", [lm("books", "extensible", 16)])
    write_report(tmp_path)
    assert "a.json" not in (tmp_path / "tables.md").read_text()
    rows = told_apart(read_results(tmp_path), "domain", "variant", files.LM)
    assert labels_of(recovery_figure(rows)) == ["books"]


def test_quality_is_not_joined_with_the_cost_of_other_models(tmp_path: Path) -> None:
    write(tmp_path, "lm.json", "one", [lm("books", "extensible", 4)])
    write(tmp_path, "cost.json", "two", costs())
    write_report(tmp_path)
    assert not list(tmp_path.glob("quality-cost*"))


def test_other_records_have_tables_too(tmp_path: Path) -> None:
    kept = dict.fromkeys(("own_recovery", "own_low", "own_high", "recovery", "low", "high"), 0.5)
    check = {
        "reader": "fine-tune", "own_reader": "base", "kinship": {"relation": "derivative"},
        "verdict": "keep", "kept": [
            {"domain": "books", "k": 4, "num_targets": 6, **kept, "share": 1.0,
             "share_low": 0.9, "share_high": 1.1}
        ],
    }  # fmt: skip
    speed = {
        "way": "a|b\nc",
        "k": 4,
        "compiled": True,
        "predicted_tokens_per_s": 91.9,
        "versus_dense": None,
    }
    for name, record in (("check.json", check), ("speed.json", speed)):
        (tmp_path / name).write_text(json.dumps({"configuration": {}, "records": [record]}))
    write_report(tmp_path)
    tables = (tmp_path / "tables.md").read_text()
    assert "| fine-tune | base | derivative | keep | books | 4 | 6 |" in tables
    assert "1.000 (0.900 to 1.100)" in tables
    assert "## speed.json" in tables
    assert "| a\\|b c | 4 | yes | 91.90 | - |" in tables


def test_a_method_has_one_colour_and_one_entry_in_all_panels() -> None:
    rows = [
        {**dataclasses.asdict(lm(domain, method, 1)), "window": 512}
        for domain, methods in (("books", "ab"), ("code", "bc")) for method in methods
    ]  # fmt: skip
    figure = perplexity_figure(rows)
    colors = [
        {line.get_label(): line.get_color() for line in axes.get_lines()} for axes in figure.axes
    ]
    assert colors[0]["b"] == colors[1]["b"]
    assert len({*colors[0].values(), *colors[1].values()}) == 3
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "c"]
    low, high = (figure.axes[0].dataLim.y0, figure.axes[0].dataLim.y1)
    assert low == pytest.approx(math.exp(2.9))
    assert high == pytest.approx(math.exp(3.1))


def test_more_methods_than_colours_are_told_apart() -> None:
    methods = [f"m{number:02}" for number in range(13)]
    rows = [{**dataclasses.asdict(lm("books", each, 1)), "window": 512} for each in methods]
    lines = perplexity_figure(rows).axes[0].get_lines()
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 13
    bars = [dataclasses.asdict(qa("squad2", "all", each, 0.5)) for each in methods]
    bars = [{**row, "low": 0.4, "high": 0.6} for row in bars]
    axes = answers_figure(bars).axes[0]
    assert len(axes.collections) == 13
    shown = axes.patches
    assert len({(bar.get_facecolor(), bar.get_hatch()) for bar in shown}) == 13


def test_a_method_without_a_score_in_the_first_task_is_in_the_legend() -> None:
    rows = [qa("a", "all", "x", 0.5), qa("b", "all", "x", 0.5), qa("b", "all", "y", 0.5)]
    assert labels_of(answers_figure(list(map(dataclasses.asdict, rows)))) == ["x", "y"]
