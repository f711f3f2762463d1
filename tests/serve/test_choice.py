"""Engines by name."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from extensible_embedding import Reader
from extensible_embedding.errors import InputError, MissingExtraError
from extensible_embedding.serve.choice import (
    ENGINE_KEY,
    ENGINES,
    REMOTE,
    EngineChoice,
    check_choice,
    choose_engine,
)

LLAMA = EngineChoice(name="llama.cpp")


def test_each_engine_has_its_name(tiny_reader: Reader, tmp_path: Path) -> None:
    for name in ENGINES:
        url = "http://localhost:1" if name in REMOTE else None
        source = str(tmp_path / "a.gguf")
        assert choose_engine(EngineChoice(name=name, url=url), tiny_reader, source).name == name


def test_an_engine_elsewhere_gets_its_key(
    tiny_reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in REMOTE:
        for key, expected in (("secret", "Bearer secret"), ("", None)):
            monkeypatch.setenv(ENGINE_KEY, key)
            choice = EngineChoice(name=name, url="http://localhost:1")
            engine = choose_engine(choice, tiny_reader, "folder")
            assert engine._client.headers.get("authorization") == expected


def test_llama_cpp_has_a_cell_for_each_row_of_the_window(tiny_reader: Reader) -> None:
    for window, cells in ((512, 16_384), (20_000, 20_000), (131_072, 32_768)):
        reader = Reader(tiny_reader.model, tiny_reader.tokenizer, window=window)
        assert choose_engine(LLAMA, reader, "default").settings.num_cells == cells


def test_llama_cpp_runs_gguf_files(tiny_reader: Reader) -> None:
    choose_engine(LLAMA, tiny_reader, "default")
    with pytest.raises(InputError, match=r"runs \.gguf files"):
        choose_engine(LLAMA, tiny_reader, "some/folder")


@pytest.mark.parametrize(
    ("name", "url", "words"),
    [("tgi", None, "is one of"), ("sglang", None, "add it"), ("vllm", "http://x", "leave it out")],
)
def test_what_cannot_be_chosen_is_told(
    tiny_reader: Reader, name: str, url: str | None, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        choose_engine(EngineChoice(name=name, url=url), tiny_reader, "folder")


@dataclass(frozen=True)
class StandInArguments:
    """As AsyncEngineArgs of vLLM."""

    model: str = ""
    enable_prompt_embeds: bool = False
    dtype: str = "auto"
    tensor_parallel_size: int = 1


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    library = ModuleType("vllm")
    library.AsyncEngineArgs = StandInArguments  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", library)


@pytest.mark.usefixtures("vllm")
def test_options_are_settings_of_the_engine(tiny_reader: Reader) -> None:
    def chosen(name: str, source: str = "default", **options: Any) -> Any:
        return choose_engine(EngineChoice(name=name, options=options), tiny_reader, source)

    assert chosen("transformers", max_running=3).settings.max_running == 3
    llama = chosen("llama.cpp", num_requests=2).settings
    assert (llama.num_requests, llama.num_cells) == (2, 16_384)
    assert chosen("llama.cpp", num_cells=99).settings.num_cells == 99
    assert chosen("vllm", "folder", dtype="float32")._arguments == {
        "model": "folder",
        "enable_prompt_embeds": True,
        "dtype": "float32",
    }


@pytest.mark.usefixtures("vllm")
@pytest.mark.parametrize(
    ("name", "option", "words"),
    [
        ("sglang", "dtype", "'sglang' there is 'dtype'; set it where that engine runs"),
        ("vllm-server", "dtype", "which run on this machine"),
        ("vllm", "dtyp", "vllm takes no 'dtyp'; the nearest are dtype, "),
        ("vllm", "model", "vllm takes no 'model'"),
        ("llama.cpp", "num_cell", r"llama.cpp takes no 'num_cell'; the nearest are num_cells, "),
        ("transformers", "cells", "transformers takes no 'cells'"),
    ],
)
def test_options_that_an_engine_has_not_are_told(name: str, option: str, words: str) -> None:
    url = "http://localhost:1" if name in REMOTE else None
    with pytest.raises(InputError, match=words):
        check_choice(EngineChoice(name=name, url=url, options={option: 1}))


@pytest.mark.parametrize("value", ["many", 1.5, True, None])
def test_our_engines_settings_are_whole_numbers(tiny_reader: Reader, value: Any) -> None:
    for name, option in (("llama.cpp", "num_cells"), ("transformers", "max_running")):
        choice = EngineChoice(name=name, options={option: value})
        with pytest.raises(InputError, match=f"{option!r} is a whole number"):
            choose_engine(choice, tiny_reader, "default")


def test_options_of_an_engine_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingExtraError, match=r"docs/engines\.md"):
        check_choice(EngineChoice(name="vllm", options={"dtype": "float32"}))
