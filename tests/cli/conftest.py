"""The command line on a tiny random reader."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import byte_tokenizer, tiny_llama
from typer.testing import CliRunner, Result

from extensible_embedding import ContextStore, ExtensibleEmbedder, Reader
from extensible_embedding.cli import app


@pytest.fixture(autouse=True)
def _quick_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each test in its own folder, with whole lines, without the real models."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")


@pytest.fixture
def embedder_folder(tiny_embedder: ExtensibleEmbedder, tmp_path: Path) -> Path:
    folder = tmp_path / "embedder"
    tiny_embedder.save_pretrained(folder)
    return folder


Run = Callable[..., Result]


@pytest.fixture
def run(tiny_reader_folder: Path, embedder_folder: Path) -> Run:
    """Runs a command that needs models on the tiny ones."""

    def run(*arguments: object, models: bool = True, stdin: str | None = None) -> Result:
        names = ["--reader", tiny_reader_folder, "--embedder", embedder_folder] if models else []
        return CliRunner().invoke(app, [str(part) for part in (*arguments, *names)], input=stdin)

    return run


@pytest.fixture
def book(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "book.txt"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.fixture
def saved(tiny_embedder: ExtensibleEmbedder, book: Path, tmp_path: Path) -> Path:
    """A folder as `Context.save` writes it."""
    context = tiny_embedder.compress(book.read_text(encoding="utf-8"), k=4, title="book")
    context.save(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def library(tiny_embedder: ExtensibleEmbedder, book: Path, tmp_path: Path) -> Path:
    """A store with one context, `book`, at k=4."""
    store = ContextStore(tmp_path / "library")
    store.add("book", book.read_text(encoding="utf-8"), tiny_embedder, title="A book")
    return tmp_path / "library"


@pytest.fixture
def fine_tuned(tmp_path: Path) -> Path:
    """A reader of the same shape with other weights."""
    tiny_llama(seed=5).save_pretrained(tmp_path / "fine-tuned")
    byte_tokenizer().save_pretrained(tmp_path / "fine-tuned")
    return tmp_path / "fine-tuned"


@pytest.fixture
def no_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """For refusals that must not wait for a reader."""

    def load(*arguments: object, **settings: object) -> None:
        raise AssertionError("the reader was loaded")

    monkeypatch.setattr(Reader, "from_pretrained", load)


def plain(text: str) -> str:
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split())


def refused(result: Result, code: int, *words: str) -> None:
    """One sentence on stderr, no traceback, the right exit code."""
    assert result.exit_code == code, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, result.stderr
    assert "Traceback" not in result.output
    for word in words:
        assert word in errors[0]
