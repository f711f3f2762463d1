"""How fast llama.cpp reads and answers, against transformers, on the same prompts and threads.

The embedded reader is a 4-bit GGUF file: llama.cpp multiplies it as it is, transformers its
de-quantised weights. Each length is measured in turn on both engines, through the contract that
servers use: rows of the tokens of a novel go in, the time to the first token is prefill, and the
tokens after it are decoding. Nothing is shared, so that no prefix is kept. Seconds are those of the
clock and of the processor: the latter are what counts beside other work, with one thread.

    python benchmarks/engine_llama_cpp.py --num-rows 512 2048 --repeats 3 --json out.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from importlib.resources import files
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from extensible_embedding import Reader
from extensible_embedding.loading import embedded_reader
from extensible_embedding.serve.engines.base import Engine, Request, Sampling
from extensible_embedding.serve.engines.llama_cpp import LlamaCppEngine, LlamaSettings
from extensible_embedding.serve.engines.transformers import TransformersEngine


def main() -> None:
    """Runs the benchmark."""
    options = arguments()
    torch.set_num_threads(options.threads)
    reader = Reader.from_pretrained()
    samples = asyncio.run(measure(reader, options))
    result = {
        "processor": platform.processor() or platform.machine(),
        "threads": options.threads,
        "dtype": str(reader.dtype),
        "new_tokens": options.new_tokens,
        "repeats": options.repeats,
        "samples": samples,
    }
    show(samples)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-rows", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--gguf", type=Path, help="another quantisation of the embedded reader")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


async def measure(reader: Reader, options: argparse.Namespace) -> list[dict[str, float | str]]:
    """One sample for each engine, length and repeat; engines in turn."""
    cells = max(options.num_rows) + options.new_tokens
    settings = LlamaSettings(num_cells=cells, num_requests=1, num_threads=options.threads)
    file = options.gguf or Path(*embedded_reader())
    samples = []
    async with AsyncExitStack() as started:
        engines: Sequence[Engine] = [
            await started.enter_async_context(TransformersEngine(reader)),
            await started.enter_async_context(LlamaCppEngine(file, settings)),
        ]
        for engine in engines:
            await sample(engine, request(reader, 64, 4, start=0))  # what is done once, is done
        for repeat in range(options.repeats):
            for num_rows in options.num_rows:
                asked = request(reader, num_rows, options.new_tokens, start=repeat * num_rows)
                for engine in engines:
                    found = await sample(engine, asked)
                    samples.append({"engine": engine.name, "num_rows": num_rows, **found})
    return samples


def request(reader: Reader, num_rows: int, new_tokens: int, *, start: int) -> Request:
    """The novel from a place on: eight raw tokens, and rows."""
    path = files("extensible_embedding") / "assets" / "northanger-abbey.txt"
    ids = reader.encode(path.read_text(encoding="utf-8")[: 8 * (start + num_rows)])
    ids = ids[start : start + num_rows]
    parts = (ids[:8], reader.embed_tokens(ids[8:]))
    return Request(parts=parts, sampling=Sampling(max_new_tokens=new_tokens))


async def sample(engine: Engine, asked: Request) -> dict[str, float]:
    """Rows a second until the first token, and tokens a second after it."""
    clock, processor = [time.perf_counter()], [time.process_time()]
    async for piece in engine.generate(asked):
        clock += [time.perf_counter()] * len(piece.token_ids)
        processor += [time.process_time()] * len(piece.token_ids)
    found: dict[str, float] = {"num_new": len(clock) - 1}
    for name, times in (("", clock), ("_cpu", processor)):
        found[f"prefill{name}"] = asked.num_rows / (times[1] - times[0])
        found[f"decode{name}"] = (len(times) - 2) / max(times[-1] - times[1], 1e-9)
    return found


def show(samples: list[dict[str, float | str]]) -> None:
    """Prints medians."""
    keys = ("prefill", "decode", "prefill_cpu", "decode_cpu")
    table = Table("engine", "rows", "prefill/s", "decoding/s", "prefill/CPU s", "decoding/CPU s")
    for num_rows in sorted({int(each["num_rows"]) for each in samples}):
        for name in dict.fromkeys(str(each["engine"]) for each in samples):
            of = [s for s in samples if (s["engine"], s["num_rows"]) == (name, num_rows)]
            medians = [statistics.median(float(s[key]) for s in of) for key in keys]
            table.add_row(name, str(num_rows), *(f"{median:.1f}" for median in medians))
    Console().print(table)


if __name__ == "__main__":
    main()
