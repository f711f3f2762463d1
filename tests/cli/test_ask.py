"""`extensible ask`: answers and refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path

import fsspec
import pytest

from extensible_embedding import Context, ContextStore, ExtensibleEmbedder, released
from extensible_embedding.cli import console

from .conftest import Run, refused


def test_ask_a_saved_context(run: Run, saved: Path) -> None:
    result = run("ask", saved, "-q", "Who?", "--max-new-tokens", "8")
    assert result.exit_code == 0, result.output
    assert re.search(r"k=\d+ .* context tokens in \d+ rows; .* of the window's 512", result.stderr)
    assert result.stdout.endswith("\n")


def test_ask_needs_no_embedder_for_saved_contexts(
    run: Run, saved: Path, tiny_reader_folder: Path
) -> None:
    arguments = ["ask", saved, "-q", "Who?", "--max-new-tokens", "2", "--reader"]
    result = run(*arguments, tiny_reader_folder, "--embedder", "no/where", models=False)
    assert result.exit_code == 0, result.output


def test_ask_file_and_folder_agree(run: Run, saved: Path, book: Path) -> None:
    rest = ("-q", "Who?", "--k", "4", "--max-new-tokens", "8", "--json")
    first, second = (json.loads(run("ask", place, *rest).stdout) for place in (saved, book))
    same = ("text", "k", "num_context_tokens", "prompt_rows", "window")
    assert [first[name] for name in same] == [second[name] for name in same]
    assert (first["k"], first["window"]) == (4, 512)


def test_streamed_answer_is_the_answer(run: Run, saved: Path) -> None:
    rest = ("-q", "Who?", "--k", "4", "--max-new-tokens", "12")
    streamed = run("ask", saved, *rest).stdout
    assert streamed.strip() == run("ask", saved, *rest, "--no-stream").stdout.strip()


def test_ask_auto_takes_the_smallest_k(run: Run, book: Path) -> None:
    rest = ("-q", "Who?", "--max-new-tokens", "4", "--json", "--expand", "off")
    answer = json.loads(run("ask", book, *rest).stdout)
    assert answer["k"] == 2
    assert answer["prompt_rows"] + 4 <= 512
    book.write_text("Short enough.")
    assert json.loads(run("ask", book, *rest).stdout)["k"] == 1


def test_ask_reads_passages_raw_beside_rows(run: Run, book: Path) -> None:
    rest = ("-q", "Who?", "--max-new-tokens", "4", "--json", "--k", "8")
    with_spans = json.loads(run("ask", book, *rest).stdout)
    rows_alone = json.loads(run("ask", book, *rest, "--expand", "off").stdout)
    assert with_spans["k"] == rows_alone["k"] == 8
    assert rows_alone["prompt_rows"] < with_spans["prompt_rows"] <= 512 - 4


def test_ask_files_folders_and_stores_together(
    run: Run, saved: Path, library: Path, book: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "many"
    for name in ("one", "two"):
        Context.load(saved).save(folder / name)
    rest = ("-q", "Who?", "--max-new-tokens", "4", "--json")
    result = run("ask", folder, saved, library, book, *rest)
    answer = json.loads(result.stdout)
    assert answer["k"] % 4 == 0
    assert answer["num_context_tokens"] == 5 * Context.load(saved).num_tokens


def test_a_context_of_a_store(run: Run, saved: Path, library: Path, book: Path) -> None:
    rest = ("-q", "Who?", "--k", "4", "--max-new-tokens", "8", "--json")
    places = (saved, library, f"{library}:book", f"file://{library}", f"file://{library}:book")
    answers = [run("ask", place, *rest).stdout for place in places]
    assert len(set(answers)) == 1
    assert json.loads(answers[0])["k"] == 4


def test_all_contexts_of_a_store_are_read(run: Run, library: Path, tmp_path: Path) -> None:
    (tmp_path / "a: b.txt").write_text("Another text.")
    assert run("compress", tmp_path / "a: b.txt", "--out", library).exit_code == 0
    assert run("store", "append", library, "log", "-", "--new", stdin="x").exit_code == 0
    rest = ("-q", "Who?", "--k", "8", "--max-new-tokens", "2", "--json")
    tokens = [
        json.loads(run("ask", source, *rest).stdout)["num_context_tokens"]
        for source in (library, f"{library}:a: b", f"{library}:log")
    ]
    assert tokens[1:] == [len("Another text."), 1]
    assert tokens[0] > sum(tokens[1:])


def test_a_store_behind_a_url(run: Run, library: Path) -> None:
    remote = fsspec.filesystem("memory")
    remote.put(str(library), "/shelf", recursive=True)
    rest = ("-q", "Who?", "--k", "4", "--max-new-tokens", "2")
    for source in ("memory://shelf", "memory://shelf:book"):
        assert run("ask", source, *rest).exit_code == 0
    refused(run("ask", "memory://nowhere", *rest), 2, "'memory://nowhere' is none", "check the")
    refused(run("ask", "memory://shelf:novel", *rest), 2, "has no 'novel'", "store list")
    refused(run("ask", "nonsense://shelf", *rest), 2, "nonsense")
    remote.rm("/shelf", recursive=True)


def test_a_store_that_cannot_be_reached(
    run: Run, monkeypatch: pytest.MonkeyPatch, no_reader: None
) -> None:
    def broken(*arguments: object, **settings: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.info", broken)
    result = run("ask", "memory://shelf", "-q", "Who?")
    refused(result, 6, "'memory://shelf' cannot be (no route to host)", "connection")


def test_a_file_whose_name_has_a_colon(run: Run, library: Path, tmp_path: Path) -> None:
    file = tmp_path / "library:book"
    file.write_text("Few words.")
    result = run("ask", "library:book", "-q", "Who?", "--max-new-tokens", "2", "--json")
    assert json.loads(result.stdout)["num_context_tokens"] == len("Few words.")
    refused(run("ask", "nothing:book", "-q", "Who?"), 2, "there is no 'nothing:book'")
    refused(run("ask", f"{library}:novel", "-q", "Who?"), 2, "has no 'novel'", "store list")


def test_a_store_without_text(run: Run, library: Path, tiny_embedder: ExtensibleEmbedder) -> None:
    store = ContextStore(library)
    store.add("log", "", tiny_embedder)
    refused(run("ask", f"{library}:log", "-q", "Who?"), 2, ":log' is empty", "store append")
    store.delete("book")
    refused(run("ask", library, "-q", "Who?"), 2, "holds no text", "extensible compress FILE")


def test_ask_that_does_not_fit_names_a_k(run: Run, saved: Path) -> None:
    refused(run("ask", saved, "-q", "Who?", "--k", "1"), 3, "at k=1", "would fit")
    refused(run("ask", saved, "-q", "Who? " * 200), 3, "the question alone takes", "shorter")


def test_folder_without_context(run: Run, tmp_path: Path) -> None:
    (tmp_path / "void").mkdir()
    refused(run("ask", tmp_path / "void", "-q", "Who?"), 2, "holds none", "extensible compress")


def test_empty_question(run: Run, saved: Path) -> None:
    refused(run("ask", saved, "-q", " "), 2, "question")


def test_errors_as_json(run: Run, tmp_path: Path) -> None:
    result = run("ask", tmp_path / "missing.txt", "-q", "Who?", "--json")
    refused(result, 2, "missing.txt")
    error = json.loads(result.stdout)
    assert (error["type"], error["exit_code"]) == ("InputError", 2)
    assert f"Error: {error['error']}" in result.stderr


def test_damaged_context(run: Run, saved: Path) -> None:
    rows = saved / "rows.safetensors"
    rows.write_bytes(rows.read_bytes()[:-100])
    refused(run("ask", saved, "-q", "Who?"), 4, "rows.safetensors", "truncated")


def test_damaged_store(run: Run, library: Path) -> None:
    rows = next(library.rglob("*.safetensors"))
    rows.write_bytes(rows.read_bytes()[:-100])
    refused(run("ask", library, "-q", "Who?"), 4, rows.name, "extensible store repair")


def test_damaged_embedder(run: Run, book: Path, embedder_folder: Path) -> None:
    (embedder_folder / "model.safetensors").write_bytes(b"nothing")
    refused(run("compress", book, "--out", "out"), 4, "model.safetensors")


def test_another_reader(
    run: Run, saved: Path, library: Path, book: Path, embedder_folder: Path, fine_tuned: Path
) -> None:
    models = ("--reader", fine_tuned, "--embedder", embedder_folder)
    result = run("ask", saved, "-q", "Who?", *models, models=False)
    refused(result, 5, "saved'", "--reader", "compress it again", "--derivative")
    result = run("ask", library, "-q", "Who?", *models, models=False)
    refused(result, 5, f"`extensible store reembed {library} book`", "--reader", "--derivative")
    refused(run("compress", book, "--out", "out", *models, models=False), 5, "give --derivative")


def test_a_fine_tune_reads_with_derivative(
    run: Run, saved: Path, library: Path, book: Path, embedder_folder: Path, fine_tuned: Path
) -> None:
    models = ("--reader", fine_tuned, "--embedder", embedder_folder, "--derivative")
    rest = ("-q", "Who?", "--max-new-tokens", "2", *models)
    result = run("ask", saved, library, book, *rest, models=False)
    assert result.exit_code == 0, result.output
    assert run("compress", book, "--out", "out", *models, models=False).exit_code == 0
    assert run("ask", "out", *rest, models=False).exit_code == 0


def test_models_that_are_not_there(run: Run, book: Path, tiny_reader_folder: Path) -> None:
    void = ("--embedder", "no-such-embedder", "--reader")
    refused(run("compress", book, "--out", "out", *void, "./none", models=False), 2, "./none")
    arguments = ("compress", book, "--out", "out", *void, tiny_reader_folder)
    refused(run(*arguments, models=False), 2, "no-such-embedder")


def test_released_embedder_missing(
    run: Run,
    book: Path,
    tiny_reader_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(released, "RELEASED_FOLDER", tmp_path / "gone")
    arguments = ("ask", book, "-q", "Who?", "--reader", tiny_reader_folder)
    refused(run(*arguments, models=False), 2, "released embedder", "gone")


def test_a_long_text_beside_short_ones(run: Run, book: Path, tmp_path: Path) -> None:
    rest = ("-q", "Who?", "--max-new-tokens", "4", "--json")
    shorts = []
    for words in ("F", "Few", "Emma"):
        shorts.append(tmp_path / f"{words}.txt")
        shorts[-1].write_text(words)
    for k in ("auto", "5"):
        result = run("ask", book, *shorts, *rest, "--k", k)
        assert result.exit_code == 0, result.output
        answer = json.loads(result.stdout)
        assert answer["num_context_tokens"] == len(book.read_text()) + 1 + 3 + 4
    assert answer["k"] == 5
    refused(run("ask", *shorts, "-q", "Who?", "--k", "17"), 2, "k is at most 16")


@pytest.mark.parametrize("num_tokens", [380, 430, 440, 441, 442, 870, 871, 880, 1290, 1300])
def test_auto_is_the_smallest_k_that_fits(
    run: Run, book: Path, text: str, tiny_embedder: ExtensibleEmbedder, num_tokens: int
) -> None:
    book.write_text((text * 3)[:num_tokens])
    result = run("ask", book, "-q", "Who?", "--max-new-tokens", "4", "--json")
    answer = json.loads(result.stdout)
    context = tiny_embedder.compress(book.read_text(), k=1)
    others = answer["prompt_rows"] - context.rows_at(answer["k"])
    assert answer["prompt_rows"] + 4 <= 512
    if answer["k"] > 1:
        assert others + context.rows_at(answer["k"] - 1) + 4 > 512


def test_each_context_is_read_at_a_k_of_its_own(
    run: Run, book: Path, saved: Path, tiny_embedder: ExtensibleEmbedder
) -> None:
    for k in (3, 7):
        tiny_embedder.compress(book.read_text(), k=k).save(f"at-{k}")
    rest = ("-q", "Who?", "--max-new-tokens", "4", "--json", "--expand", "off")
    answer = json.loads(run("ask", "at-3", "at-7", book, *rest).stdout)
    assert answer["k"] == 7
    assert answer["prompt_rows"] + 4 <= 512
    assert json.loads(run("ask", "at-3", saved, book, *rest).stdout)["k"] < 12


def test_a_k_for_each_source(run: Run, library: Path, tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    note.write_text("The door is violet. " * 4)
    rest = ("-q", "Who?", "--max-new-tokens", "4")
    result = run("ask", f"{library}:book", note, *rest, "--k", "8, 1")
    assert result.exit_code == 0, result.output
    tokens = ContextStore(library)["book"].num_tokens
    rows = ContextStore(library)["book"].context(8).num_rows + 20 * 4
    assert f"k=8, 1 (compressed): {tokens + 20 * 4:,} context tokens in {rows:,} rows" in (
        result.stderr
    )
    refused(run("ask", f"{library}:book", note, *rest, "--k", "8,1,4"), 2, "are 3 for 2")
    refused(run("ask", f"{library}:book", note, *rest, "--k", "6,1"), 2, "compressed at k=4")
    refused(run("ask", f"{library}:book", note, *rest, "--k", "8,auto"), 2, "--k")
    refused(run("ask", f"{library}:book", note, *rest, "--k", "8,"), 2, "--k")


def test_rows_at_1_are_read_as_text(
    run: Run, book: Path, tiny_embedder: ExtensibleEmbedder, tmp_path: Path
) -> None:
    tiny_embedder.compress(book.read_text(), k=1, title="raw").save(tmp_path / "raw")
    rest = ("-q", "Who?", "--max-new-tokens", "4", "--json", "--expand", "off")
    result = run("ask", "raw", book, *rest)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["k"] == 3


def test_a_k_that_saved_rows_do_not_have(
    run: Run, saved: Path, library: Path, no_reader: None
) -> None:
    result = run("ask", saved, "-q", "Who?", "--k", "3")
    refused(result, 2, "saved' was compressed at k=4", "read at 1, 4, 8, 12, 16", "--k is 3")
    result = run("ask", library, "-q", "Who?", "--k", "6")
    refused(result, 2, "library:book' was", f"`extensible store reembed {library} book --k 6`")
    result = run("ask", library, "-q", "Who?", "--k", "600")
    refused(result, 2, "read at 1, 4, 8, 12, 16", "--k is 600; choose one of these.")


@pytest.mark.usefixtures("no_reader")
def test_refusals_that_wait_for_no_reader(run: Run, book: Path) -> None:
    ask = ("ask", book, "-q", "Who?")
    refused(run(*ask, "--k", "9" * 5000), 2, "99999...", "`auto`")
    refused(run(*ask, "--max-new-tokens", "0"), 2, "--max-new-tokens", "1 or more", "it is 0")
    refused(run(*ask, "--max-new-tokens", "-3"), 2, "it is -3")
    refused(run(*ask, "--window", "1"), 2, "--window")
    refused(run(*ask, "--dtype", "int8"), 2, "--dtype", "float32")
    refused(run(*ask, "--stream", "--json"), 2, "--stream", "leave out")
    refused(run(*ask, "--device", "toaster"), 2, "--device", "'toaster'")
    refused(run("ask", book, "-q", " "), 2, "--question is empty")


def test_more_new_tokens_than_the_window(run: Run, book: Path) -> None:
    result = run("ask", book, "-q", "Who?", "--max-new-tokens", "600")
    refused(result, 3, "--max-new-tokens", "512 rows", "it is 600", "give at most")
    limit = re.search(r"at most (\d+)", result.stderr)
    assert limit is not None
    short = run("ask", "book.txt", "-q", "Who?", "--max-new-tokens", limit[1])
    assert "--max-new-tokens" not in short.stderr


def test_how_the_reader_is_loaded(run: Run, book: Path) -> None:
    book.write_text("Short enough. " * 10)
    rest = ("-q", "Who?", "--max-new-tokens", "4", "--json", "--expand", "off")
    how = ("--dtype", "bfloat16", "--window", "100", "--device", "cpu")
    answer = json.loads(run("ask", book, *rest, *how).stdout)
    assert (answer["window"], answer["k"]) == (100, 2)


def test_stderr_off_a_terminal(run: Run, book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    result = run("ask", book, "-q", "Who?", "--max-new-tokens", "4")
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert "the text fits" not in result.stderr
    book.write_text("Short enough.")
    result = run("ask", book, "-q", "Who?", "--max-new-tokens", "4")
    assert "k=1 (the text fits, so it is read raw; --k 4 forces rows)" in result.stderr
    assert "k=1 (raw text)" in run("ask", book, "-q", "Who?", "--k", "1").stderr
    result = run("ask", book, "-q", "Who?", "--max-new-tokens", "600")
    assert result.stderr.startswith("Error: ")


def test_the_bar_tells_a_speed_after_one_update() -> None:
    bar = console.Progress(console.SpeedColumn("tokens"), disable=True)
    task = bar.add_task("Compressing", total=10)
    assert str(bar.columns[0](bar.tasks[0])) == ""  # type: ignore[operator]
    bar.update(task, completed=10)
    assert str(bar.columns[0](bar.tasks[0])).endswith(" tokens/s")  # type: ignore[operator]


def test_ask_expands_and_cites(run: Run, book: Path) -> None:
    book.write_text(" ".join(f"Walk {number} went up the hill." for number in range(40)))
    rest = ("-q", "Who went on walk 17?", "--max-new-tokens", "6")
    plain = json.loads(run("ask", book, *rest, "--json").stdout)
    assert "citations" not in plain
    result = run("ask", book, *rest, "--expand", "auto", "--cite", "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["k"] >= plain["k"]
    assert answer["prompt_rows"] + 6 <= 512
    text = book.read_bytes()
    assert any(each["raw"] for each in answer["citations"])
    assert any(not each["raw"] for each in answer["citations"])
    for each in answer["citations"]:
        assert text[each["start_byte"] : each["end_byte"]].decode() == each["quote"]
    shown = run("ask", book, *rest, "--expand", "auto", "--cite").stdout
    assert re.search(r"\[1\] .*bytes [\d,]+ to [\d,]+, read raw, [\d.]+% of the attention", shown)
    assert re.search(r"bytes [\d,]+ to [\d,]+, [\d.]+% of the attention to rows:", shown)


def test_ask_expands_and_cites_a_context_of_a_store(run: Run, library: Path, book: Path) -> None:
    """Also one piece alone, and with rows that are read when k is known."""
    rest = ("-q", "Who?", "--k", "8", "--max-new-tokens", "4", "--expand", "64", "--cite", "--json")
    for spans in ("words", "attention"):
        result = run("ask", f"{library}:book", *rest, "--spans", spans)
        assert result.exit_code == 0, result.output
        cited = json.loads(result.stdout)["citations"]
        raw = [each["raw"] for each in cited]
        assert raw == sorted(raw, reverse=True)
        assert raw[0]
        assert not raw[-1]
        for each in cited:
            found = book.read_bytes()[each["start_byte"] : each["end_byte"]]
            assert found.decode() == each["quote"]


def test_ask_ranks_spans_by_attention(run: Run, book: Path) -> None:
    rest = ("-q", "Who?", "--max-new-tokens", "2", "--expand", "64", "--spans", "attention")
    result = run("ask", book, *rest)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("value", ["-1", "2.5", "some", ""])
def test_ask_refuses_an_expand_that_is_no_number(run: Run, book: Path, value: str) -> None:
    refused(run("ask", book, "-q", "Who?", "--expand", value), 2, "--expand is a number of tokens")
