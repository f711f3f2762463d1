"""What `ask` and `chat` show beside an answer: spans that are read raw, sentences it draws on.

Imports no torch until a question is asked.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError
from .options import AUTO

if TYPE_CHECKING:
    from ..cite import Citation
    from ..expand import SpanRanker

OFF = "off"
WORDS, ATTENTION = "words", "attention"
_SHOWN_CHARS = 300

ExpandOption = Annotated[
    str,
    typer.Option(
        "--expand",
        metavar="off|auto|N",
        help="Read the spans that matter to the question raw, beside the rows: at most N tokens, "
        "or `auto`, a third of the window, more of a small one; half of the text at most: what is "
        "raw is exact.",
    ),
]
SpansOption = Annotated[
    str,
    typer.Option(
        "--spans",
        metavar="words|attention|MODEL",
        help="How spans are chosen for --expand: by shared words (BM25), by the reader's own "
        "attention, or by an embedding model of sentence-transformers.",
    ),
]
CiteOption = Annotated[
    bool,
    typer.Option(
        "--cite",
        help="Also show where the answer comes from: the spans read raw and the rows it attended "
        "to most, with the sentences there and their bytes in the text as it was read: UTF-8, a "
        "line feed after each line.",
    ),
]


def parse_expand(text: str) -> int | str:
    """Tokens of spans, 0 for `off`, or "auto".

    Raises:
        InputError: it is none of these.
    """
    if text == OFF:
        return 0
    if text == AUTO:
        return AUTO
    if text.isdecimal() and text.isascii() and len(text) < 9:
        return int(text)
    raise InputError(
        f"--expand is a number of tokens, `auto` or `off`, but it is {text!r}; give one of these."
    )


def ranker_of(spans: str, kept_bytes: int = 0) -> SpanRanker:
    """What chooses spans.

    Args:
        spans: as the option says.
        kept_bytes: of words that are kept for the next question on the same contexts.

    Raises:
        MissingExtraError: it is an embedding model, and sentence-transformers is not installed.
    """
    from ..expand import ByAttention, ByEmbedding, ByWords

    if spans == WORDS:
        return ByWords(kept_bytes)
    return ByAttention() if spans == ATTENTION else ByEmbedding(spans)


def print_citations(citations: Sequence[Citation]) -> None:
    """A numbered paragraph for each."""
    for number, each in enumerate(citations, start=1):
        how = f"{'read raw, ' if each.raw else ''}{each.weight:.0%} of the attention to rows"
        title = f"{each.title}, " if each.title else ""
        typer.echo(f"\n[{number}] {title}bytes {each.start_byte:,} to {each.end_byte:,}, {how}:")
        quote = textwrap.shorten(each.quote, _SHOWN_CHARS, placeholder=" ...")
        typer.echo(textwrap.indent(textwrap.fill(quote, 96), "    "))
