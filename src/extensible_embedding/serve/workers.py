"""Threads beside the event loop, each with its queue.

In: a function that takes long. Out: what it returns, awaited. One thread does one thing at a time:
a tokenizer is used by one alone, and a store is changed by one alone.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from .limits import busy

_Value = TypeVar("_Value")


class Stopped(Exception):
    """Raised inside of a job that nobody waits for any more."""


class Worker:
    """One thread.

    Args:
        name: for people who look at threads.
        most: jobs that run or wait.
    """

    def __init__(self, name: str, most: int) -> None:
        self.name, self.most, self.jobs = name, most, 0
        self._progress = ("", 0, 0)
        """Of the job that runs: whose it is, how much of how much is done."""
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)

    async def run(self, job: Callable[[], _Value]) -> _Value:
        """Does a job in the thread, after those that came before.

        Raises:
            ApiError: 429, too many wait.
        """
        if self.jobs >= self.most:
            raise busy(f"{self.most} jobs at most wait for the {self.name}")
        loop = asyncio.get_running_loop()
        self.jobs += 1
        future = self._pool.submit(self._begin, job)
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._done))
        return await asyncio.wrap_future(future)

    def progress_of(self, owner: str) -> tuple[int, int]:
        """How much of how much is done of the job that runs; (0, 0) if it is not the owner's."""
        name, done, total = self._progress
        return (done, total) if name == owner else (0, 0)

    async def run_stoppable(
        self, job: Callable[[Callable[[int, int], None]], _Value], owner: str
    ) -> _Value:
        """Does a job that reports progress, and ends at its next report if nobody waits for it."""
        left = threading.Event()

        def progress(done: int, total: int) -> None:
            if left.is_set():
                raise Stopped
            self._progress = (owner, done, total)

        try:
            return await self.run(lambda: job(progress))
        except asyncio.CancelledError:
            left.set()
            raise

    async def stop(self) -> None:
        """Ends the thread after the job that runs; those that wait are dropped."""
        await asyncio.to_thread(self._pool.shutdown, cancel_futures=True)

    def _begin(self, job: Callable[[], _Value]) -> _Value:
        try:
            return job()
        finally:
            self._progress = ("", 0, 0)

    def _done(self) -> None:
        self.jobs -= 1
