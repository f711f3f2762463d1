"""`extensible ask`: answers and refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from extensible_embedding import Context, released

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
