"""The engine of vLLM in this process, on a stand-in for its library.

With vLLM itself: test_vllm_real.py.
"""

from __future__ import annotations

import asyncio
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from extensible_embedding.errors import EngineError, MissingExtraError
from extensible_embedding.serve.engines.base import NewTokens, Request, Sampling
from extensible_embedding.serve.engines.vllm import VllmEngine

TABLE = torch.arange(40.0).view(10, 4)
ASKED = Request(
    parts=(torch.tensor([1, 2]), torch.ones(3, 4)),
    sampling=Sampling(max_new_tokens=7, temperature=0.5, top_p=0.9, seed=11),
)


def embed_tokens(ids):
    return TABLE[ids]


def output(*token_ids, finish_reason=None, num_cached=0):
    new = SimpleNamespace(token_ids=list(token_ids), finish_reason=finish_reason)
    return SimpleNamespace(outputs=[new], num_cached_tokens=num_cached)


class StandIn:
    """AsyncLLM as far as the engine asks for it."""

    outputs = (output(3, num_cached=4), output(), output(2, finish_reason="stop"))
    defaults = {"repetition_penalty": 1.1, "temperature": 0.6}  # noqa: RUF012
    error: Exception | None = None

    def __init__(self, arguments):
        if arguments["model"] == "missing":
            raise ValueError("no such model\nand more")
        self.arguments, self.asked, self.ended, self.errored = arguments, [], [], False
        self.model_config = SimpleNamespace(get_diff_sampling_param=lambda: self.defaults)

    async def generate(self, prompt, sampling, request_id):
        assert request_id not in [known for *_, known in self.asked]
        self.asked.append((prompt, sampling, request_id))
        try:
            for each in self.outputs:
                yield each
            if self.error:
                raise self.error
        finally:
            self.ended.append(request_id)

    def shutdown(self):
        self.errored = None


@pytest.fixture
def library(monkeypatch):
    """Modules of vLLM; what the engine started is `library.started`."""
    vllm, sampling_params = ModuleType("vllm"), ModuleType("vllm.sampling_params")
    async_llm = ModuleType("vllm.v1.engine.async_llm")
    vllm.AsyncEngineArgs = vllm.SamplingParams = dict
    sampling_params.RequestOutputKind = SimpleNamespace(DELTA="delta")

    class AsyncLLM(StandIn):
        @classmethod
        def from_engine_args(cls, arguments):
            vllm.started = cls(arguments)
            return vllm.started

    async_llm.AsyncLLM = vllm.AsyncLLM = AsyncLLM
    for module in (vllm, sampling_params, async_llm):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return vllm


def run(work, model="folder", **settings):
    async def started():
        async with VllmEngine(model, embed_tokens, **settings) as engine:
            return await work(engine)

    return asyncio.run(started())


async def collect(engine, request=ASKED):
    return [piece async for piece in engine.generate(request)]


def test_prompts_go_in_as_embeddings_and_tokens_come_out(library):
    pieces = run(collect, dtype="float32")
    assert pieces == [
        NewTokens(token_ids=(3,)),
        NewTokens(token_ids=(2,), finish_reason="stop"),
    ]
    vllm = library.started
    assert vllm.arguments == {"model": "folder", "enable_prompt_embeds": True, "dtype": "float32"}
    prompt, sampling, _ = vllm.asked[0]
    assert torch.equal(prompt["prompt_embeds"], torch.cat([TABLE[1:3], torch.ones(3, 4)]))
    assert sampling == {
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 11,
        "detokenize": False,
        "output_kind": "delta",
        "repetition_penalty": 1.1,
    }


def test_reused_rows_are_counted(library):
    async def work(engine):
        await collect(engine)
        library.AsyncLLM.outputs = (output(1, finish_reason="length"),)
        await collect(engine)
        assert engine.numbers() == {
            "running": 0,
            "prefix_cache_hits": 1,
            "prefix_cache_misses": 1,
            "prefix_cache_rows_reused": 4,
        }

    run(work)


def test_closing_ends_the_generation(library):
    async def work(engine):
        stream = engine.generate(ASKED)
        await anext(stream)
        assert engine.numbers()["running"] == 1
        assert library.started.ended == []
        await stream.aclose()
        assert len(library.started.ended) == 1
        assert engine.numbers()["running"] == 0

    run(work)


@pytest.mark.parametrize(
    ("outputs", "error", "message"),
    [
        ((output(1),), RuntimeError("dead"), "RuntimeError: dead"),
        ((output(1, finish_reason="abort"),), None, r"gave up a request \(abort\)"),
    ],
)
def test_what_vllm_raises_is_an_engine_error(library, outputs, error, message):
    library.AsyncLLM.outputs, library.AsyncLLM.error = outputs, error

    async def work(engine):
        with pytest.raises(EngineError, match=message):
            await collect(engine)

    run(work)


def test_an_engine_that_is_not_running_takes_no_request(library):
    engine = VllmEngine("folder", embed_tokens)

    async def work():
        with pytest.raises(EngineError, match="not been started"):
            await collect(engine)
        async with engine:
            await engine.check()
            library.started.errored = True
            with pytest.raises(EngineError, match="has failed"):
                await engine.check()
        with pytest.raises(EngineError, match="has ended"):
            await engine.check()

    asyncio.run(work())


@pytest.mark.usefixtures("library")
def test_a_model_that_does_not_start_is_an_engine_error():
    with pytest.raises(EngineError, match=r"does not start .*\(ValueError: no such model\)"):
        run(collect, model="missing")


def test_without_vllm_the_page_on_engines_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingExtraError, match="docs/engines.md"):
        run(collect)
