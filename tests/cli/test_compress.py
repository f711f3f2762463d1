"""`extensible compress`: what it prints, leaves on disk and refuses."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from extensible_embedding import ContextStore, ExtensibleEmbedder, StoredContext
from extensible_embedding.cli import console, stores
from extensible_embedding.cli.compress import name_of
from extensible_embedding.store.names import check_name
from extensible_embedding.store.segment import ROW_TYPES

from .conftest import Run, plain, refused


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def kept(out: Path, name: str = "book") -> StoredContext:
    return ContextStore(out).open(name)


def test_compress_keeps_a_context(run: Run, book: Path, out: Path) -> None:
    result = run("compress", "book.txt", "--out", "out")
    assert result.exit_code == 0, result.output
    stored = kept(out)
    assert (stored.settings.k, stored.settings.row_type) == (4, "bfloat16")
    assert (stored.title, stored.metadata) == ("book", {"source": "book.txt"})
    assert stored.text() == book.read_text()
    assert f"{stored.num_tokens:,} tokens in {stored.num_rows:,} rows at k=4" in result.stdout
    assert result.stdout.startswith("book.txt -> out:book: ")


def test_how_it_is_kept(run: Run, book: Path, out: Path) -> None:
    options = ("--k", "2", "--row-type", "int8", "--name", "A novel")
    assert run("compress", book, "--out", out, *options).exit_code == 0
    stored = kept(out, "A novel")
    assert (stored.settings.k, stored.settings.row_type) == (2, "int8")


def test_a_title_and_metadata(run: Run, book: Path, out: Path) -> None:
    given = ("--title", " A \n novel", "--metadata", "year=1817", "--metadata", "motto=a = b")
    for _ in range(2):
        result = run("compress", "book.txt", "--out", "out", *given)
        assert result.exit_code == 0, result.output
    assert "nothing was computed" in result.stdout
    stored = kept(out)
    assert stored.title == "A novel"
    assert stored.metadata == {"source": "book.txt", "year": "1817", "motto": "a = b"}
    shown = plain(run("store", "show", "out", "book", models=False).stdout)
    assert "title A novel" in shown
    assert "year 1817, motto a = b" in shown
    facts = json.loads(run("store", "show", "out", "book", "--json", models=False).stdout)
    assert (facts["title"], facts["metadata"]["year"]) == ("A novel", "1817")
    assert run("compress", "book.txt", "--out", "out").exit_code == 0  # and is left as it is
    assert kept(out).title == "A novel"


def test_another_title_of_a_kept_text_needs_replace_and_computes_nothing(
    run: Run, book: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("compress", book, "--out", out).exit_code == 0
    monkeypatch.setattr(ExtensibleEmbedder, "compress", lambda *a, **b: pytest.fail("computed"))
    for given in (("--title", "Emma"), ("--metadata", "year=1815")):
        result = run("compress", book, "--out", out, *given)
        refused(result, 2, "one title and metadata", "out:book'", "--replace")
    both = ("--title", "Emma", "--metadata", "year=1815", "--replace")
    assert run("compress", book, "--out", out, *both).exit_code == 0
    assert (kept(out).title, kept(out).metadata["year"]) == ("Emma", "1815")


@pytest.mark.usefixtures("no_reader")
def test_unusable_titles_and_metadata(run: Run, book: Path, out: Path) -> None:
    compress = ("compress", book, "--out", out)
    refused(run(*compress, book, "--title", "Emma"), 2, "--title", "2 files", "one by one")
    refused(run(*compress, "--title", " "), 2, "--title is a text", "' '", "leave it out")
    for word in ("year", "=1817"):
        refused(run(*compress, "--metadata", word), 2, "KEY=VALUE", repr(word), "year=1817")
    twice = ("--metadata", "year=1", "--metadata", "year=2")
    refused(run(*compress, *twice), 2, "each key once", "'1' and '2'", "give one")
    assert not out.exists()


def test_metadata_are_of_each_file(run: Run, book: Path, tmp_path: Path, out: Path) -> None:
    (tmp_path / "other.txt").write_text("The other book is about something else.")
    result = run("compress", book, "other.txt", "--out", out, "--metadata", "shelf=3")
    assert result.exit_code == 0, result.output
    assert [each.metadata["shelf"] for each in ContextStore(out)] == ["3", "3"]


def test_compress_json(run: Run, book: Path, out: Path) -> None:
    record = json.loads(run("compress", book, "--out", out, "--json").stdout)
    (found,) = record["contexts"]
    stored = kept(out)
    assert record["store"] == str(out)
    assert found["num_rows"] == stored.num_rows
    assert found["num_tokens"] == stored.num_tokens
    assert (found["name"], found["context"], found["computed"]) == ("book", f"{out}:book", True)
    assert {"source", "title", "k", "row_type", "seconds", "tokens_per_s"} <= set(found)


def test_the_same_again_computes_nothing(
    run: Run, book: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("compress", book, "--out", out).exit_code == 0
    monkeypatch.setattr(ExtensibleEmbedder, "compress", lambda *a, **b: pytest.fail("computed"))
    for options in ((), ("--replace",)):
        result = run("compress", book, "--out", out, *options)
        assert result.exit_code == 0, result.output
        assert "kept already, nothing was computed" in result.stdout
    (found,) = json.loads(run("compress", book, "--out", out, "--json").stdout)["contexts"]
    assert (found["computed"], found["tokens_per_s"]) == (False, None)
    result = run("compress", book, "--out", out, "--name", "twin")
    assert result.exit_code == 0, result.output
    assert "its rows were in the store, nothing was computed" in result.stdout
    again = run("compress", book, "--out", out, "--name", "third", "--json")
    (found,) = json.loads(again.stdout)["contexts"]
    assert (found["name"], found["computed"], found["tokens_per_s"]) == ("third", False, None)


def test_a_clash_of_names(
    run: Run, book: Path, out: Path, tiny_embedder: ExtensibleEmbedder, no_reader: None
) -> None:
    ContextStore(out).add("book", "Another text.", tiny_embedder)
    result = run("compress", book, "--out", out)
    refused(result, 2, "out:book' is another", "book.txt'", "--replace", "--name")


def test_a_clash_of_forms(run: Run, book: Path, library: Path, embedder_folder: Path) -> None:
    refused(
        run("compress", book, "--out", library, "--k", "8"),
        2,
        "is kept at k=4 in bfloat16",
        "--replace",
        f"`extensible store reembed {library} book --k 8 --row-type bfloat16`",
    )
    assert kept(library).settings.k == 4
    advice = ("store", "reembed", library, "book", "--k", "8", "--row-type", "bfloat16")
    assert "as it was already" not in run(*advice).stdout
    assert "kept already" in run("compress", book, "--out", library, "--k", "8").stdout
    assert run("compress", book, "--out", library, "--replace").exit_code == 0
    assert run("compress", book, "--out", library, "--k", "8", "--replace").exit_code == 0
    assert kept(library).settings.k == 8


def test_replacing(run: Run, book: Path, library: Path) -> None:
    book.write_text("A new edition.")
    assert run("compress", book, "--out", library, "--replace").exit_code == 0
    assert kept(library).text() == "A new edition."


def test_files_with_equal_names(run: Run, book: Path, tmp_path: Path, out: Path) -> None:
    (tmp_path / "other").mkdir()
    twin = tmp_path / "other" / "Book.md"
    twin.write_text("The other book is about something else.")
    for _ in range(2):
        result = run("compress", book, twin, "--out", out, "--k", "2")
        assert result.exit_code == 0, result.output
        assert [each.name for each in ContextStore(out)] == ["Book-2", "book"]
    assert kept(out, "Book-2").text() == twin.read_text()


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("book.txt", "book"),
        (".notes.txt", "notes"),
        ("a\\b \t c.md", "a-b c"),
        ("\u202eevil\n.txt", "evil"),
        ("....txt", "context"),
        ("\u2764\ufe0f list.txt", "\u2764 list"),
        ("\u3164.txt", "context"),
        ("\udcff.txt", "context"),
        (f"{'long ' * 50}.txt", ("long " * 50)[:192].strip()),
        ("\u65e5" * 80 + ".txt", "\u65e5" * 64),
    ],
)
def test_names_of_files(file: str, name: str) -> None:
    assert name_of(Path(file)) == name
    assert check_name(name) == name


@pytest.mark.skipif(os.name == "nt", reason="names are UTF-16 there")
def test_a_name_that_is_not_utf8_is_shown_and_kept_in_whole_characters(
    run: Run, tmp_path: Path, out: Path
) -> None:
    file = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")
    try:
        Path(file).write_text("A text about nothing. " * 9)
    except OSError:
        pytest.skip("this file system takes whole characters alone")
    result = run("compress", file, "--out", out)
    assert result.exit_code == 0, result.output
    for shown in (
        result.output,
        run("store", "list", out, models=False).output,
        run("store", "list", out, "--json", models=False).output,
    ):
        assert "caf" in shown.encode().decode()
    assert kept(out, "caf").title == "caf\ufffd"


def test_compress_leaves_other_folders_alone(
    run: Run, book: Path, saved: Path, tmp_path: Path, no_reader: None
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    refused(run("compress", book, "--out", tmp_path / "mine"), 2, "something else", "--out")
    refused(run("compress", book, "--out", book), 2, "book.txt' is a file")
    refused(run("compress", book, "--out", saved), 2, "a single saved context", "another folder")
    refused(run("compress", book, "--out", "memory://shelf"), 2, "behind a URL", "local copy")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep me"


def test_an_empty_folder_becomes_a_store(run: Run, book: Path, out: Path) -> None:
    out.mkdir()
    assert run("compress", book, "--out", out).exit_code == 0
    assert kept(out).num_tokens


def test_a_store_at_home(
    run: Run, book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a `~` that no shell has read: one store, whatever the command."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    assert run("compress", book, "--out", "~/lib").exit_code == 0
    assert kept(tmp_path / "home" / "lib").num_tokens
    listed = run("store", "list", "~/lib", models=False)
    assert "book" in listed.stdout, listed.output
    asked = run("ask", "~/lib:book", "-q", "Who?", "--k", "16", "--max-new-tokens", "2")
    assert asked.exit_code == 0, asked.output
    assert not (tmp_path / "~").exists()


def test_ctrl_c_keeps_what_was_finished(
    run: Run, book: Path, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "next.txt").write_text("Another text, which is interrupted.")
    update, seen = console.Progress.update, []

    def interrupt(bar: console.Progress, task: int, **settings: float) -> None:
        seen.append(settings["total"])
        if len(set(seen)) == 2:
            raise KeyboardInterrupt
        update(bar, task, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(console.Progress, "update", interrupt)
    result = run("compress", book, "next.txt", "--out", out)
    assert result.exit_code == 130
    assert "Interrupted; nothing half-written was left." in result.stderr
    assert [each.name for each in ContextStore(out)] == ["book"]
    assert len(list((out / "contexts").iterdir())) == 1


@pytest.mark.parametrize("k", ["0", "-1", "2.5", "abc", ""])
@pytest.mark.parametrize("command", ["compress", "ask"])
def test_unusable_k(run: Run, book: Path, command: str, k: str) -> None:
    rest = ["--out", "out"] if command == "compress" else ["-q", "Who?"]
    refused(run(command, book, "--k", k, *rest), 2, "scale factor", k)


def test_k_larger_than_a_chunk_where_a_form_is_kept(run: Run, book: Path, library: Path) -> None:
    """The advice to make its rows anew at this k would be none."""
    refused(run("compress", book, "--out", library, "--k", "17"), 2, "of 16 tokens", "k is 17")


def test_k_larger_than_a_chunk_or_the_context(run: Run, book: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("Few.")
    refused(run("compress", book, "--out", "out", "--k", "17"), 2, "of 16 tokens", "k is 17")
    assert run("compress", short, "--out", "out", "--k", "8").exit_code == 0
    assert kept(tmp_path / "out", "short").num_rows == 1
    result = run("ask", "out:short", "-q", "Who?", "--k", "16", "--max-new-tokens", "2")
    assert result.exit_code == 0, result.output


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
    refused(run("compress", book, "--out", "out", "--k", "auto"), 2, "is `auto`", "leave it out")
    refused(run("compress", book, "--out", "out", "--row-type", "int4"), 2, "int4")
    two = ("compress", book, book, "--out", "out", "--name", "x")
    refused(run(*two), 2, "--name", "2 files")
    refused(run("compress", book, "--out", "out", "--name", "a/b"), 2, "no path", "'a/b'")
    below = book / "below" / "out"
    refused(run("compress", book, "--out", below), 2, "--out", "book.txt' is a file")
    monkeypatch.setattr("os.access", lambda path, mode: mode == os.R_OK)
    refused(run("compress", book, "--out", "out"), 6, "--out", "permissions")


def test_compress_checks_every_file_first(run: Run, book: Path) -> None:
    result = run("compress", book, "missing.txt", "--out", "out")
    refused(result, 2, "missing.txt")
    assert result.stdout == ""
    assert not Path("out").exists()


def test_types_of_rows_are_those_of_the_store() -> None:
    assert tuple(each.value for each in stores.RowType) == tuple(ROW_TYPES)
