"""`extensible info`: what is installed, and what a reader and an embedder are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from .._version import __version__
from ..errors import MismatchError, MissingExtraError
from .console import load_embedder, load_reader, quiet_libraries, stdout
from .options import BUILT_IN, RELEASED, JsonOption, Models, with_models

if TYPE_CHECKING:
    from ..embedder import ExtensibleEmbedder
    from ..reader import Reader

FOUND, NOT_FOUND = "found", "not found"
OF_ANOTHER_READER = "the released embedder is made for another reader"


@with_models
def info(as_json: JsonOption = False, *, models: Models) -> None:
    """Show versions, the machine, the reader and the embedder.

    The built-in reader and the released embedder may be missing; that is shown, not an error.
    """
    _info(models, as_json=as_json)


@quiet_libraries()
def _info(models: Models, *, as_json: bool) -> None:
    facts = _installation()
    reader = None
    if models.reader != BUILT_IN or facts["built_in_reader"] == FOUND:
        reader = load_reader(models.reader, models)
    facts["reader"] = describe_reader(reader) if reader else NOT_FOUND
    facts["embedder"] = _embedder(models, reader)
    if as_json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        stdout().print(_table(facts))


def _installation() -> dict[str, Any]:
    import torch
    import transformers

    from ..loading import default_device, default_dtype
    from ..released import has_released_embedder

    device = default_device()
    return {
        "version": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": str(device),
        "dtype": str(default_dtype(device)).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "built_in_reader": FOUND if _has_built_in_reader() else NOT_FOUND,
        "released_embedder": FOUND if has_released_embedder() else NOT_FOUND,
    }


def _has_built_in_reader() -> bool:
    from ..loading import embedded_reader

    try:
        embedded_reader()
    except MissingExtraError:
        return False
    return True


def describe_reader(reader: Reader) -> dict[str, Any]:
    """What tells a reader from another."""
    from ..reader import HASH_DIGITS

    return {
        "name": reader.name,
        "layers": reader.num_layers,
        "hidden_size": reader.hidden_size,
        "vocabulary": reader.vocab_size,
        "window": reader.window,
        "dtype": str(reader.dtype).removeprefix("torch."),
        "fingerprint": reader.fingerprint[:HASH_DIGITS],
    }


def _embedder(models: Models, reader: Reader | None) -> dict[str, Any] | str:
    from ..released import has_released_embedder

    if reader is None or (models.embedder == RELEASED and not has_released_embedder()):
        return NOT_FOUND
    try:
        return describe_embedder(load_embedder(models, reader))
    except MismatchError:
        if models.embedder == RELEASED and models.reader != BUILT_IN:
            return OF_ANOTHER_READER
        raise


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
