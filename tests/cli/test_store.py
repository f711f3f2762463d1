"""`extensible store`: what is listed, grown, moved, checked and made again, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import make_embedder

from extensible_embedding import ContextStore, ExtensibleEmbedder, Reader
from extensible_embedding.cli import console
from extensible_embedding.store.names import folder_of

from .conftest import Run, plain, refused


@pytest.fixture
def others(tiny_reader: Reader, tiny_reader_folder: Path, tmp_path: Path) -> tuple[object, ...]:
    """Options for another embedder of the same reader."""
    other = make_embedder(tiny_reader)
    other.projection.weight.data.add_(0.1)
    other.save_pretrained(tmp_path / "embedder-too")
    return ("--reader", tiny_reader_folder, "--embedder", tmp_path / "embedder-too")


def flip(library: Path, ending: str) -> Path:
    """Flips a bit in the middle of the largest file of a kind."""
    file = max(library.rglob(f"*{ending}"), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    return file


def test_list_and_show(run: Run, library: Path, book: Path) -> None:
    shown = plain(run("store", "list", library, models=False).stdout)
    num_tokens = len(book.read_text())
    num_rows = ContextStore(library)["book"].num_rows
    assert f"book A book {num_tokens} {num_rows} 4 bfloat16 0.0" in shown
    (facts,) = json.loads(run("store", "list", library, "--json", models=False).stdout)["contexts"]
    assert facts["num_tokens"] == num_tokens
    assert facts["file_bytes"] > facts["text_bytes"] == num_tokens
    one = json.loads(run("store", "show", library, "book", "--json", models=False).stdout)
    assert one == facts
    assert "row type bfloat16" in plain(run("store", "show", library, "book", models=False).stdout)
    text = run("store", "show", library, "book", "--text", models=False).stdout
    assert text == book.read_text()
    both = run("store", "show", library, "book", "--text", "--json", models=False).stdout
    assert json.loads(both)["text"] == text


def test_an_empty_store_is_listed(run: Run, library: Path) -> None:
    assert run("store", "delete", library, "book", models=False).exit_code == 0
    assert "holds no context" in run("store", "list", library, models=False).stdout
    listed = run("store", "list", library, "--json", models=False).stdout
    assert json.loads(listed)["contexts"] == []


def test_append_a_file_and_stdin(run: Run, library: Path, book: Path, tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("More. ")
    assert run("store", "append", library, "book", "more.txt").exit_code == 0
    result = run("store", "append", library, "book", "-", "--json", stdin="And\r\nmore.")
    found = json.loads(result.stdout)
    assert (found["name"], found["new_tokens"]) == ("book", len("And\nmore."))
    assert ContextStore(library)["book"].text() == book.read_text() + "More. And\nmore."


def test_append_begins_a_log(run: Run, library: Path) -> None:
    log = ("store", "append", library, "log", "-")
    refused(run(*log, stdin="a line\n"), 2, "has no 'log'", "store list")
    for line in ("one\n", "two\n"):
        assert run(*log, "--new", stdin=line).exit_code == 0
    assert ContextStore(library)["log"].text() == "one\ntwo\n"


def test_what_cannot_be_appended(run: Run, library: Path, others: tuple[object, ...]) -> None:
    append = ("store", "append", library, "book")
    refused(run(*append, "-", stdin=""), 2, "stdin was empty")
    refused(run(*append, "missing.txt"), 2, "missing.txt")
    refused(run(*append, "-", *others, models=False, stdin="x"), 5, "store reembed")


def test_append_of_bytes_that_are_no_text(run: Run, library: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from extensible_embedding.cli import app

    command = ["store", "append", str(library), "book", "-"]
    refused(CliRunner().invoke(app, command, input=b"a\xff"), 2, "UTF-8", "byte 1", "iconv")


def test_delete_and_rename(run: Run, library: Path) -> None:
    renamed = run("store", "rename", library, "book", "novel", models=False)
    assert "library:book is now" in renamed.stdout
    refused(run("store", "rename", library, "book", "x", models=False), 2, "has no 'book'")
    refused(run("store", "delete", library, "novel", "book", models=False), 2, "has no 'book'")
    assert "novel" in ContextStore(library)
    result = run("store", "delete", library, "novel", "novel", "--json", models=False)
    assert json.loads(result.stdout)["deleted"] == ["novel"]
    assert len(ContextStore(library)) == 0


def test_a_damaged_context_can_be_deleted(run: Run, library: Path) -> None:
    flip(library, "manifest.json")
    assert run("store", "verify", library, models=False).exit_code == 4
    refused(run("store", "show", library, "book", models=False), 4, "manifest.json")
    assert run("store", "delete", library, "book", models=False).exit_code == 0
    assert run("store", "verify", library, models=False).exit_code == 0


def test_export_and_import(run: Run, library: Path, book: Path, tmp_path: Path) -> None:
    export = ("store", "export", library, "book", "--out", "book.xctx")
    for _ in range(2):
        assert run(*export, models=False).exit_code == 0
    taken = run("store", "import", "shelf", "book.xctx", "--name", "novel", "--json", models=False)
    assert json.loads(taken.stdout)["context"] == "shelf:novel"
    assert ContextStore("shelf")["novel"].text() == book.read_text()
    again = run("store", "import", "shelf", "book.xctx", "--name", "novel", models=False)
    refused(again, 2, "has 'novel' already", "another name")


def test_export_overwrites_nothing_else(run: Run, library: Path, book: Path) -> None:
    export = ("store", "export", library, "book", "--out")
    for out in (book, library):
        refused(run(*export, out, models=False), 2, "only an earlier export", "another file")
    refused(run(*export, book / "x", models=False), 2, "is a file")
    refused(run("store", "import", "shelf", book, models=False), 4, "no", "export it again")
    refused(run("store", "import", "shelf", "nothing", models=False), 2, "'nothing' is none")


def test_merge(run: Run, library: Path, tiny_embedder: ExtensibleEmbedder) -> None:
    result = run("store", "merge", "shelf", library, models=False)
    assert "1 new, 0 there already" in result.stdout
    again = json.loads(run("store", "merge", "shelf", library, "--json", models=False).stdout)
    assert (again["new"], again["num_there"]) == ([], 1)
    ContextStore("shelf").append("book", "More.", tiny_embedder)
    refused(run("store", "merge", library, "shelf", models=False), 2, "both have 'book'", "rename")
    refused(run("store", "merge", library, "nowhere", models=False), 2, "'nowhere' is none")


def test_verify_and_repair_rows(run: Run, library: Path) -> None:
    assert "all is whole" in run("store", "verify", library, models=False).stdout
    file = flip(library, ".safetensors")
    whole = file.name
    result = run("store", "verify", library, models=False)
    assert result.exit_code == 4
    assert f"book: {whole} has another content than was committed" in result.stdout
    assert "lost: the rows of tokens 0 to" in result.stdout
    assert f"`extensible store repair {library}` may make it again" in result.stdout
    report = json.loads(run("store", "verify", library, "--json", models=False).stdout)
    (fault,) = report["faults"]
    assert (fault["file"], fault["mendable"]) == (whole, True)
    result = run("store", "repair", library)
    assert result.exit_code == 0, result.output
    assert "1 file is made again; all is whole" in result.stdout
    assert run("store", "verify", library, models=False).exit_code == 0
    assert run("store", "repair", library, "--reader", "no/where", models=False).exit_code == 0


def test_what_a_killed_change_left_is_told_and_no_damage(run: Run, library: Path) -> None:
    folder = library / "contexts" / ("0" * 40)
    folder.mkdir()
    (folder / f"{'0' * 64}.txt").write_text("of a context that was never committed")
    for command in ("verify", "repair"):
        result = run("store", command, library, models=command == "repair")
        assert result.exit_code == 0, result.output
        assert "all is whole" in result.stdout
        assert "1 folder holds what a change left" in result.stderr
        assert f"`extensible store compact {library}` removes it" in result.stderr
    report = run("store", "verify", library, "--json", models=False)
    assert json.loads(report.stdout)["left_over"] == ["0" * 40]
    assert run("store", "compact", library, models=False).exit_code == 0
    assert run("store", "verify", library, models=False).stderr == ""


def test_what_cannot_be_repaired(run: Run, library: Path, others: tuple[object, ...]) -> None:
    flip(library, ".safetensors")
    refused(run("store", "repair", library, *others, models=False), 5, "store reembed")
    flip(library, ".txt")
    result = run("store", "verify", library, models=False)
    assert result.exit_code == 4
    assert "it cannot be made again" in result.stdout
    result = run("store", "repair", library, "--json")
    assert result.exit_code == 4
    assert len(json.loads(result.stdout)["faults"]) == 2


def test_reembed(run: Run, library: Path, others: tuple[object, ...]) -> None:
    reembed = ("store", "reembed", library, "book", *others)
    result = run(*reembed, "--k", "2", "--row-type", "float32", models=False)
    assert result.exit_code == 0, result.output
    stored = ContextStore(library)["book"]
    assert (stored.settings.k, stored.settings.row_type) == (2, "float32")
    again = run("store", "reembed", library, "--all", *others, "--json", models=False)
    (found,) = json.loads(again.stdout)["contexts"]
    assert (found["computed"], found["k"]) == (False, 2)
    assert "as it was already" in run(*reembed, models=False).stdout
    append = ("store", "append", library, "book", "-", *others)
    assert run(*append, models=False, stdin="x").exit_code == 0
    refused(run("store", "append", library, "book", "-", stdin="x"), 5, "store reembed")


def test_what_is_not_made_anew(run: Run, library: Path, no_reader: None) -> None:
    reembed = ("store", "reembed", library)
    refused(run(*reembed), 2, "neither was given")
    refused(run(*reembed, "book", "--all"), 2, "both were given")
    refused(run(*reembed, "novel"), 2, "has no 'novel'")
    refused(run(*reembed, "book", "--k", "1"), 2, "--k is 1")
    refused(run(*reembed, "book", "--row-type", "int4"), 2, "int4")


def test_ctrl_c_leaves_a_context_as_it_was(
    run: Run, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object, **settings: object) -> None:
        raise KeyboardInterrupt

    before = ContextStore(library)["book"].manifest
    with monkeypatch.context() as patch:
        patch.setattr(console.Progress, "update", interrupt)
        for command in (
            ("reembed", library, "--all", "--k", "8"),
            ("append", library, "book", "-"),
        ):
            assert run("store", *command, stdin="More.").exit_code == 130
    assert ContextStore(library)["book"].manifest == before
    assert run("store", "verify", library, models=False).exit_code == 0


def test_compact(run: Run, library: Path) -> None:
    (next((library / "contexts").iterdir()) / ".tmp-1").write_text("half")
    freed = json.loads(run("store", "compact", library, "--json", models=False).stdout)
    assert freed["freed_bytes"] == 4
    assert "0 bytes were freed" in run("store", "compact", library, models=False).stdout


COMMANDS = {
    "list": [],
    "show": ["x"],
    "append": ["x", "-"],
    "delete": ["x"],
    "rename": ["x", "y"],
    "export": ["x", "--out", "y"],
    "merge": [],
    "verify": [],
    "repair": [],
    "reembed": ["--all"],
    "compact": [],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.usefixtures("no_reader")
def test_a_store_that_is_not_there(run: Run, tmp_path: Path, command: str) -> None:
    (tmp_path / "folder").mkdir()
    for place in ("nowhere", "folder"):
        stores = ["shelf", place] if command == "merge" else [place]
        result = run("store", command, *stores, *COMMANDS[command], models=False)
        refused(result, 2, f"{place!r} is none", "check the path")
        assert not list((tmp_path / "folder").iterdir())
    assert not Path("nowhere").exists()


def test_a_remote_store_is_only_read(run: Run, library: Path, no_reader: None) -> None:
    import fsspec

    remote = fsspec.filesystem("memory")
    remote.put(str(library), "/shelf", recursive=True)
    listed = run("store", "list", "memory://shelf", "--json", models=False)
    assert json.loads(listed.stdout)["contexts"][0]["name"] == "book"
    for command in ("append", "delete", "rename", "verify", "repair", "reembed", "compact"):
        arguments = ["book" if each == "x" else each for each in COMMANDS[command]]
        result = run("store", command, "memory://shelf", *arguments, models=False)
        refused(result, 2, "behind a URL", "local copy")
    remote.rm("/shelf", recursive=True)


def test_a_damaged_context_does_not_hide_the_others(run: Run, library: Path) -> None:
    torn = library / folder_of("torn")
    torn.mkdir()
    (torn / "manifest.json").write_text("{")
    listed = run("store", "list", library, models=False)
    assert listed.exit_code == 4
    assert "A book" in listed.stdout
    assert torn.name in listed.stderr.replace("\n", "")
    told = json.loads(run("store", "list", library, "--json", models=False).stdout)
    assert [each["name"] for each in told["contexts"]] == ["book"]
    assert len(told["unreadable"]) == 1
