from __future__ import annotations

import asyncio
import threading
import time

import pytest
import torch
from conftest import VOCAB_SIZE
from tiny_prompts import (
    by_generate,
    prompts,
    request,
    tokens,
)

from extensible_embedding.errors import EngineError, InputError
from extensible_embedding.serve.engines.transformers import TransformersEngine
from extensible_embedding.serve.engines.transformers_schedule import (
    TransformersSchedule,
    TransformersSettings,
)


async def answer(engine, asked):
    pieces = [piece async for piece in engine.generate(asked)]
    assert [piece.finish_reason is None for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    return [token for piece in pieces for token in piece.token_ids]


def with_engine(reader, work, **settings):
    async def run_it():
        async with TransformersEngine(reader, TransformersSettings(**settings)) as engine:
            return await asyncio.wait_for(work(engine), 60)

    return asyncio.run(run_it())


def test_the_engine_answers_side_by_side(tiny_reader):
    asked = prompts(tiny_reader)
    expected = [by_generate(tiny_reader, each) for each in asked]

    async def work(engine):
        await engine.check()
        assert await asyncio.gather(*(answer(engine, each) for each in asked)) == expected
        assert await answer(engine, asked[0]) == expected[0]
        numbers = engine.numbers()
        assert numbers["running"] == numbers["waiting"] == 0
        assert numbers["new_tokens"] == sum(map(len, expected)) + len(expected[0])
        assert numbers["prefix_cache_hits"] == 4

    with_engine(tiny_reader, work, prefill_rows=16)


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ([], "at least 1 row"),
        ([torch.tensor([], dtype=torch.long)], "at least 1 row"),
        ([torch.tensor([3, VOCAB_SIZE])], f"reach from 3 to {VOCAB_SIZE}"),
        ([torch.tensor([-1])], "reach from -1"),
        ([torch.zeros(3, 31)], "some have 31"),
        ([torch.full((3, 32), float("nan"))], "32 finite numbers"),
        ([tokens(40)], "fit the engine's 40 rows"),
    ],
)
def test_what_cannot_be_read_is_refused(tiny_reader, parts, match):
    async def work(engine):
        with pytest.raises(EngineError, match=match):
            await answer(engine, request(*parts))
        assert len(await answer(engine, request(tokens(3)))) > 0

    with_engine(tiny_reader, work, max_rows=40)


def test_closing_a_stream_frees_its_place(tiny_reader):
    async def work(engine):
        stream = engine.generate(request(tokens(5), max_new_tokens=400))
        await anext(stream)
        assert engine.numbers()["running"] == 1
        await stream.aclose()
        assert await answer(engine, request(tokens(4))) == by_generate(
            tiny_reader, request(tokens(4))
        )
        assert engine.numbers()["rows_held"] == 0
        assert engine.numbers()["new_tokens"] < 100

    with_engine(tiny_reader, work, max_running=1)


def test_a_cancelled_task_frees_its_place(tiny_reader):
    async def work(engine):
        task = asyncio.create_task(answer(engine, request(tokens(5), max_new_tokens=400)))
        while not engine.numbers()["new_tokens"]:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(await answer(engine, request(tokens(4)))) > 0

    with_engine(tiny_reader, work, max_running=1)


def test_leaving_ends_what_runs_and_what_waits(tiny_reader):
    async def run_it():
        before = threading.active_count()
        async with TransformersEngine(tiny_reader, TransformersSettings(max_running=1)) as engine:
            tasks = [
                asyncio.create_task(answer(engine, request(tokens(5), max_new_tokens=400)))
                for _ in range(3)
            ]
            while not engine.numbers()["new_tokens"]:
                await asyncio.sleep(0.001)
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [str(error) for error in found] == [
            "The engine transformers gave up, because it has been stopped; ask again."
        ] * 3
        with pytest.raises(EngineError, match="because it has been stopped; start it again"):
            await answer(engine, request(tokens(3)))
        deadline = time.monotonic() + 10
        while threading.active_count() > before + 1 and time.monotonic() < deadline:
            await asyncio.sleep(0.01)  # asyncio's own thread, which waited for ours, may stay
        assert "engine transformers" not in [thread.name for thread in threading.enumerate()]

    asyncio.run(run_it())


def test_an_engine_that_was_not_started_says_so(tiny_reader):
    async def run_it():
        engine = TransformersEngine(tiny_reader)
        assert engine.numbers() == {}
        with pytest.raises(EngineError, match="because it has not been started"):
            await engine.check()
        with pytest.raises(EngineError, match="because it has not been started"):
            await answer(engine, request(tokens(3)))
        await engine.__aexit__()

    asyncio.run(run_it())


def test_when_the_thread_fails_everybody_hears_why(tiny_reader, monkeypatch):
    def broken(self):
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(TransformersSchedule, "_begin", broken)

    async def work(engine):
        match = r"its thread failed \(ZeroDivisionError: a fault of ours\)"
        for ask in (answer(engine, request(tokens(3))), engine.check()):
            with pytest.raises(EngineError, match=match):
                await ask

    with_engine(tiny_reader, work)


def test_what_cannot_be_opened_is_raised_where_the_engine_is_started(tiny_reader, monkeypatch):
    def broken(self, *given):
        raise InputError("no such thing")

    monkeypatch.setattr(TransformersSchedule, "__init__", broken)

    async def run_it():
        with pytest.raises(InputError, match="no such thing"):
            async with TransformersEngine(tiny_reader):
                pass

    asyncio.run(run_it())
