"""`extensible compress`: what it prints, leaves on disk and refuses."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from extensible_embedding import Context
from extensible_embedding.cli import console

from .conftest import Run, refused


def test_compress_writes_a_context(run: Run, book: Path, tmp_path: Path) -> None:
    result = run("compress", book, "--out", tmp_path / "out", "--k", "4")
    assert result.exit_code == 0, result.output
    context = Context.load(tmp_path / "out")
    assert (context.k, context.title) == (4, "book")
    assert f"{context.num_tokens:,} tokens in {context.num_rows:,} rows at k=4" in result.stdout


def test_compress_json(run: Run, book: Path, tmp_path: Path) -> None:
    result = run("compress", book, "--out", tmp_path / "out", "--k", "4", "--json")
    (record,) = json.loads(result.stdout)["contexts"]
    context = Context.load(tmp_path / "out")
    assert record["num_rows"] == context.num_rows
    assert record["num_tokens"] == context.num_tokens
    assert record["folder"] == str(tmp_path / "out")
    assert {"source", "title", "k", "seconds", "tokens_per_s"} <= set(record)


def test_compress_auto_leaves_room(run: Run, book: Path, tmp_path: Path) -> None:
    book.write_text(book.read_text() * 3)
    assert run("compress", book, "--out", tmp_path / "out").exit_code == 0
    context = Context.load(tmp_path / "out")
    assert context.k == 8  # at 7, every chunk of 16 tokens would take 3 rows, 300 in all
    assert context.num_rows <= 256 < context.rows_at(context.k - 1)


def test_compress_several_files_with_clashing_names(run: Run, book: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    twin = tmp_path / "other" / "book.md"
    twin.write_text("The other book is about something else.")
    result = run("compress", book, twin, "--out", tmp_path / "out", "--k", "2")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["book", "book-2"]
    assert Context.load(tmp_path / "out" / "book-2").num_tokens == len(twin.read_text())


def test_compress_replaces_a_saved_context(run: Run, saved: Path, book: Path) -> None:
    assert run("compress", book, "--out", saved, "--k", "8").exit_code == 0
    assert Context.load(saved).k == 8


def test_compress_leaves_other_folders_alone(run: Run, book: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    refused(run("compress", book, "--out", tmp_path / "mine"), 2, "something else", "--out")
    refused(run("compress", book, "--out", book), 2, "something else")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep me"


def test_compress_several_into_a_saved_context(run: Run, saved: Path, book: Path) -> None:
    refused(run("compress", book, book, "--out", saved), 2, "is a saved context itself")


def test_interrupted_compress_leaves_nothing(
    run: Run, book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object, **settings: object) -> None:
        raise KeyboardInterrupt

    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(console.Progress, "update", interrupt)
    result = run("compress", book, "--out", tmp_path / "out", "--k", "4")
    assert result.exit_code == 130
    assert "Interrupted; nothing half-written was left." in result.stderr
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("k", ["0", "-1", "2.5", "abc", ""])
@pytest.mark.parametrize("command", ["compress", "ask"])
def test_unusable_k(run: Run, book: Path, command: str, k: str) -> None:
    rest = ["--out", "out"] if command == "compress" else ["-q", "Who?"]
    refused(run(command, book, "--k", k, *rest), 2, "scale factor", k)


def test_k_larger_than_a_chunk_or_the_context(run: Run, book: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("Few.")
    refused(run("compress", book, "--out", "out", "--k", "17"), 2, "at most 16", "k is 17")
    refused(
        run("compress", short, "--out", "out", "--k", "8"),
        2,
        "short.txt' has 4 tokens",
        "--k is at most",
    )
    assert not Path("out").exists()


def unreadable(tmp_path: Path, kind: str) -> Path:
    file = tmp_path / f"{kind}.txt"
    if kind == "binary":
        file.write_bytes(bytes(range(256)))
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "blank":
        file.write_text(" \n")
    return file


@pytest.mark.parametrize("kind", ["missing", "binary", "empty", "blank"])
@pytest.mark.parametrize("command", ["compress", "ask", "chat"])
def test_unreadable_file(run: Run, tmp_path: Path, command: str, kind: str) -> None:
    rest = {"compress": ["--out", "out"], "ask": ["-q", "Who?"], "chat": []}[command]
    refused(run(command, unreadable(tmp_path, kind), *rest), 2, f"{kind}.txt")
    assert not Path("out").exists()


@pytest.mark.usefixtures("no_reader")
def test_compress_refuses_before_it_loads(
    run: Run, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(run("compress", book, "--out", "out", "--k", "1"), 2, "--k is 1", "--k 2")
    below = book / "below" / "out"
    refused(run("compress", book, "--out", below), 2, "--out", "book.txt' is a file")
    monkeypatch.setattr("os.access", lambda path, mode: mode == os.R_OK)
    refused(run("compress", book, "--out", "out"), 6, "--out", "permissions")


def test_compress_checks_every_text_first(run: Run, book: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Few.")
    result = run("compress", book, tmp_path / "short.txt", "--out", "out", "--k", "8")
    refused(result, 2, "short.txt")
    assert result.stdout == ""
    assert not Path("out").exists()


def test_a_hidden_file_is_found_again(run: Run, book: Path, tmp_path: Path) -> None:
    hidden = tmp_path / ".notes.txt"
    hidden.write_text("Some notes.")
    assert run("compress", hidden, book, "--out", "out", "--k", "4").exit_code == 0
    result = run("ask", "out", "-q", "Who?", "--k", "8", "--max-new-tokens", "2", "--json")
    assert json.loads(result.stdout)["num_context_tokens"] == len("Some notes.") + len(
        book.read_text()
    )
