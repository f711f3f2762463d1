"""Threads beside the event loop, each with its queue.

In: a function that takes long, and whose it is. Out: what it returns, awaited. One thread does one
thing at a time: a tokenizer is used by one alone, and a store is changed by one alone. Who asks for
much waits longest: the queue goes round those that wait.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from .keys import Client
from .limits import busy

_Value = TypeVar("_Value")
_Waiting = tuple["Future[Any]", Callable[[], Any]]


class Stopped(Exception):
    """Raised inside of a job that nobody waits for any more."""


class Worker:
    """One thread.

    Args:
        name: for people who look at threads.
        most: jobs that run or wait.
        share: of these, the most of one key; by default all.
    """

    def __init__(self, name: str, most: int, share: int | None = None) -> None:
        self.name, self.most, self.jobs = name, most, 0
        self.share = most if share is None else share
        self._progress = ("", 0, 0)
        """Of the job that runs: whose it is, how much of how much is done."""
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._of_key: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, deque[_Waiting]] = OrderedDict()
        """By whose they are; the first one's next job comes next."""

    async def run(
        self, job: Callable[[], _Value], client: Client | None = None, *, first: bool = False
    ) -> _Value:
        """Does a job in the thread, in turn with those of other clients.

        Args:
            job: to be done.
            client: whose it is; the server's own, if nobody's.
            first: before all that wait, and however many these are.

        Raises:
            ApiError: 429, too many wait.
        """
        owner = _owner(client)
        if not first:
            self.check(client)
        loop = asyncio.get_running_loop()
        future: Future[_Value] = Future()
        self.jobs += 1
        self._of_key[owner] += 1
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._done, owner))
        with self._lock:
            self._put(owner, (future, job), first)
        self._pool.submit(self._do_next)
        return await asyncio.wrap_future(future)

    def check(self, client: Client | None = None) -> None:
        """Raises ApiError, 429, if no job of this client could wait now."""
        if self.jobs >= self.most:
            raise busy(f"{self.most} jobs at most wait for the {self.name}")
        if self._of_key[_owner(client)] >= self.share:
            raise busy(f"{self.share} jobs of a key at most wait for the {self.name}")

    def progress_of(self, owner: str) -> tuple[int, int]:
        """How much of how much is done of the job that runs; (0, 0) if it is not the owner's."""
        name, done, total = self._progress
        return (done, total) if name == owner else (0, 0)

    async def run_stoppable(
        self, job: Callable[[Callable[[int, int], None]], _Value], client: Client
    ) -> _Value:
        """Does a job that reports progress, and ends at its next report if nobody waits for it."""
        left = threading.Event()

        def progress(done: int, total: int) -> None:
            if left.is_set():
                raise Stopped
            self._progress = (client.name, done, total)

        try:
            return await self.run(lambda: job(progress), client)
        except asyncio.CancelledError:
            left.set()
            raise

    async def stop(self) -> None:
        """Ends the thread after the job that runs; those that wait are dropped."""
        with self._lock:
            waiting = [future for queue in self._waiting.values() for future, _ in queue]
            self._waiting.clear()
        for future in waiting:
            future.cancel()
        await asyncio.to_thread(self._pool.shutdown, cancel_futures=True)

    def _put(self, owner: str, waiting: _Waiting, first: bool) -> None:
        queue = self._waiting.setdefault(owner, deque())
        if first:
            queue.appendleft(waiting)
            self._waiting.move_to_end(owner, last=False)
        else:
            queue.append(waiting)

    def _do_next(self) -> None:
        """Does the next job of whoever is first, who is then last."""
        with self._lock:
            if not self._waiting:  # stopped
                return
            owner, queue = next(iter(self._waiting.items()))
            future, job = queue.popleft()
            if queue:
                self._waiting.move_to_end(owner)
            else:
                del self._waiting[owner]
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(job())
        except BaseException as error:  # told to whoever waits, whatever it is
            future.set_exception(error)
        finally:
            self._progress = ("", 0, 0)

    def _done(self, owner: str) -> None:
        self.jobs -= 1
        self._of_key[owner] -= 1
        if not self._of_key[owner]:
            del self._of_key[owner]


def _owner(client: Client | None) -> str:
    return client.name if client is not None else ""
