"""`extensible demo`: the figures and the tables."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest

from extensible_embedding import Reader, released

from .conftest import Run


@pytest.fixture
def _small_demo(
    monkeypatch: pytest.MonkeyPatch, tiny_reader: Reader, book: Path, text: str
) -> None:
    book.write_text(text * 3, encoding="utf-8")
    demo = import_module("extensible_embedding.cli.demo")
    monkeypatch.setattr(demo, "load_reader", lambda name, models: tiny_reader)
    monkeypatch.setattr(released, "book_path", lambda: book)
    monkeypatch.setattr(demo, "MAX_NEW_TOKENS", 4)


@pytest.mark.usefixtures("_small_demo")
def test_demo(run: Run, embedder_folder: Path, text: str) -> None:
    result = run("demo", "--k", "auto", "--embedder", embedder_folder, "--json", models=False)
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    raw, ours = shown["cost"]["raw_text"], shown["cost"]["extensible"]
    assert raw["window_used"] > 1 > ours["window_used"]
    assert raw["num_tokens"] == ours["num_tokens"] == len(text * 3)
    assert raw["cache_bytes"] == raw["prompt_rows"] * 2 * 4 * 2 * 8 * 4  # layers, heads, width
    pages = {page["context"]: page for page in shown["last_page"]}
    assert [page["num_rows"] for page in pages.values()][:2] == [1, 256]
    compressed = pages["the whole book before it, compressed"]
    ended = pages["the same in as many rows, its end raw"]
    assert compressed["num_tokens"] == ended["num_tokens"] == len(text * 3) - 256
    assert compressed["num_rows"] == ended["num_rows"]


@pytest.mark.usefixtures("_small_demo")
def test_demo_tables(run: Run, embedder_folder: Path) -> None:
    result = run("demo", "--k", "auto", "--embedder", embedder_folder, models=False)
    assert result.exit_code == 0, result.output
    for words in ("does not fit (needs", "window used", "perplexity", "The book says: Pulteney"):
        assert words in result.stdout
