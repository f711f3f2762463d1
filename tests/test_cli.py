"""The command line on a tiny random reader: what it prints, leaves on disk and exits with."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import modeling_gguf_pytorch_utils
from typer.testing import CliRunner, Result

from extensible_embedding import Context, ExtensibleEmbedder, Reader, __version__, released
from extensible_embedding.cli import app, console, main

COMMANDS = ("ask", "chat", "compress", "demo", "eval", "info", "train")


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
def saved(run: Run, book: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "saved"
    assert run("compress", book, "--out", folder, "--k", "4").exit_code == 0
    return folder


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


# Help


def test_help_lists_every_command() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    for command in COMMANDS:
        assert f" {command} " in result.stdout


@pytest.mark.parametrize("command", [*COMMANDS, "eval lm"])
def test_every_option_explains_itself(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0
    if command != "eval":
        for line in re.findall(r"^. .*--[a-z-]+ .*$", result.stdout, re.MULTILINE):
            described = re.sub(r"--?[a-z-]+|[A-Z|.\[\],]+|\W", "", line)
            assert len(described) > 10, line


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.stdout.strip() == f"extensible-embedding {__version__}"


def test_unknown_option_is_a_usage_error() -> None:
    assert CliRunner().invoke(app, ["ask", "--nonsense"]).exit_code == 2


# compress


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
    refused(run("compress", short, "--out", "out", "--k", "8"), 2, "has 4 tokens", "k=4 or less")
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


# ask


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
    assert first == second
    assert set(first) == {"text", "k", "num_context_tokens", "prompt_rows", "window"}
    assert (first["k"], first["window"]) == (4, 512)


def test_streamed_answer_is_the_answer(run: Run, saved: Path) -> None:
    rest = ("-q", "Who?", "--k", "4", "--max-new-tokens", "12")
    streamed = run("ask", saved, *rest).stdout
    assert streamed.strip() == run("ask", saved, *rest, "--no-stream").stdout.strip()


def test_ask_auto_takes_the_smallest_k(run: Run, book: Path) -> None:
    rest = ("-q", "Who?", "--max-new-tokens", "4", "--json")
    answer = json.loads(run("ask", book, *rest).stdout)
    assert answer["k"] == 2
    assert answer["prompt_rows"] + 4 <= 512
    book.write_text("Short enough.")
    assert json.loads(run("ask", book, *rest).stdout)["k"] == 1


def test_ask_files_and_folders_together(run: Run, saved: Path, book: Path, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    assert run("compress", book, book, "--out", folder, "--k", "4").exit_code == 0
    result = run("ask", folder, saved, book, "-q", "Who?", "--max-new-tokens", "4", "--json")
    answer = json.loads(result.stdout)
    assert answer["k"] % 4 == 0
    assert answer["num_context_tokens"] == 4 * Context.load(saved).num_tokens


def test_ask_that_does_not_fit_names_a_k(run: Run, saved: Path) -> None:
    refused(run("ask", saved, "-q", "Who?", "--k", "1"), 3, "at k=1", "would fit")
    refused(run("ask", saved, "-q", "Who? " * 200), 3, "no k would fit")


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


def test_damaged_embedder(run: Run, book: Path, embedder_folder: Path) -> None:
    (embedder_folder / "model.safetensors").write_bytes(b"nothing")
    refused(run("compress", book, "--out", "out"), 4, "model.safetensors")


def test_another_reader(run: Run, saved: Path, book: Path, embedder_folder: Path) -> None:
    from conftest import byte_tokenizer, tiny_llama

    tiny_llama(seed=5).save_pretrained("other")
    byte_tokenizer().save_pretrained("other")
    models = ("--reader", "other", "--embedder", embedder_folder)
    result = run("ask", saved, "-q", "Who?", *models, models=False)
    refused(result, 5, "fingerprint")
    refused(run("compress", book, "--out", "out", *models, models=False), 5, "fingerprint")


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


# chat


def test_chat_answers_until_quit(run: Run, saved: Path) -> None:
    result = run("chat", saved, "--max-new-tokens", "4", stdin="Who?\n\nWhy?\n/quit\nNever?\n")
    assert result.exit_code == 0, result.output
    assert result.stderr.count("context tokens in") == 2


def test_chat_ends_with_the_input(run: Run, book: Path) -> None:
    assert run("chat", book, "--max-new-tokens", "4", stdin="Who?\n").exit_code == 0


def test_chat_drops_the_oldest_turns(run: Run, saved: Path) -> None:
    long_turns = "".join(f"{letter * 100}?\n" for letter in "abcdefgh")
    result = run("chat", saved, "--max-new-tokens", "4", stdin=long_turns)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("context tokens in") == 8


# train, eval, info


def config_file(tmp_path: Path, reader: Path, **settings: Any) -> Path:
    (tmp_path / "train.txt").write_text("All work and no play makes a dull text. " * 40)
    values = {
        "output_dir": str(tmp_path / "run"),
        "data": [str(tmp_path / "train.txt")],
        "cache_dir": str(tmp_path / "tokens"),
        "reader": str(reader),
        "num_layers": 2,
        "reading_chunk_tokens": 16,
        "instance_tokens": [64],
        "chunk_tokens": [16],
        "scale_factors": [2, 4],
        "max_steps": 2,
        "save_steps": 1,
        "logging_steps": 1,
        "bf16": False,
    }
    file = tmp_path / "train.yaml"
    file.write_text(yaml.safe_dump(values | settings))
    return file


def test_train_and_go_on(
    run: Run, tiny_reader_folder: Path, tiny_reader: Reader, tmp_path: Path
) -> None:
    config = config_file(tmp_path, tiny_reader_folder)
    result = run("train", "--config", config, "--json", models=False)
    assert result.exit_code == 0, result.output
    first = json.loads(result.stdout)
    assert first["steps"] == 2
    assert first["loss"] > 0
    assert "step 1/2, loss" in result.stderr
    config = config_file(tmp_path, tiny_reader_folder, max_steps=3)
    result = run("train", "--config", config, models=False)
    assert result.exit_code == 0, result.output
    assert "Going on from step 2." in result.stderr
    embedder = ExtensibleEmbedder.from_pretrained(first["folder"], tiny_reader)
    assert embedder.training_record["steps"] == 3


def test_train_configuration_errors(run: Run, tiny_reader_folder: Path, tmp_path: Path) -> None:
    config = config_file(tmp_path, tiny_reader_folder, learning_rat=1.0)
    refused(run("train", "--config", config, models=False), 2, "`learning_rat`", "learning_rate")
    refused(run("train", "--config", "none.yaml", models=False), 2, "none.yaml")


def test_eval_lm(run: Run, tmp_path: Path, text: str) -> None:
    for name in ("one", "two"):
        pq.write_table(pa.table({"text": [text + name]}), tmp_path / f"{name}.parquet")
    shape = ("--context-tokens", "64", "--target-tokens", "16", "--num-targets", "2", "--k", "2,4")
    files = ("--data", tmp_path / "one.parquet", tmp_path / "two.parquet")
    result = run("eval", "lm", *files, *shape, "--json", tmp_path / "out.json")
    assert result.exit_code == 0, result.output
    for word in ("one", "two", "mean", "raw", "extensible", "recovery"):
        assert word in result.stdout
    report = json.loads((tmp_path / "out.json").read_text())
    assert {record["k"] for record in report["records"]} == {0, 1, 2, 4}


def test_eval_lm_refuses(run: Run, tmp_path: Path) -> None:
    data = ("eval", "lm", "--data", "none.parquet", "--target-tokens", "16")
    refused(run(*data, "--context-tokens", "64"), 2, "none.parquet")
    refused(run(*data, "--k", "2,x"), 2, "'x'")
    refused(run(*data, "--k", "auto"), 2, "'auto'")
    refused(run(*data, "--context-tokens", "64,-1"), 2, "--context-tokens", "'-1'")
    refused(run(*data, "--methods", "magic"), 2, "magic")


def test_info(run: Run, tiny_embedder: ExtensibleEmbedder) -> None:
    facts = json.loads(run("info", "--json").stdout)
    assert facts["version"] == __version__
    assert facts["torch"] == torch.__version__
    assert facts["reader"]["fingerprint"] == tiny_embedder.reader.fingerprint
    assert facts["embedder"]["fingerprint"] == tiny_embedder.fingerprint
    assert "fingerprint" in plain(run("info").stdout)


def test_info_without_models(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(released, "RELEASED_FOLDER", tmp_path / "gone")
    monkeypatch.setattr("extensible_embedding.reader.EMBEDDED_PACKAGE", "no_such_package")
    result = run("info", "--json", models=False)
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["embedded_reader"] == facts["released_embedder"] == "not found"
    assert facts["reader"] == facts["embedder"] == "not found"


# demo


@pytest.fixture
def _small_demo(
    monkeypatch: pytest.MonkeyPatch, tiny_reader: Reader, book: Path, text: str
) -> None:
    book.write_text(text * 3, encoding="utf-8")
    demo = sys.modules["extensible_embedding.cli.demo"]
    monkeypatch.setattr(demo, "load_reader", lambda name: tiny_reader)
    monkeypatch.setattr(demo, "book_path", lambda: book)
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
    assert pages["the whole book before it, compressed"]["num_tokens"] == len(text * 3) - 256


@pytest.mark.usefixtures("_small_demo")
def test_demo_tables(run: Run, embedder_folder: Path) -> None:
    result = run("demo", "--k", "auto", "--embedder", embedder_folder, models=False)
    assert result.exit_code == 0, result.output
    for words in ("does not fit (needs", "window used", "perplexity", "The book says: Pulteney"):
        assert words in result.stdout


# main


def test_main_exits_with_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["ask", "none.txt", "-q", "Who?"])
    assert exit.value.code == 2
    assert capsys.readouterr().err.startswith("Error: ")


def test_libraries_are_as_before(run: Run, saved: Path) -> None:
    assert "disable" not in getattr(modeling_gguf_pytorch_utils.tqdm, "keywords", {})
