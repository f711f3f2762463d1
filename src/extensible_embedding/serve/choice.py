"""The name of an engine -> that engine, whose libraries are imported when it is chosen.

In: a name, the reader and where it came from, and options. Out: an engine that is not started yet.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..loading import EMBEDDED_NAME, embedded_reader
from ..reader import Reader
from .engines.base import Engine


@dataclass(frozen=True, kw_only=True)
class EngineChoice:
    """An engine as it is asked for; checked when it is used."""

    name: str = "transformers"
    """One of `ENGINES`."""
    url: str | None = None
    """Of the server that runs the reader, for the engines that need one."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Settings of engines that run in this process, by the names that these have for them."""


def choose_engine(choice: EngineChoice, reader: Reader, source: str) -> Engine:
    """An engine for a reader.

    Args:
        choice: which, and how it is set.
        reader: that it runs.
        source: where the reader came from: a hub id, a folder or a .gguf file.

    Raises:
        InputError: there is no such engine, or it cannot run this reader, needs a URL or takes no
            such options.
        MissingExtraError: options are given to one whose library is not installed.
    """
    check_choice(choice)
    return ENGINES[choice.name](reader, source, choice)


def check_choice(choice: EngineChoice) -> None:
    """Raises as `choose_engine`, as far as it can be told without a reader."""
    name, url = choice.name, choice.url
    if name not in ENGINES:
        raise InputError(
            f"An engine is one of {', '.join(ENGINES)}, but {name!r} was given; choose one of "
            "these."
        )
    if (url is not None) != (name in REMOTE):
        raise InputError(
            f"A URL is given for the engines {' and '.join(REMOTE)}, which run elsewhere, but with "
            f"{name!r} there is {'one' if url else 'none'}; {'leave it out' if url else 'add it'}."
        )
    if choice.options:
        _check_options(name, choice.options)


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    if name not in _OPTIONS:
        raise InputError(
            f"Options are for the engines {', '.join(_OPTIONS)}, which run on this machine, but "
            f"with {name!r} there is {next(iter(options))!r}; set it where that engine runs."
        )
    known = _OPTIONS[name]()
    for option in options:
        if option not in known:
            nearest = ", ".join(get_close_matches(option, known, 3, 0.0))
            raise InputError(
                f"An engine's options are settings that it has, but {name} takes no {option!r}; "
                f"the nearest are {nearest}."
            )


def _check_whole(options: Mapping[str, Any]) -> None:
    """Our own engines' settings are whole numbers, all of them."""
    for option, value in options.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise InputError(
                f"The option {option!r} is a whole number, but it is {value!r}; give a number."
            )


def _llama_options() -> list[str]:
    from .engines.llama_cpp import LlamaSettings

    return [each.name for each in fields(LlamaSettings)]


def _transformers_options() -> list[str]:
    from .engines.transformers_schedule import TransformersSettings

    return [each.name for each in fields(TransformersSettings)]


def _vllm_options() -> list[str]:
    from .engines.vllm import known_settings

    return known_settings()


def _transformers(reader: Reader, source: str, choice: EngineChoice) -> Engine:
    from .engines.transformers import TransformersEngine
    from .engines.transformers_schedule import TransformersSettings

    _check_whole(choice.options)
    return TransformersEngine(reader, TransformersSettings(**choice.options))


def _llama_cpp(reader: Reader, source: str, choice: EngineChoice) -> Engine:
    from .engines.llama_cpp import LlamaCppEngine, LlamaSettings

    file = Path(*embedded_reader()) if source == EMBEDDED_NAME else Path(source)
    if file.suffix != ".gguf":
        raise InputError(
            f"llama.cpp runs .gguf files, but the reader is {source!r}; give the .gguf file of it, "
            "or choose another engine."
        )
    # One prompt may fill the window; cells take memory from the start, so that there is an end.
    num_cells = min(max(reader.window, LlamaSettings.num_cells), _MOST_CELLS)
    _check_whole(choice.options)
    return LlamaCppEngine(file, LlamaSettings(**{"num_cells": num_cells, **choice.options}))


def _vllm(reader: Reader, source: str, choice: EngineChoice) -> Engine:
    from .engines.vllm import VllmEngine

    return VllmEngine(source, reader.embed_tokens, **choice.options)


def _vllm_server(reader: Reader, source: str, choice: EngineChoice) -> Engine:
    from .engines.vllm_server import VllmServerEngine

    return VllmServerEngine(choice.url or "", reader.embed_tokens, api_key=_engine_key())


def _sglang(reader: Reader, source: str, choice: EngineChoice) -> Engine:
    from .engines.sglang import SGLangEngine

    return SGLangEngine(choice.url or "", reader.embed_tokens, api_key=_engine_key())


def _engine_key() -> str | None:
    """A secret, hence no argument, which other users of the machine could read."""
    return os.environ.get(ENGINE_KEY) or None


_MOST_CELLS = 32768
ENGINE_KEY = "EXTENSIBLE_ENGINE_KEY"
"""The environment variable with the API key of the server that runs the reader."""
ENGINES: dict[str, Callable[[Reader, str, EngineChoice], Engine]] = {
    "transformers": _transformers,
    "llama.cpp": _llama_cpp,
    "vllm": _vllm,
    "vllm-server": _vllm_server,
    "sglang": _sglang,
}
REMOTE = ("vllm-server", "sglang")
_OPTIONS: dict[str, Callable[[], list[str]]] = {
    "transformers": _transformers_options,
    "llama.cpp": _llama_options,
    "vllm": _vllm_options,
}
"""Of engines that take some, the names of all."""
