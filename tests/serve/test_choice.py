"""Engines by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from extensible_embedding import Reader
from extensible_embedding.errors import InputError
from extensible_embedding.serve.choice import ENGINE_KEY, ENGINES, REMOTE, choose_engine


def test_each_engine_has_its_name(tiny_reader: Reader, tmp_path: Path) -> None:
    for name in ENGINES:
        url = "http://localhost:1" if name in REMOTE else None
        source = str(tmp_path / "a.gguf")
        assert choose_engine(name, tiny_reader, source, url).name == name


def test_an_engine_elsewhere_gets_its_key(
    tiny_reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in REMOTE:
        for key, expected in (("secret", "Bearer secret"), ("", None)):
            monkeypatch.setenv(ENGINE_KEY, key)
            engine = choose_engine(name, tiny_reader, "folder", "http://localhost:1")
            assert engine._client.headers.get("authorization") == expected


def test_llama_cpp_has_a_cell_for_each_row_of_the_window(tiny_reader: Reader) -> None:
    for window, cells in ((512, 16_384), (20_000, 20_000), (131_072, 32_768)):
        reader = Reader(tiny_reader.model, tiny_reader.tokenizer, window=window)
        assert choose_engine("llama.cpp", reader, "default", None).settings.num_cells == cells


def test_llama_cpp_runs_gguf_files(tiny_reader: Reader) -> None:
    choose_engine("llama.cpp", tiny_reader, "default", None)
    with pytest.raises(InputError, match=r"runs \.gguf files"):
        choose_engine("llama.cpp", tiny_reader, "some/folder", None)


@pytest.mark.parametrize(
    ("name", "url", "words"),
    [("tgi", None, "is one of"), ("sglang", None, "add it"), ("vllm", "http://x", "leave it out")],
)
def test_what_cannot_be_chosen_is_told(
    tiny_reader: Reader, name: str, url: str | None, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        choose_engine(name, tiny_reader, "folder", url)
