"""What a second question on a stored context costs on the engine of transformers.

In one run, on one engine, the time to the first token of (1) a question on a text of `--tokens` raw
tokens, (2) the first question on rows of that text, which were computed before, and (3) other
questions on the same rows, whose keys and values the engine has kept. The reader's window is made
large enough for the raw text, for timing alone: what it would answer there is not looked at.

    python benchmarks/engine_prefix.py --tokens 8192 --k 8 --json prefix.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from extensible_embedding import ExtensibleEmbedder, Reader, released_embedder
from extensible_embedding.context import Context
from extensible_embedding.prompt import question_prompt
from extensible_embedding.serve.engines.base import Request, Sampling
from extensible_embedding.serve.engines.transformers import TransformersEngine
from extensible_embedding.serve.engines.transformers_schedule import TransformersSettings
from extensible_embedding.text import read_document

BOOK = Path(__file__).parent.parent / "src/extensible_embedding/assets/northanger-abbey.txt"
QUESTIONS = (
    "Who is the heroine?",
    "Where does she travel?",
    "Whom does she meet there?",
    "What does she read?",
    "How does it end?",
)
ROOM = 256
"""Rows for a question, its template and the answer."""
WARM_UP = 512
"""Tokens that are read before anything is measured."""


def main() -> None:
    """Runs the benchmark."""
    options = arguments()
    reader = Reader.from_pretrained(window=options.tokens + ROOM)
    embedder = released_embedder(reader)
    context, short = (embed(embedder, count, options.k) for count in (options.tokens, WARM_UP))
    result = {
        "tokens": options.tokens,
        "k": options.k,
        "rows": context.num_rows,
        "prefill_rows": options.prefill_rows,
        "dtype": str(reader.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        **asyncio.run(measure(reader, context, short, options.prefill_rows)),
    }
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=8192, help="of the text")
    parser.add_argument("--k", type=int, default=8, help="scale factor of its rows")
    parser.add_argument("--prefill-rows", type=int, default=256, help="that are read at once")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def embed(embedder: ExtensibleEmbedder, num_tokens: int, k: int) -> Context:
    """Rows of a novel's first tokens; a novel that is too short begins again."""
    ids = embedder.reader.encode(read_document(BOOK).text)
    return embedder.compress(ids.repeat(-(-num_tokens // len(ids)))[:num_tokens], k=k)


async def measure(
    reader: Reader, context: Context, short: Context, prefill_rows: int
) -> dict[str, float]:
    """Seconds to the first token, and their ratios; a short context warms the engine up."""
    settings = TransformersSettings(prefill_rows=prefill_rows, prefix_cache_bytes=4 << 30)
    async with TransformersEngine(reader, settings) as engine:
        await ttft(engine, ask(reader, short, QUESTIONS[0], 1))
        raw = await ttft(engine, ask(reader, context, QUESTIONS[0], 1))
        first, *others = [
            await ttft(engine, ask(reader, context, question, context.k)) for question in QUESTIONS
        ]
        kept = engine.numbers()
    second = statistics.median(others)
    return {
        "raw_s": raw,
        "first_s": first,
        "second_s": second,
        "second_min_s": min(others),
        "second_max_s": max(others),
        "raw_over_first": raw / first,
        "first_over_second": first / second,
        "raw_over_second": raw / second,
        "rows_reused": kept["prefix_cache_rows_reused"],
        "prefix_cache_bytes": kept["prefix_cache_bytes"],
    }


def ask(reader: Reader, context: Context, question: str, k: int) -> Request:
    """A question on a context that others are likely to ask about, too."""
    parts = tuple(question_prompt(reader, [context], question).tensors(reader, k))
    sampling = Sampling(max_new_tokens=1)
    return Request(parts=parts, num_shared=len(parts) - 1, sampling=sampling)


async def ttft(engine: TransformersEngine, request: Request) -> float:
    """Seconds to the first token."""
    start = time.perf_counter()
    async for _ in engine.generate(request):
        break
    return time.perf_counter() - start


def show(result: dict[str, float]) -> None:
    """Prints a table."""
    table = Table("", "time to first token", "of the raw read")
    for what, key in (
        (f"{result['tokens']} raw tokens", "raw_s"),
        (f"{result['rows']} stored rows, first question", "first_s"),
        ("the same rows, another question (median)", "second_s"),
    ):
        table.add_row(what, f"{result[key]:.2f} s", f"1/{result['raw_s'] / result[key]:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
