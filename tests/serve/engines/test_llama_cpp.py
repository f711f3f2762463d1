"""The engine of llama.cpp on a made-up model; with the library itself: test_llama_real.py."""

from __future__ import annotations

import asyncio
import sys
import threading
import zlib

import pytest
import torch

from extensible_embedding.errors import EngineError, InputError, MissingExtraError
from extensible_embedding.serve.engines.base import Request, Sampling
from extensible_embedding.serve.engines.llama_cpp import LlamaCppEngine, LlamaSettings

WIDTH, VOCABULARY, END = 3, 50, 7


def next_token(read):
    return zlib.crc32(repr(read).encode()) % VOCABULARY


class MadeUpModel:
    """Its next token is a hash of all that a sequence has read."""

    hidden_size, vocab_size, window, batch_rows = WIDTH, VOCABULARY, 200, 8

    def __init__(self, limit=None):
        self.sequences: dict[int, list] = {}
        self.batches, self.open_samplers, self.closed = [], 0, False
        self.limit = limit
        self.pause_after, self.go_on = None, threading.Event()

    def is_end(self, token):
        return token == END

    def _batch(self, size):
        if self.pause_after is not None and len(self.batches) >= self.pause_after:
            assert self.go_on.wait(20)
        self.batches.append(size)

    def _read(self, sequence, inputs, position):
        state = self.sequences.setdefault(sequence, [])
        assert position == len(state), "a position is what has been read"
        state.extend(tuple(row) if isinstance(row, list) else row for row in inputs.tolist())

    def read(self, sequence, part, position):
        assert 0 < len(part) <= self.batch_rows
        self._batch(len(part))
        if 13 in part.tolist():
            raise EngineError("unlucky")
        self._read(sequence, part, position)
        self.last = [sequence] * len(part)

    def read_each(self, sequences, tokens, positions):
        assert len(set(sequences)) == len(sequences)
        self._batch(len(tokens))
        for sequence, token, position in zip(sequences, tokens.split(1), positions, strict=True):
            self._read(sequence, token, position)
        self.last = list(sequences)
        if self.limit is not None and len(self.batches) > self.limit:
            raise RuntimeError("out of order")

    def draw(self, sampler, index):
        return next_token(self.sequences[self.last[index]])

    def sampler(self, sampling):
        self.open_samplers += 1

    def free_sampler(self, sampler):
        self.open_samplers -= 1

    def copy(self, source, target, num_rows):
        assert not self.sequences.get(target)
        self.sequences[target] = self.sequences[source][:num_rows]

    def remove(self, sequence):
        self.sequences[sequence] = []

    def close(self):
        self.closed = True


def alone(request):
    """What a model must answer that has nothing else to do."""
    read = []
    for part in request.parts:
        read += [tuple(row) if isinstance(row, list) else row for row in part.tolist()]
    new = []
    while len(new) < request.sampling.max_new_tokens and (not new or new[-1] != END):
        new.append(next_token(read))
        read.append(new[-1])
    return new


def request(*parts, num_shared=0, max_new_tokens=12):
    return Request(
        parts=parts, num_shared=num_shared, sampling=Sampling(max_new_tokens=max_new_tokens)
    )


def ids(*numbers):
    return torch.tensor(numbers)


def rows(count, seed=0):
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


async def answer(engine, asked):
    pieces = [piece async for piece in engine.generate(asked)]
    assert [piece.finish_reason is None for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    tokens = [token for piece in pieces for token in piece.token_ids]
    assert pieces[-1].finish_reason == ("stop" if tokens[-1] == END else "length")
    return tokens


def with_engine(work, model=None, **settings):
    model = model or MadeUpModel()

    async def run():
        engine = LlamaCppEngine(lambda: model, LlamaSettings(batch_rows=8, **settings))
        async with engine:
            return await asyncio.wait_for(work(engine, model), 20)

    return asyncio.run(run())


def test_tokens_and_rows_are_read_in_order():
    asked = request(ids(1, 2, 3), rows(20), ids(), ids(4, 5), rows(1, seed=1), ids(6))

    async def work(engine, model):
        assert await answer(engine, asked) == alone(asked)
        assert model.batches[:7] == [3, 8, 8, 4, 2, 1, 1]
        assert engine.numbers()["rows_read"] == 27

    with_engine(work)


@pytest.mark.parametrize("settings", [{}, {"num_requests": 1}, {"num_cells": 90}])
def test_requests_side_by_side_answer_as_alone(settings):
    books = [rows(30, seed=1), rows(25, seed=2)]
    asked = [
        request(ids(1, 2), books[n % 2], ids(*range(n % 5 + 20, 30)), num_shared=2)
        for n in range(20)
    ]

    async def work(engine, model):
        answers = await asyncio.gather(*(answer(engine, each) for each in asked))
        assert answers == [alone(each) for each in asked]
        numbers = engine.numbers()
        assert numbers["running"] == numbers["waiting"] == model.open_samplers == 0
        assert numbers["prefix_cache_hits"] + numbers["prefix_cache_misses"] == 20
        if "num_cells" not in settings:
            assert numbers["prefix_cache_misses"] == 2

    with_engine(work, **settings)


def test_a_second_question_pays_only_for_itself():
    book = rows(40)

    async def work(engine, model):
        for question, cost in ((ids(1, 2, 3), 47), (ids(4, 5), 2), (ids(6), 1)):
            before = engine.numbers()["rows_read"]
            asked = request(ids(0, 1, 2, 3), book, question, num_shared=2)
            assert await answer(engine, asked) == alone(asked)
            assert engine.numbers()["rows_read"] - before == cost
        again = request(ids(0, 1, 2, 3), book, num_shared=2)
        before = engine.numbers()["rows_read"]
        assert await answer(engine, again) == alone(again)
        assert engine.numbers()["rows_read"] - before == 1

    with_engine(work)


def test_running_answers_go_on_while_a_long_prompt_is_read():
    first, long = request(ids(1)), request(rows(60))

    async def work(engine, model):
        await asyncio.gather(answer(engine, first), answer(engine, long))
        assert 1 in model.batches[1 : 1 + 8]

    with_engine(work)


def test_closing_ends_the_generation_and_frees_what_it_held():
    async def work(engine, model):
        asked = next(
            each
            for each in (request(ids(n), max_new_tokens=150) for n in range(50) if n != 13)
            if len(alone(each)) > 40
        )
        model.pause_after = 3
        pieces = engine.generate(asked)
        await anext(pieces)
        other = asyncio.create_task(answer(engine, request(ids(2))))
        await pieces.aclose()
        model.go_on.set()
        assert await other == alone(request(ids(2)))
        assert engine.numbers()["cells_used"] == 0
        assert sum(model.batches) <= 3 + 1 + 12

    with_engine(work)


def test_a_request_that_fails_fails_alone():
    async def work(engine, model):
        good, bad = request(ids(1, 2)), request(ids(1, 13))
        found = await asyncio.gather(
            answer(engine, good), answer(engine, bad), return_exceptions=True
        )
        assert found[0] == alone(good)
        assert isinstance(found[1], EngineError)
        assert engine.numbers()["cells_used"] == model.open_samplers == 0

    with_engine(work)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (request(), "at least 1 row"),
        (request(ids()), "at least 1 row"),
        (request(rows(60), max_new_tokens=50), "fit in 100 rows"),
        (request(ids(1, VOCABULARY)), "reach from 1 to 50"),
        (request(ids(-1)), "reach from -1 to -1"),
        (request(torch.ones(2, WIDTH + 1)), "have 4, from 1.0 to 1.0"),
        (request(torch.tensor([[0.0, 1.0, float("nan")]])), "3 finite numbers"),
        (request(torch.tensor([[0.0, 1.0, float("inf")]])), "3 finite numbers"),
    ],
)
def test_what_the_model_cannot_read_is_refused(asked, message):
    async def work(engine, model):
        with pytest.raises(EngineError, match=message):
            await answer(engine, asked)
        assert model.batches == []

    with_engine(work, num_cells=100)


def test_an_engine_takes_requests_between_start_and_end():
    model = MadeUpModel()
    engine = LlamaCppEngine(lambda: model)

    async def work():
        with pytest.raises(EngineError, match="has not been started"):
            await engine.check()
        async with engine:
            await engine.check()
            model.pause_after = 0
            waiting = [asyncio.create_task(answer(engine, request(ids(n)))) for n in range(9)]
            await asyncio.sleep(0.05)
            ending = asyncio.create_task(engine.__aexit__())
            await asyncio.sleep(0.05)
            model.go_on.set()
            await ending
            for task in waiting:
                with pytest.raises(EngineError, match="has been stopped"):
                    await task
        assert model.closed
        with pytest.raises(EngineError, match="has been stopped"):
            await answer(engine, request(ids(1)))

    asyncio.run(work())


def test_when_the_thread_fails_those_who_wait_hear_of_it():
    async def work(engine, model):
        long = [request(ids(n), rows(30)) for n in range(6)]
        found = await asyncio.gather(
            *(answer(engine, each) for each in long), return_exceptions=True
        )
        assert {type(each) for each in found} == {EngineError}
        with pytest.raises(EngineError, match="RuntimeError: out of order"):
            await engine.check()

    with_engine(work, MadeUpModel(limit=3))


def test_a_model_that_does_not_open_is_an_error_of_the_start(tmp_path, caplog, capfd):
    async def start(path):
        async with LlamaCppEngine(path):
            pass

    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: make test-llama")
    with pytest.raises(InputError, match="is none; name one"):
        asyncio.run(start(tmp_path / "none.gguf"))
    (tmp_path / "bad.gguf").write_bytes(b"no model")
    with pytest.raises(EngineError, match="cannot load"):
        asyncio.run(start(tmp_path / "bad.gguf"))
    assert "magic" in "".join(each.message for each in caplog.records if each.name == "llama.cpp")
    assert capfd.readouterr().err == ""


def test_without_the_library_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)

    async def start():
        async with LlamaCppEngine(tmp_path / "x.gguf"):
            pass

    with pytest.raises(MissingExtraError, match=r"extensible-embedding\[llama-cpp\]"):
        asyncio.run(start())


@pytest.mark.parametrize(
    "settings", [{"num_cells": 0}, {"num_requests": 9, "batch_rows": 8}, {"num_prefixes": -1}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(InputError, match="give others"):
        LlamaSettings(**settings)
