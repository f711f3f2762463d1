"""Many clients at once: no error, flat memory, and what the server costs beside its engine.

In: how many clients, how long, what they ask, which engine. Out: answers by kind, errors, time to
the first token, tokens a second, and the memory of the server's process over time.

    python benchmarks/serve_load.py --clients 64 --minutes 10 --json out.json
    python benchmarks/serve_load.py --mix one --alone-minutes 1

What is asked is in `serve_mix`. With `--mix one` all ask the same, and the engine alone is asked
that too. The engine `echo` gives tokens at a fixed pace without a model: what is left is the server
itself, the embedder, and the plans of prompts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import torch
from serve_mix import BOOK, MIXES, QUESTION, MixedClient, Tally

from extensible_embedding import ContextStore, ExtensibleEmbedder, Reader
from extensible_embedding.released import RELEASED_FOLDER
from extensible_embedding.serve.app import server_of
from extensible_embedding.serve.choice import EngineChoice, choose_engine
from extensible_embedding.serve.engines.base import Engine, NewTokens, Request, Sampling
from extensible_embedding.serve.service import Service
from extensible_embedding.serve.settings import Limits, ServeSettings

LONG_CHARS = 8
"""For each row of the window: a token of English has about four."""


class Echo(Engine):
    """The same tokens for every request, at a pace of their own, as a fast engine gives them.

    Args:
        token: that is given.
        pause_s: between tokens.
    """

    name = "echo"

    def __init__(self, token: int, pause_s: float) -> None:
        self.token, self.pause_s = token, pause_s

    async def generate(self, request: Request) -> AsyncIterator[NewTokens]:
        """Tokens up to the most that were asked for."""
        most = request.sampling.max_new_tokens
        for number in range(1, most + 1):
            await asyncio.sleep(self.pause_s)
            reason = "length" if number == most else None
            yield NewTokens(token_ids=(self.token,), finish_reason=reason)


def models(options: argparse.Namespace) -> tuple[Reader, ExtensibleEmbedder, Engine]:
    """The reader, its embedder and the engine."""
    reader = Reader.from_pretrained(options.reader, window=options.window)
    embedder = ExtensibleEmbedder.from_pretrained(options.embedder, reader)
    if options.engine == "echo":
        token = int(reader.encode(" heroine")[0])
        return reader, embedder, Echo(token, options.pause_ms / 1000)
    return (
        reader,
        embedder,
        choose_engine(EngineChoice(name=options.engine), reader, options.reader),
    )


def serve(options: argparse.Namespace, store: str, port: Any) -> None:
    """The server's process; says its port when it is ready."""
    torch.set_num_threads(1)
    reader, embedder, engine = models(options)
    most = 4 * options.clients
    settings = ServeSettings(max_requests=most, k=16, limits=Limits(max_concurrent=most))
    service = Service(reader, embedder, engine, ContextStore(store), settings)
    text = options.text.read_text(encoding="utf-8")[: options.characters]
    service.store.add(BOOK, text, embedder, k=16)
    server = server_of(service, "127.0.0.1", 0)
    threading.Thread(target=_tell, args=(server, port), daemon=True).start()
    server.run()


def _tell(server: Any, port: Any) -> None:
    while not server.started:
        time.sleep(0.05)
    port.put(server.servers[0].sockets[0].getsockname()[1])


async def through_server(url: str, options: argparse.Namespace, seconds: float) -> Tally:
    """All clients, each asking again and again."""
    tally, end = Tally(), time.monotonic() + seconds
    text = options.text.read_text(encoding="utf-8")
    long_chars = LONG_CHARS * options.window
    limits = httpx2.Limits(max_connections=options.clients)
    async with httpx2.AsyncClient(base_url=url, timeout=600, limits=limits) as http:

        async def one(number: int) -> None:
            client = MixedClient(
                http, number, options.mix, text, long_chars, options.new_tokens, tally
            )
            while time.monotonic() < end:
                await client.ask()

        start = time.monotonic()
        await asyncio.gather(*(one(number) for number in range(options.clients)))
        tally.took_s = time.monotonic() - start
    return tally


async def engine_alone(options: argparse.Namespace, seconds: float, store: str) -> Tally:
    """The requests of the mix `one` to the engine, without a server."""
    from extensible_embedding.prompt import question_prompt
    from extensible_embedding.store.reading import lazy_context

    torch.set_num_threads(1)
    reader, _, engine = models(options)
    context = lazy_context(ContextStore(store).open(BOOK))
    plan = reader.plan(question_prompt(reader, [context], QUESTION), "auto", options.new_tokens)
    parts = tuple(part for part in plan.prompt.tensors(reader, plan.ks) if len(part))
    sampling = Sampling(max_new_tokens=options.new_tokens)
    request = Request(parts=parts, num_shared=len(parts) - 1, sampling=sampling)
    tally = Tally()

    async def one() -> None:
        while time.monotonic() < end:
            async for piece in engine.generate(request):
                tally.tokens += len(piece.token_ids)
            tally.answers["contexts"] += 1

    async with engine:
        start = time.monotonic()
        end = start + seconds
        await asyncio.gather(*(one() for _ in range(options.clients)))
        tally.took_s = time.monotonic() - start
    return tally


def memory_mib(process: int) -> float:
    """Memory of a process, on Linux."""
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def watch(process: int, every_s: float, readings: list[float], stop: threading.Event) -> None:
    """Reads its memory until told to stop."""
    while not stop.wait(every_s):
        with suppress(OSError):
            readings.append(round(memory_mib(process), 1))


def main() -> None:
    """Serves, asks, and says what was seen."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--mix", choices=list(MIXES), default="mixed", help="what is asked")
    parser.add_argument("--alone-minutes", type=float, default=1.0, help="with --mix one")
    parser.add_argument("--engine", default="echo", help="echo, or one of `extensible serve`")
    parser.add_argument("--pause-ms", type=float, default=50.0, help="of echo, between tokens")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--characters", type=int, default=20_000, help="of the context")
    parser.add_argument("--window", type=int, default=1024, help="rows of the reader's")
    parser.add_argument("--reader", default="default")
    parser.add_argument("--embedder", default=str(RELEASED_FOLDER))
    parser.add_argument(
        "--text",
        type=Path,
        default=Path(RELEASED_FOLDER).parent / "northanger-abbey.txt",
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as store:
        result = measure(options, store)
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    sys.exit(1 if result["errors"] else 0)


def measure(options: argparse.Namespace, store: str) -> dict[str, Any]:
    """The server, and with `one` its engine alone after it."""
    context = multiprocessing.get_context("spawn")
    port = context.Queue()
    process = context.Process(target=serve, args=(options, store, port))
    process.start()
    assert process.pid is not None
    readings: list[float] = []
    stop = threading.Event()
    seconds = 60 * options.minutes
    try:
        url = f"http://127.0.0.1:{port.get(timeout=1200)}"
        watched = threading.Thread(
            target=watch, args=(process.pid, max(1.0, seconds / 60), readings, stop)
        )
        watched.start()
        tally = asyncio.run(through_server(url, options, seconds))
        stop.set()
        watched.join()
    finally:
        process.terminate()
        process.join(60)
    result = {
        "clients": options.clients,
        "minutes": round(tally.took_s / 60, 2),
        "engine": options.engine,
        "mix": options.mix,
        "answers": dict(tally.answers),
        "errors": dict(tally.errors),
        "told_to_wait": tally.told_to_wait,
        "tokens_per_s": round(tally.tokens_per_s, 1),
        "first_token_s": _spread(tally.first_s),
        "memory_mib": readings,
        "memory_growth_mib": growth(readings),
        "cores": os.cpu_count(),
    }
    if options.mix == "one":
        alone = asyncio.run(engine_alone(options, 60 * options.alone_minutes, store))
        result["engine_alone_tokens_per_s"] = round(alone.tokens_per_s, 1)
        result["overhead"] = round(1 - tally.tokens_per_s / alone.tokens_per_s, 4)
    return result


def growth(readings: list[float]) -> float | None:
    """From the second quarter of the time to the last one; the first fills what is kept."""
    quarter = len(readings) // 4
    if not quarter:
        return None
    before, after = readings[quarter : 2 * quarter], readings[-quarter:]
    return round(statistics.median(after) - statistics.median(before), 1)


def _spread(seconds: list[float]) -> dict[str, float]:
    """Of streamed answers: the median, and what 19 of 20 had."""
    if len(seconds) < 2:
        return {}
    cuts = statistics.quantiles(seconds, n=20)
    return {"median": round(statistics.median(seconds), 3), "p95": round(cuts[-1], 3)}


if __name__ == "__main__":
    main()
