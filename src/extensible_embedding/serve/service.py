"""All that routes work with, put together: models, store, engine, threads, counters.

In: a reader, an embedder, an engine, a store and settings. Out: answers as pieces of text, and what
they took. Routes, and tools for agents, are thin around it.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from ..cite import Citation, citations
from ..context import Context
from ..embedder import ExtensibleEmbedder
from ..errors import CheckpointError, StorageError
from ..expand import ByWords
from ..reader import Reader
from ..store.manifest import settings_of
from ..store.store import ContextStore
from .chat import Draft, Planner, Ready
from .completing import Piece, in_time, text_of
from .contexts import Library
from .engines.base import Engine
from .errors import ApiError
from .keys import Client, Keys
from .limits import Slots
from .made import Made
from .metrics import Metrics
from .parsing import Parsing
from .schema import ChatRequest, CompletionRequest, Generation, UsageCounts
from .settings import ServeSettings
from .workers import Worker

LONG_CHARS = 1 << 18
"""Messages with more are read in a thread of their own: their tokens take seconds."""
_Asked = TypeVar("_Asked", bound=Generation)


@dataclass
class Answering:
    """An answer on its way; `usage` and `citations` are there when its pieces have come."""

    ready: Ready
    window: int
    """Rows of the reader's."""
    pieces: AsyncGenerator[Piece] = field(default_factory=lambda: _none())
    texts: list[str] = field(default_factory=list)
    """Of the pieces that have come."""
    num_new_tokens: int = 0
    citations: list[Citation] | None = None

    @property
    def text(self) -> str:
        """What has come so far."""
        return "".join(self.texts)

    @property
    def usage(self) -> UsageCounts:
        """Counted when it is asked for, not for each piece."""
        return self.ready.usage(self.window, self.num_new_tokens)


class Service:
    """What a server does, without HTTP.

    Args:
        reader: that plans prompts; it is not changed, and its tokenizer is copied for each thread.
        embedder: of that reader.
        engine: that runs the reader.
        store: where contexts are.
        settings: of the server.
        keys: that are known.

    Raises:
        InputError: no context of this embedder can be kept at the k of the settings.
    """

    def __init__(
        self,
        reader: Reader,
        embedder: ExtensibleEmbedder,
        engine: Engine,
        store: ContextStore,
        settings: ServeSettings | None = None,
        keys: Keys | None = None,
    ) -> None:
        self.settings = settings or ServeSettings()
        settings_of(embedder, self.settings.k, self.settings.row_type)  # raises now, not at uploads
        self.keys = keys or Keys(limits=self.settings.limits)
        self.engine, self.embedder, self.store = engine, embedder, store
        # A tokenizer changes while it works: each thread has its own, the embedder's the first.
        self.reader = _with_own_tokenizer(reader)
        self._decoding = _with_own_tokenizer(reader)
        share = self.keys.share(self.settings.max_queued)
        self.slots = Slots(self.settings.max_requests)
        self.reading = Worker("reading", self.settings.max_requests)
        self.reading_long = Worker("reading-long", self.settings.max_requests)
        self.looking = Worker("looking", self.settings.max_requests)
        self.embedding = Worker("embedder", self.settings.max_queued, share)
        self.parsing = Parsing(self.settings, share)
        self.library = Library(store, embedder, self.settings, self.looking, self.embedding)
        made, ranker = Made(self.settings.cache_bytes), ByWords(self.settings.index_bytes)
        short, long = (
            Planner(each, embedder.config, embedder.fingerprint, self.settings, made, ranker)
            for each in (self.reader, _with_own_tokenizer(reader))
        )
        self._lanes = ((self.reading, short), (self.reading_long, long))
        self._threads = (self.embedding, self.looking, self.reading_long, self.reading)
        self.metrics = Metrics(
            lambda: self.slots.running,
            {each.name: _counted(each) for each in (self.parsing, *self._threads)},
            engine.numbers,
        )
        self.created = int(time.time())
        self.failure: Exception | None = None
        """Why it does not run, for whoever started it by way of a web server."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Service]:
        """The engine runs meanwhile."""
        try:
            async with self.engine:
                yield self
        except Exception as error:
            self.failure = error
            raise
        finally:
            for thread in self._threads:
                await thread.stop()

    async def check(self) -> None:
        """Raises what would keep a request from being answered now."""
        await self.engine.check()
        folder = self.store.place.folder
        there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        if not os.access(there, os.W_OK):
            raise StorageError(
                f"A store is a folder that can be written, but {str(folder)!r} cannot; change its "
                "permissions."
            )

    async def chat(
        self, client: Client, request: ChatRequest, *, start: float | None = None
    ) -> Answering:
        """Answers messages.

        Args:
            client: that asks.
            request: what it asks.
            start: when it asked, by `time.monotonic`.

        Raises:
            ApiError, InputError, WindowError: it cannot be answered, and why.
        """
        size = sum(len(message.text) for message in request.messages)
        return await self._answering(client, request, Planner.chat, size, start)

    async def complete(
        self, client: Client, request: CompletionRequest, *, start: float | None = None
    ) -> Answering:
        """Goes on with a text; else as `chat`."""
        return await self._answering(client, request, Planner.completion, len(request.text), start)

    async def _answering(
        self,
        client: Client,
        request: _Asked,
        plan: Callable[[Planner, _Asked, Sequence[Context]], Draft],
        size: int,
        start: float | None,
    ) -> Answering:
        """An answer to a request with so many characters."""
        start = time.monotonic() if start is None else start
        until = start + self.settings.request_timeout_s
        with in_time(until, self.settings.request_timeout_s):
            try:
                ready = await self._ready(client, request, plan, size)
            except CheckpointError:  # as a rule a context that was replaced while it was read
                ready = await self._ready(client, request, plan, size)
        answering = Answering(ready=ready, window=self.reader.window)
        usage = answering.usage
        self.metrics.prompt_rows.observe(usage.extensible.rows)
        self.metrics.prompt_k.observe(usage.extensible.k)
        self.metrics.prompt_tokens.inc(usage.prompt_tokens)
        answering.pieces = self._pieces(answering, request, start, until)
        return answering

    async def _ready(
        self,
        client: Client,
        request: _Asked,
        plan: Callable[[Planner, _Asked, Sequence[Context]], Draft],
        size: int,
    ) -> Ready:
        """A prompt with all of its rows; long messages wait for long ones alone."""
        thread, planner = self._lanes[size > LONG_CHARS]
        names = request.extensible.contexts
        draft = await thread.run(
            lambda: plan(planner, request, self.library.open(client, names) if names else []),
            client,
        )
        made = [await self._rows(client, context) for context in draft.missing]
        return await thread.run(lambda: planner.finish(draft, made), client)

    async def _rows(self, client: Client, context: Context) -> Context:
        """A context with the rows of its tokens."""
        made = await self.embedding.run_stoppable(
            lambda progress: self.embedder.compress(
                context.token_ids, k=context.k, title=context.title, progress=progress
            ),
            client,
        )
        self.metrics.embedded_tokens.inc(context.num_tokens)
        return made

    async def _pieces(
        self, answering: Answering, request: Generation, start: float, until: float
    ) -> AsyncGenerator[Piece]:
        """Pieces of an answer, which it takes with it; counted as they come."""
        pieces = text_of(
            self.engine,
            answering.ready.request,
            self._decoding,
            request.stops,
            until,
            self.settings.request_timeout_s,
        )
        try:
            async for piece in pieces:
                if not answering.num_new_tokens:
                    self.metrics.first_token.observe(time.monotonic() - start)
                self.metrics.new_tokens.inc(piece.num_tokens - answering.num_new_tokens)
                answering.num_new_tokens = piece.num_tokens
                answering.texts.append(piece.text)
                if piece.finish_reason and request.extensible.cite:
                    answering.citations = await self._citations(answering)
                yield piece
        finally:
            await pieces.aclose()

    async def _citations(self, answering: Answering) -> list[Citation] | None:
        """Needs the reader itself, hence the thread that runs models; none where too many wait.

        The answer is there by then, and worth more than where it comes from.
        """
        try:
            return await self.embedding.run(
                lambda: citations(self.embedder.reader, answering.ready.plan, answering.text)
            )
        except ApiError:
            return None


async def _none() -> AsyncGenerator[Piece]:
    return
    yield


def _with_own_tokenizer(reader: Reader) -> Reader:
    return Reader(
        reader.model, copy.deepcopy(reader.tokenizer), window=reader.window, name=reader.name
    )


def _counted(worker: Worker | Parsing) -> Callable[[], float]:
    return lambda: worker.jobs
