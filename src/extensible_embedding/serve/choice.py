"""The name of an engine -> that engine, whose libraries are imported when it is chosen.

In: a name, the reader and where it came from. Out: an engine that is not started yet.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ..errors import InputError
from ..loading import EMBEDDED_NAME, embedded_reader
from ..reader import Reader
from .engines.base import Engine


def choose_engine(name: str, reader: Reader, source: str, url: str | None) -> Engine:
    """An engine for a reader.

    Args:
        name: one of `ENGINES`.
        reader: that it runs.
        source: where the reader came from: a hub id, a folder or a .gguf file.
        url: of the server that runs it, for the engines that need one.

    Raises:
        InputError: there is no such engine, or it cannot run this reader or needs a URL.
    """
    check_choice(name, url)
    return ENGINES[name](reader, source, url or "")


def check_choice(name: str, url: str | None) -> None:
    """Raises InputError unless there is such an engine, with a URL if it needs one."""
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


def _transformers(reader: Reader, source: str, url: str) -> Engine:
    from .engines.transformers import TransformersEngine

    return TransformersEngine(reader)


def _llama_cpp(reader: Reader, source: str, url: str) -> Engine:
    from .engines.llama_cpp import LlamaCppEngine, LlamaSettings

    file = Path(*embedded_reader()) if source == EMBEDDED_NAME else Path(source)
    if file.suffix != ".gguf":
        raise InputError(
            f"llama.cpp runs .gguf files, but the reader is {source!r}; give the .gguf file of it, "
            "or choose another engine."
        )
    # One prompt may fill the window; cells take memory from the start, so that there is an end.
    num_cells = min(max(reader.window, LlamaSettings.num_cells), _MOST_CELLS)
    return LlamaCppEngine(file, LlamaSettings(num_cells=num_cells))


def _vllm(reader: Reader, source: str, url: str) -> Engine:
    from .engines.vllm import VllmEngine

    return VllmEngine(source, reader.embed_tokens)


def _vllm_server(reader: Reader, source: str, url: str) -> Engine:
    from .engines.vllm_server import VllmServerEngine

    return VllmServerEngine(url, reader.embed_tokens, api_key=_engine_key())


def _sglang(reader: Reader, source: str, url: str) -> Engine:
    from .engines.sglang import SGLangEngine

    return SGLangEngine(url, reader.embed_tokens, api_key=_engine_key())


def _engine_key() -> str | None:
    """A secret, hence no argument, which other users of the machine could read."""
    return os.environ.get(ENGINE_KEY) or None


_MOST_CELLS = 32768
ENGINE_KEY = "EXTENSIBLE_ENGINE_KEY"
"""The environment variable with the API key of the server that runs the reader."""
ENGINES: dict[str, Callable[[Reader, str, str], Engine]] = {
    "transformers": _transformers,
    "llama.cpp": _llama_cpp,
    "vllm": _vllm,
    "vllm-server": _vllm_server,
    "sglang": _sglang,
}
REMOTE = ("vllm-server", "sglang")
