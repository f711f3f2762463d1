"""`extensible info`: what is installed, and what a reader and an embedder are."""

from __future__ import annotations

import json
from typing import Any

import torch
import transformers
import typer
from rich.table import Table

from .._version import __version__
from ..embedder import ExtensibleEmbedder
from ..errors import MissingExtraError
from ..reader import EMBEDDED_NAME, Reader, default_device, default_dtype, embedded_reader
from ..released import has_released_embedder
from .console import load_embedder, load_reader, stdout
from .options import RELEASED, EmbedderOption, JsonOption, ReaderOption


def info(
    reader: ReaderOption = EMBEDDED_NAME,
    embedder: EmbedderOption = RELEASED,
    as_json: JsonOption = False,
) -> None:
    """Show versions, the machine, the reader and the embedder.

    The embedded reader and the released embedder may be missing; that is shown, not an error.
    """
    facts = _installation()
    loaded = None
    if reader != EMBEDDED_NAME or facts["embedded_reader"] == FOUND:
        loaded = load_reader(reader)
    facts["reader"] = describe_reader(loaded) if loaded else NOT_FOUND
    facts["embedder"] = _embedder(embedder, loaded)
    if as_json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        stdout().print(_table(facts))


FOUND, NOT_FOUND = "found", "not found"


def _installation() -> dict[str, Any]:
    device = default_device()
    return {
        "version": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": str(device),
        "dtype": str(default_dtype(device)).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "embedded_reader": FOUND if _has_embedded_reader() else NOT_FOUND,
        "released_embedder": FOUND if has_released_embedder() else NOT_FOUND,
    }


def _has_embedded_reader() -> bool:
    try:
        embedded_reader()
    except MissingExtraError:
        return False
    return True


def describe_reader(reader: Reader) -> dict[str, Any]:
    """What tells a reader from another."""
    return {
        "name": reader.name,
        "layers": reader.num_layers,
        "hidden_size": reader.hidden_size,
        "vocabulary": reader.vocab_size,
        "window": reader.window,
        "dtype": str(reader.dtype).removeprefix("torch."),
        "fingerprint": reader.fingerprint,
    }


def _embedder(name: str, reader: Reader | None) -> dict[str, Any] | str:
    if reader is None or (name == RELEASED and not has_released_embedder()):
        return NOT_FOUND
    return describe_embedder(load_embedder(name, reader))


def describe_embedder(embedder: ExtensibleEmbedder) -> dict[str, Any]:
    """What tells an embedder from another."""
    config = embedder.config
    return {
        "layers": config.num_layers,
        "chunk_tokens": config.chunk_tokens,
        "down_sampling": config.down_sampling,
        "max_k": config.max_k,
        "training": embedder.training_record,
        "fingerprint": embedder.fingerprint,
    }


def _table(facts: dict[str, Any]) -> Table:
    table = Table("", "", show_header=False, box=None)
    for name, value in facts.items():
        if isinstance(value, dict):
            for inner, detail in value.items():
                table.add_row(f"{name} {inner}".replace("_", " "), _text(detail))
        else:
            table.add_row(name.replace("_", " "), _text(value))
    return table


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {part}" for key, part in value.items()) or "none recorded"
    return str(value)
