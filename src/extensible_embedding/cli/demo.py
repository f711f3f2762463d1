"""`extensible demo`: a whole book in the small reader's window, measured against raw text."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from .ask import print_stream
from .chat import reserve_rows
from .console import load_embedder, load_reader, progress_bar, quiet_libraries, spinner, stdout
from .options import (
    RELEASED,
    EmbedderOption,
    JsonOption,
    MakingKOption,
    Models,
    parse_rows_k,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ..context import Context
    from ..embedder import ExtensibleEmbedder
    from ..reader import Reader

TITLE = "Northanger Abbey, Jane Austen"
QUESTIONS = (
    (
        "In which street in Bath do Catherine Morland and the Allens take lodgings?",
        "Pulteney Street",
    ),
    (
        "How far is Henry Tilney's own house in Woodston from Northanger Abbey?",
        "nearly twenty miles",
    ),
)
MAX_NEW_TOKENS = 48
PAGE_TOKENS = 256


def demo(
    k: MakingKOption = "32",
    embedder: EmbedderOption = RELEASED,
    as_json: JsonOption = False,
) -> None:
    """Read a whole novel with a reader whose window is far too small for it.

    Compresses the shipped book, asks two questions as `ask` does, shows what that costs against
    raw text and measures how well the reader predicts the last page. Takes minutes on two cores.
    """
    _demo(parse_rows_k(k), Models(embedder=embedder), as_json=as_json)


@quiet_libraries()
def _demo(k: int | str, models: Models, *, as_json: bool) -> None:
    loaded = load_embedder(models, load_reader(models.reader, models))
    book, seconds = _compress(loaded, k)
    asked = [_ask(loaded.reader, book, *pair, show=not as_json) for pair in QUESTIONS]
    cost = _cost(loaded.reader, book, seconds, asked)
    if not as_json:
        stdout().print(cost_table(cost))
    pages = _last_page(loaded, book)
    if as_json:
        answers = [result.as_dict() for result in asked]
        result = {"cost": cost, "answers": answers, "last_page": pages}
        typer.echo(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        stdout().print(page_table(pages))


def _compress(embedder: ExtensibleEmbedder, k: int | str) -> tuple[Context, float]:
    """The book as a context, and the seconds that it took."""
    from ..released import book_path
    from ..text import read_document

    token_ids = embedder.reader.encode(read_document(book_path()).text)
    scale_factor = auto_k(len(token_ids), embedder) if isinstance(k, str) else k
    start = time.monotonic()
    with progress_bar("Compressing the book", "tokens") as progress:
        book = embedder.compress(token_ids, k=scale_factor, title=TITLE, progress=progress)
    return book, time.monotonic() - start


def auto_k(num_tokens: int, embedder: ExtensibleEmbedder) -> int:
    """The smallest scale factor of 2 or more at which a text fits beside a question."""
    from ..prompt import smallest_k

    config = embedder.config
    k = smallest_k(
        num_tokens,
        room=embedder.reader.window - reserve_rows(embedder.reader),
        chunk_tokens=config.chunk_tokens,
        max_k=config.max_k,
    )
    return min(max(k, 2), num_tokens)  # saved raw rows could be read at k=1 alone


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question, what the reader said, and what the book says."""

    question: str
    answer: str
    in_the_book: str
    prompt_rows: int
    prompt_rows_raw: int
    span_tokens: int
    """Tokens of the passages that were read raw beside the rows."""
    ttft_s: float | None

    def as_dict(self) -> dict[str, Any]:
        """The fields for JSON."""
        return {
            "question": self.question,
            "answer": self.answer,
            "in_the_book": self.in_the_book,
            "prompt_rows": self.prompt_rows,
            "span_tokens": self.span_tokens,
            "ttft_s": self.ttft_s,
        }


def _ask(reader: Reader, book: Context, question: str, in_the_book: str, *, show: bool) -> Asked:
    from ..expand import expanded_prompt
    from ..prompt import question_prompt

    room = reader.window - MAX_NEW_TOKENS
    prompt = expanded_prompt(reader, [book], question, k=book.k, room=room)
    # A small reader may end its turn at once, and no answer at all would show nothing.
    stream = reader.reply(
        prompt, k=book.k, stream=True, max_new_tokens=MAX_NEW_TOKENS, min_new_tokens=1
    )
    if show:
        typer.echo(f"\nQuestion: {question}\nAnswer: ", nl=False)
        answer = print_stream(stream)
        typer.echo(f"(The book says: {in_the_book}.)")
    else:
        answer = "".join(stream).strip()
    return Asked(
        question=question,
        answer=answer,
        in_the_book=in_the_book,
        prompt_rows=stream.prompt_rows,
        prompt_rows_raw=question_prompt(reader, [book], question).num_rows(1),
        span_tokens=sum(map(len, prompt.spans)),
        ttft_s=stream.ttft_s,
    )


Cost = dict[str, dict[str, Any]]
"""Columns `raw_text` and `extensible`, each with the same rows."""


def _cost(reader: Reader, book: Context, embed_s: float, asked: Sequence[Asked]) -> Cost:
    """What reading the book takes; None where raw text does not fit and nothing is measured."""
    first = asked[0]
    raw_rows, rows = first.prompt_rows_raw, first.prompt_rows
    return {
        "raw_text": {
            "num_tokens": book.num_tokens,
            "num_rows": book.num_tokens,
            "k": 1,
            "span_tokens": None,
            "prompt_rows": raw_rows,
            "window_used": raw_rows / reader.window,
            "cache_bytes": raw_rows * cache_row_bytes(reader),
            "embed_s": None,
            "ttft_s": None,
            "peak_bytes": None,
        },
        "extensible": {
            "num_tokens": book.num_tokens,
            "num_rows": book.num_rows,
            "k": book.k,
            "span_tokens": first.span_tokens,
            "prompt_rows": rows,
            "window_used": rows / reader.window,
            "cache_bytes": rows * cache_row_bytes(reader),
            "embed_s": embed_s,
            "ttft_s": first.ttft_s,
            "peak_bytes": peak_bytes(),
        },
    }


def cache_row_bytes(reader: Reader) -> int:
    """Bytes of the reader's cache of keys and values for one row."""
    config = reader.model.config.get_text_config()
    heads = int(config.num_attention_heads)
    key_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    return 2 * reader.num_layers * key_heads * head_dim * reader.dtype.itemsize


def peak_bytes() -> int:
    """The most memory that this process has held so far."""
    import resource  # not on Windows, where the other commands work

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def cost_table(cost: Cost) -> Table:
    """The costs side by side."""
    raw, ours = cost["raw_text"], cost["extensible"]
    table = Table("", "raw text", "extensible", title=f"\nReading {TITLE}")
    table.add_row("tokens", f"{raw['num_tokens']:,}", f"{ours['num_tokens']:,}")
    table.add_row("rows", f"{raw['num_rows']:,}", f"{ours['num_rows']:,}")
    table.add_row("passages read raw, tokens", "-", f"{ours['span_tokens']:,}")
    table.add_row("k", str(raw["k"]), str(ours["k"]))
    table.add_row("window used", f"{raw['window_used']:.0%}", f"{ours['window_used']:.0%}")
    table.add_row("time to embed, once", "-", _seconds(ours["embed_s"]))
    missing = f"does not fit (needs {raw['prompt_rows']:,} rows)"
    table.add_row("time to first token", missing, _seconds(ours["ttft_s"]))
    table.add_row(
        "reader's cache",
        f"{_megabytes(raw['cache_bytes'])} (would need)",
        _megabytes(ours["cache_bytes"]),
    )
    table.add_row("peak memory of the process", "does not fit", _megabytes(ours["peak_bytes"]))
    return table


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


def _megabytes(value: int) -> str:
    return f"{value / 1e6:,.0f} MB"


def _last_page(embedder: ExtensibleEmbedder, book: Context) -> list[dict[str, Any]]:
    """Perplexity of the book's last tokens after ever more of what is before them."""
    from ..prompt import Prompt, language_head
    from ..raw_end import with_raw_end

    reader = embedder.reader
    before, page = book.token_ids[:-PAGE_TOKENS], book.token_ids[-PAGE_TOKENS:]
    recent = before[-(reader.window - PAGE_TOKENS - 1) :]
    head, whole = language_head(reader), book_before(embedder, book, before)
    rows = Prompt(parts=(head, whole))
    ended, coarser = with_raw_end(rows, (book.k,))
    contexts: list[tuple[str, int, Prompt, tuple[int, ...]]] = [
        ("no context", 0, Prompt(parts=(head,)), ()),
        ("raw text, as much as fits", len(recent), Prompt(parts=(head, recent)), ()),
        ("the whole book before it, compressed", len(before), rows, (book.k,)),
    ]
    if ended is not rows:
        contexts.append(("the same in as many rows, its end raw", len(before), ended, coarser))
    pages = []
    for label, num_tokens, prompt, ks in contexts:
        with spinner(f"Reading the last page after {label} ..."):
            loss = float(reader.nll(prompt.embeds(reader, ks), page).mean())
        pages.append(
            {
                "context": label,
                "num_tokens": num_tokens,
                "num_rows": prompt.num_rows(ks),
                "loss": loss,
                "perplexity": math.exp(loss),
            }
        )
    return pages


def book_before(embedder: ExtensibleEmbedder, book: Context, before: Tensor) -> Context:
    """The book before its last page: rows of whole chunks as they are, only the rest anew."""
    import torch

    whole, rest = divmod(len(before), book.chunk_tokens)
    first = int((book.row_ends() <= whole * book.chunk_tokens).sum())
    rows = book.rows[:first]
    if rest:
        rows = torch.cat([rows, embedder.chunk_rows(before[None, -rest:], book.k).to(rows)])
    return dataclasses.replace(book, rows=rows, token_ids=before, source=None)


def page_table(pages: Sequence[dict[str, Any]]) -> Table:
    """Perplexities, a row for each context."""
    title = f"\nPredicting the book's last {PAGE_TOKENS} tokens"
    table = Table("read before them", "tokens", "rows", "perplexity", title=title)
    for page in pages:
        counts = f"{page['num_tokens']:,}", f"{page['num_rows']:,}"
        table.add_row(page["context"], *counts, f"{page['perplexity']:.2f}")
    return table
