"""An engine that runs in a thread of this process: requests go in, pieces come out.

In: what opens a schedule in the thread that owns it. Out: an engine. One thread takes requests from
a queue and calls the schedule a step at a time, so that a step is never interrupted; cancelling
takes effect between two steps. What a step does is the schedule's own.

Axes: R row, H reader hidden size.
"""

from __future__ import annotations

import asyncio
import math
import queue
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from ...errors import EngineError
from .base import Engine, NewTokens, Request

Piece = NewTokens | EngineError


@dataclass(eq=False)
class Job:
    """A request on its way.

    Attributes:
        request: what is asked.
        deliver: takes its pieces in order; an error is the last.
        cancelled: nobody waits for it any longer; any thread may say so.
    """

    request: Request
    deliver: Callable[[Piece], None]
    cancelled: bool = False


class Schedule(Protocol):
    """What runs jobs side by side; one thread alone calls it."""

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""

    def check_request(self, request: Request) -> None:
        """Raises EngineError unless the request can be taken; any thread may call it."""

    def submit(self, job: Job) -> None:
        """Takes a job."""

    def step(self) -> None:
        """Goes on with its jobs, for as long as a cancelled one may wait."""

    def close(self, error: EngineError) -> None:
        """Ends all jobs with an error, and gives back what is held."""

    def numbers(self) -> Mapping[str, float]:
        """What it counts; any thread may call it."""


class WorkerEngine(Engine):
    """Runs a schedule in a thread of its own.

    Args:
        open_schedule: is called in that thread.
    """

    def __init__(self, open_schedule: Callable[[], Schedule]) -> None:
        self._open = open_schedule
        self._inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # of `_gone`: after it is set, nothing enters the inbox
        self._gone: str | None = "it has not been started"
        self._schedule: Schedule | None = None
        self._thread: threading.Thread | None = None

    async def __aenter__(self) -> WorkerEngine:
        """Opens the schedule, and raises what that raises."""
        started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._thread = threading.Thread(
            target=self._work, args=(started,), name=f"engine {self.name}", daemon=True
        )
        self._thread.start()
        await started
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._inbox.put(None)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    async def check(self) -> None:
        if self._gone is not None:
            raise EngineError(
                f"The engine {self.name} takes no request, because {self._gone}; start it again."
            )

    def numbers(self) -> Mapping[str, float]:
        return {} if self._schedule is None else self._schedule.numbers()

    async def generate(self, request: Request) -> AsyncIterator[NewTokens]:
        await self.check()
        assert self._schedule is not None
        self._schedule.check_request(request)
        pieces: asyncio.Queue[Piece] = asyncio.Queue()
        job = Job(request, _delivery(asyncio.get_running_loop(), pieces))
        with self._lock:
            if self._gone is None:
                self._inbox.put(job)
        await self.check()
        try:
            while True:
                piece = await pieces.get()
                if isinstance(piece, EngineError):
                    raise piece
                yield piece
                if piece.finish_reason:
                    return
        finally:
            job.cancelled = True

    def _work(self, started: asyncio.Future[None]) -> None:
        """The thread's work: opens the schedule, runs what comes, closes it."""
        loop = started.get_loop()
        try:
            schedule = self._open()
        except Exception as error:  # whatever it is, who started the engine must hear of it
            loop.call_soon_threadsafe(started.set_exception, error)
            return
        self._schedule, self._gone = schedule, None
        loop.call_soon_threadsafe(started.set_result, None)
        reason = "it has been stopped"
        try:
            while self._take(schedule):
                schedule.step()
        except Exception as error:  # whatever it is, those who wait must hear of it
            reason = f"its thread failed ({type(error).__name__}: {error})"
        with self._lock:
            self._gone = reason
        self._drain(schedule)
        schedule.close(EngineError(f"The engine {self.name} gave up, because {reason}; ask again."))

    def _take(self, schedule: Schedule) -> bool:
        """Moves what came to the schedule, and waits for something while that is idle."""
        while True:
            try:
                job = self._inbox.get(block=not schedule.busy)
            except queue.Empty:
                return True
            if job is None:
                return False
            schedule.submit(job)

    def _drain(self, schedule: Schedule) -> None:
        while not self._inbox.empty():
            job = self._inbox.get()
            if job is not None:
                schedule.submit(job)


def _delivery(
    loop: asyncio.AbstractEventLoop, pieces: asyncio.Queue[Piece]
) -> Callable[[Piece], None]:
    """What puts pieces into a queue of a loop, from another thread."""

    def deliver(piece: Piece) -> None:
        try:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)
        except RuntimeError:  # the loop has been closed: nobody is left to read them
            return

    return deliver


def check_parts(request: Request, *, hidden_size: int, vocab_size: int) -> None:
    """Raises EngineError unless a model can read every part of a prompt."""
    if request.num_rows == 0:
        raise EngineError("A prompt has at least 1 row, but this one has none; give it a head.")
    for part in (part for part in request.parts if len(part)):
        low, high = (float(value) for value in part.detach().aminmax())
        sound = math.isfinite(low) and math.isfinite(high)
        if part.ndim == 2 and not (sound and part.shape[1] == hidden_size):
            raise EngineError(
                f"Rows have {hidden_size} finite numbers each for this reader, but some have "
                f"{part.shape[1]}, from {low} to {high}; make them with its own embedder."
            )
        if part.ndim == 1 and (low < 0 or high >= vocab_size):
            raise EngineError(
                f"Token ids are between 0 and {vocab_size - 1} for this reader, but they reach "
                f"from {low:.0f} to {high:.0f}; encode the text with its own tokenizer."
            )
