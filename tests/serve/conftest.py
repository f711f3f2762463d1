"""A server over the tiny reader, and an engine that runs it in the simplest way."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import make_embedder
from openai import OpenAI

from extensible_embedding import ContextStore, ExtensibleEmbedder, Reader
from extensible_embedding.serve.app import server_of
from extensible_embedding.serve.engines.base import Engine, NewTokens, Request
from extensible_embedding.serve.keys import Client, Keys
from extensible_embedding.serve.service import Service
from extensible_embedding.serve.settings import ServeSettings


class SimpleEngine(Engine):
    """Greedy tokens of the reader, one at a time; `pause_s` before each."""

    name = "simple"

    def __init__(self, reader: Reader, *, pause_s: float = 0.0) -> None:
        self.reader, self.pause_s = reader, pause_s
        self.requests: list[Request] = []
        self.running = self.closed = 0
        self.fails: Exception | None = None

    async def generate(self, request: Request) -> AsyncIterator[NewTokens]:
        self.requests.append(request)
        self.running += 1
        try:
            async for piece in self._generate(request):
                yield piece
        finally:
            self.running -= 1
            self.closed += 1

    async def _generate(self, request: Request) -> AsyncIterator[NewTokens]:
        if self.fails is not None:
            raise self.fails
        embeds = torch.cat(
            [part if part.ndim == 2 else self.reader.embed_tokens(part) for part in request.parts]
        )
        most = request.sampling.max_new_tokens
        ids = self.reader.model.generate(
            inputs_embeds=embeds[None].to(self.reader.dtype), max_new_tokens=most, do_sample=False
        )[0].tolist()
        end = self.reader.model.generation_config.eos_token_id
        for number, token in enumerate(ids):
            await asyncio.sleep(self.pause_s)
            reason = "stop" if token == end else "length" if number == len(ids) - 1 else None
            yield NewTokens(token_ids=(token,), finish_reason=reason)

    def numbers(self) -> dict[str, float]:
        return {"running": self.running, "prefix_cache_hits": 3}

    async def check(self) -> None:
        if self.fails is not None:
            raise self.fails


@pytest.fixture
def embedder(tiny_reader: Reader) -> ExtensibleEmbedder:
    return make_embedder(tiny_reader, chunk_tokens=64)


@pytest.fixture
def engine(tiny_reader: Reader) -> SimpleEngine:
    return SimpleEngine(tiny_reader)


@pytest.fixture
def store(tmp_path: Path) -> ContextStore:
    return ContextStore(tmp_path / "store")


Make = Callable[..., Service]


@pytest.fixture
def make(
    tiny_reader: Reader, embedder: ExtensibleEmbedder, engine: SimpleEngine, store: ContextStore
) -> Make:
    """A service with settings and keys of a test."""

    def make(keys: Keys | None = None, **settings: object) -> Service:
        chosen = ServeSettings(**{"max_new_tokens": 8, **settings})  # type: ignore[arg-type]
        return Service(tiny_reader, embedder, engine, store, chosen, keys)

    return make


@pytest.fixture
def service(make: Make) -> Service:
    return make()


ANYBODY = Client()


@contextmanager
def serving(service: Service) -> Iterator[str]:
    """A real server on loopback, in a thread; yields its URL."""
    server = server_of(service, "127.0.0.1", 0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not server.started:
        assert thread.is_alive()
        assert time.monotonic() < until
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        assert not thread.is_alive()


@contextmanager
def client_of(url: str, key: str = "none") -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=30) as client:
        yield client


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)
