"""Options that several commands share, and how their values are read."""

from __future__ import annotations

from typing import Annotated

import typer

from ..downsampling import check_scale_factor
from ..prompt import AUTO
from .group import remember_json

RELEASED = "released"

ReaderOption = Annotated[
    str,
    typer.Option(
        "--reader",
        metavar="READER",
        help="The frozen language model that answers: a hub id, a folder of transformers, a .gguf "
        "file, or 'default' for the embedded SmolLM2-135M-Instruct.",
    ),
]
EmbedderOption = Annotated[
    str,
    typer.Option(
        "--embedder",
        metavar="EMBEDDER",
        help="The embedder that makes the rows: a folder, a hub id, or 'released' for the one that "
        "ships with the package. It must have been trained for the reader.",
    ),
]
KOption = Annotated[
    str,
    typer.Option(
        "--k",
        metavar="N|auto",
        help="Scale factor: context tokens that one row stands for. 1 reads the raw text, 'auto' "
        "takes the smallest at which all fits in the reader's window.",
    ),
]
NewTokensOption = Annotated[
    int,
    typer.Option("--max-new-tokens", metavar="N", help="Stop an answer after this many tokens."),
]
JsonOption = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print the result as JSON on stdout; an error too.",
        is_eager=True,
        callback=remember_json,
    ),
]


def parse_k(text: str) -> int | str:
    """A scale factor or "auto".

    Raises:
        InputError: it is neither.
    """
    if text == AUTO:
        return AUTO
    is_whole = text.removeprefix("-").isdecimal()
    return check_scale_factor(int(text) if is_whole else text)
