"""Many clients at once: no error, flat memory, and what the server costs beside its engine.

In: how many clients, how long, which engine. Out: answers, errors, tokens a second through the
server and through the engine alone in turn, and the memory of the server's process over time.

    python benchmarks/serve_load.py --clients 64 --minutes 10 --json out.json

The engine `echo` gives tokens at a fixed pace without a model: what is left is the server itself.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import torch

from extensible_embedding import ContextStore, ExtensibleEmbedder, Reader
from extensible_embedding.released import RELEASED_FOLDER
from extensible_embedding.serve.app import server_of
from extensible_embedding.serve.choice import EngineChoice, choose_engine
from extensible_embedding.serve.engines.base import Engine, NewTokens, Request, Sampling
from extensible_embedding.serve.service import Service
from extensible_embedding.serve.settings import ServeSettings

QUESTION = "Who is the heroine, and where does she live?"


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


@dataclass
class Tally:
    """What came back."""

    answers: int = 0
    tokens: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    first_s: list[float] = field(default_factory=list)
    took_s: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        """From the first request to the last answer."""
        return self.tokens / self.took_s

    def failed(self, what: str) -> None:
        """Counts an error."""
        self.errors[what] = self.errors.get(what, 0) + 1


def models(options: argparse.Namespace) -> tuple[Reader, ExtensibleEmbedder, Engine]:
    """The reader, its embedder and the engine."""
    reader = Reader.from_pretrained(options.reader)
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
    settings = ServeSettings(max_requests=4 * options.clients, k=16)
    service = Service(reader, embedder, engine, ContextStore(store), settings)
    text = options.text.read_text(encoding="utf-8")[: options.characters]
    service.store.add("book", text, embedder, k=16)
    server = server_of(service, "127.0.0.1", 0)
    threading.Thread(target=_tell, args=(server, port), daemon=True).start()
    server.run()


def _tell(server: Any, port: Any) -> None:
    while not server.started:
        time.sleep(0.05)
    port.put(server.servers[0].sockets[0].getsockname()[1])


async def ask(client: httpx2.AsyncClient, options: argparse.Namespace, tally: Tally) -> None:
    """One streamed question, to its end."""
    body = {
        "model": "extensible",
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": options.new_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        "extensible": {"contexts": ["book"]},
    }
    start, first, usage = time.monotonic(), None, None
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            tally.failed(str(answer.status_code))
            return
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                tally.failed(event["error"]["message"])
                return
            if any(choice["delta"].get("content") for choice in event["choices"]):
                first = first or time.monotonic() - start  # the first event names the role alone
            usage = event.get("usage") or usage
    if usage is None:
        tally.failed("no usage")
        return
    tally.answers += 1
    tally.tokens += usage["completion_tokens"]
    tally.first_s.append(first or 0.0)


async def through_server(url: str, options: argparse.Namespace, seconds: float) -> Tally:
    """All clients, each asking again and again."""
    tally, end = Tally(), time.monotonic() + seconds
    limits = httpx2.Limits(max_connections=options.clients)
    async with httpx2.AsyncClient(base_url=url, timeout=600, limits=limits) as client:

        async def one() -> None:
            while time.monotonic() < end:
                try:
                    await ask(client, options, tally)
                except httpx2.HTTPError as error:
                    tally.failed(type(error).__name__)

        start = time.monotonic()
        await asyncio.gather(*(one() for _ in range(options.clients)))
        tally.took_s = time.monotonic() - start
    return tally


async def engine_alone(options: argparse.Namespace, seconds: float, store: str) -> Tally:
    """The same requests to the engine, without a server."""
    from extensible_embedding.prompt import question_prompt
    from extensible_embedding.store.reading import lazy_context

    torch.set_num_threads(1)
    reader, _, engine = models(options)
    context = lazy_context(ContextStore(store).open("book"))
    plan = reader.plan(question_prompt(reader, [context], QUESTION), "auto", options.new_tokens)
    parts = tuple(part for part in plan.prompt.tensors(reader, plan.ks) if len(part))
    sampling = Sampling(max_new_tokens=options.new_tokens)
    request = Request(parts=parts, num_shared=len(parts) - 1, sampling=sampling)
    tally = Tally()

    async def one() -> None:
        while time.monotonic() < end:
            async for piece in engine.generate(request):
                tally.tokens += len(piece.token_ids)
            tally.answers += 1

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
    parser.add_argument("--alone-minutes", type=float, default=1.0)
    parser.add_argument("--engine", default="echo", help="echo, or one of `extensible serve`")
    parser.add_argument("--pause-ms", type=float, default=50.0, help="of echo, between tokens")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--characters", type=int, default=20_000, help="of the context")
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
    """The server first, then its engine alone."""
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
    alone = asyncio.run(engine_alone(options, 60 * options.alone_minutes, store))
    return {
        "clients": options.clients,
        "minutes": round(tally.took_s / 60, 2),
        "engine": options.engine,
        "answers": tally.answers,
        "errors": tally.errors,
        "tokens_per_s": round(tally.tokens_per_s, 1),
        "engine_alone_tokens_per_s": round(alone.tokens_per_s, 1),
        "overhead": round(1 - tally.tokens_per_s / alone.tokens_per_s, 4),
        "median_first_token_s": round(statistics.median(tally.first_s or [0.0]), 3),
        "memory_mib": readings,
        "cores": os.cpu_count(),
    }


if __name__ == "__main__":
    main()
