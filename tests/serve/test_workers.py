"""Threads with a queue: who waits how long."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine

import pytest

from extensible_embedding.serve.errors import ApiError
from extensible_embedding.serve.keys import Client
from extensible_embedding.serve.workers import Worker

ALICE, BOB = Client(name="alice"), Client(name="bob")


class Gated:
    """A worker whose first job waits until it is let go; the others say that they ran."""

    def __init__(self, most: int = 16) -> None:
        self.worker = Worker("test", most, most // 2)
        self.go, self.ran = threading.Event(), list[str]()
        self.tasks: list[asyncio.Task[None]] = []

    async def begin(self) -> None:
        """Starts the job that all others wait for."""
        started = threading.Event()

        def first() -> None:
            started.set()
            self.go.wait(10)

        self._start(self.worker.run(first, ALICE))
        await asyncio.to_thread(started.wait, 10)

    async def ask(self, name: str, client: Client | None, *, first: bool = False) -> None:
        """A job waits."""
        self._start(self.worker.run(lambda: self.ran.append(name), client, first=first))
        await asyncio.sleep(0)

    async def end(self) -> list[str]:
        """Lets all run: in which order they did."""
        self.go.set()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.worker.stop()
        return self.ran

    def _start(self, work: Coroutine[None, None, None]) -> None:
        self.tasks.append(asyncio.ensure_future(work))


def ran(test: Callable[[Gated], Coroutine[None, None, None]], most: int = 16) -> list[str]:
    """What ran, in order, when a test has asked while another job ran."""

    async def run() -> list[str]:
        gated = Gated(most)
        await gated.begin()
        await test(gated)
        return await gated.end()

    return asyncio.run(run())


def test_a_key_with_many_jobs_waits_for_one_with_few() -> None:
    async def test(gated: Gated) -> None:
        for number in range(3):
            await gated.ask(f"alice {number}", ALICE)
        await gated.ask("bob", BOB)
        await gated.ask("server", None)

    assert ran(test) == ["alice 0", "bob", "server", "alice 1", "alice 2"]


def test_jobs_of_one_client_keep_their_order() -> None:
    async def test(gated: Gated) -> None:
        for number in range(4):
            await gated.ask(str(number), None)

    assert ran(test) == ["0", "1", "2", "3"]


def test_a_key_has_its_share_of_the_places_and_others_the_rest() -> None:
    async def test(gated: Gated) -> None:
        await gated.ask("alice", ALICE)
        with pytest.raises(ApiError, match="2 jobs of a key at most wait for the test"):
            await gated.worker.run(lambda: None, ALICE)
        await gated.ask("bob", BOB)
        await gated.ask("server", None)
        with pytest.raises(ApiError, match="4 jobs at most wait for the test"):
            await gated.worker.run(lambda: None, BOB)
        assert gated.worker.jobs == 4

    assert ran(test, 4) == ["alice", "bob", "server"]


def test_what_goes_first_waits_for_the_job_that_runs_alone() -> None:
    async def test(gated: Gated) -> None:
        await gated.ask("bob", BOB)
        await gated.ask("delete", ALICE, first=True)

    assert ran(test, 2) == ["delete", "bob"]


def test_a_job_that_nobody_waits_for_is_not_done() -> None:
    async def test(gated: Gated) -> None:
        await gated.ask("left", BOB)
        gated.tasks[-1].cancel()
        await gated.ask("stayed", BOB)
        await asyncio.sleep(0)
        assert gated.worker.jobs == 2

    assert ran(test) == ["stayed"]


def test_jobs_that_wait_when_the_thread_stops_are_dropped() -> None:
    async def run() -> None:
        gated = Gated()
        await gated.begin()
        await gated.ask("never", BOB)
        stopping = asyncio.ensure_future(gated.worker.stop())
        await asyncio.sleep(0)
        gated.go.set()
        await stopping
        await asyncio.wait(gated.tasks)
        assert gated.tasks[1].cancelled()
        assert not gated.ran

    asyncio.run(run())
