"""llama.cpp itself on the embedded GGUF reader, against transformers on the same weights."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest
import torch
from real_prompts import answer_of, mixed_requests, reader_logits, worst_loss

from extensible_embedding import Reader
from extensible_embedding.errors import EngineError
from extensible_embedding.loading import embedded_reader
from extensible_embedding.serve.engines.base import Request, Sampling
from extensible_embedding.serve.engines.llama_context import LlamaContext
from extensible_embedding.serve.engines.llama_cpp import LlamaCppEngine, LlamaSettings

pytestmark = pytest.mark.e2e
pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: make test-llama")

LOGIT_TOLERANCE = 1.0
"""Of any word's logit: llama.cpp multiplies 4-bit weights with inputs rounded to 8 bits, and keeps
keys and values in 16, so that its logits are not those of the de-quantised weights in float32."""
ANSWER_TOLERANCE = 0.3
"""Of a greedy token's logit below the reader's best."""
BATCH_TOLERANCE = 0.1
"""Between two ways of cutting the same prompt into batches."""


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader.from_pretrained(dtype=torch.float32)


@pytest.fixture(scope="module")
def requests(reader: Reader) -> list[Request]:
    return mixed_requests(reader)


@pytest.fixture(scope="module")
def path() -> Path:
    return Path(*embedded_reader())


@pytest.fixture
def context(path: Path) -> Iterator[LlamaContext]:
    context = LlamaContext(path, num_cells=2048, num_sequences=4, batch_rows=256, num_threads=1)
    yield context
    context.close()


def logits_of(context: LlamaContext, parts: list[torch.Tensor], sequence: int) -> torch.Tensor:
    position = 0
    for part in (part for part in parts if len(part)):
        for chunk in part.split(context.batch_rows):
            context.read(sequence, chunk, position)
            position += len(chunk)
    return context.logits(-1)


def test_it_knows_the_reader(context: LlamaContext, reader: Reader) -> None:
    assert context.hidden_size == reader.hidden_size
    assert context.vocab_size == reader.vocab_size
    assert context.window == reader.window
    assert context.is_end(reader.tokenizer.eos_token_id)


def test_logits_are_the_readers(
    context: LlamaContext, reader: Reader, requests: list[Request]
) -> None:
    ours = logits_of(context, list(requests[0].parts), 0)
    theirs = reader_logits(reader, requests[0])[0]
    assert (ours - theirs).abs().max() < LOGIT_TOLERANCE
    divergence = torch.nn.functional.kl_div(
        ours.log_softmax(0), theirs.log_softmax(0), log_target=True, reduction="sum"
    )
    assert divergence < 0.02


def test_rows_of_tokens_are_the_tokens(context: LlamaContext, reader: Reader) -> None:
    ids = reader.encode("It is a truth universally acknowledged, that a single man")
    as_ids = logits_of(context, [ids], 0)
    as_rows = logits_of(context, [reader.embed_tokens(ids)], 1)
    mixed = logits_of(context, [ids[:3], reader.embed_tokens(ids[3:7]), ids[7:]], 2)
    assert (as_ids - as_rows).abs().max() < 1e-3
    assert (as_ids - mixed).abs().max() < BATCH_TOLERANCE


def test_a_copied_sequence_goes_on_like_its_source(
    context: LlamaContext, requests: list[Request]
) -> None:
    parts = list(requests[0].parts)
    whole = logits_of(context, parts, 0)
    shared = sum(len(part) for part in parts[:-1])
    context.copy(0, 1, shared)
    context.read(1, parts[-1], shared)
    assert torch.equal(context.logits(-1), whole)


def test_answers_side_by_side_are_the_readers(
    path: Path, reader: Reader, requests: list[Request]
) -> None:
    async def run() -> list[list[int]]:
        async with LlamaCppEngine(path, LlamaSettings(num_cells=4096)) as engine:
            answers = await asyncio.gather(*(answer_of(engine, each) for each in requests))
            numbers = engine.numbers()
            assert (numbers["prefix_cache_misses"], numbers["prefix_cache_hits"]) == (1, 2)
            assert numbers["running"] == 0
            return answers

    for request, answer in zip(requests, asyncio.run(run()), strict=True):
        assert 1 <= len(answer) <= request.sampling.max_new_tokens
        assert worst_loss(reader, request, answer) < ANSWER_TOLERANCE


def test_a_seed_repeats_and_another_does_not(path: Path, requests: list[Request]) -> None:
    def asked(seed: int, top_p: float = 1.0) -> Request:
        sampling = Sampling(max_new_tokens=12, temperature=1.5, top_p=top_p, seed=seed)
        return Request(parts=requests[0].parts, sampling=sampling)

    async def run() -> None:
        async with LlamaCppEngine(path, LlamaSettings(num_cells=2048, num_requests=1)) as engine:
            first, again, other = [await answer_of(engine, asked(seed)) for seed in (1, 1, 2)]
            assert first == again
            assert first != other
            greedy = await answer_of(
                engine, Request(parts=requests[0].parts, sampling=Sampling(max_new_tokens=12))
            )
            assert await answer_of(engine, asked(3, top_p=1e-6)) == greedy

    asyncio.run(run())


def test_a_full_cache_is_an_error_and_a_cancelled_request_frees_it(
    path: Path, requests: list[Request]
) -> None:
    async def run() -> None:
        settings = LlamaSettings(num_cells=512, num_requests=2, num_prefixes=0)
        async with LlamaCppEngine(path, settings) as engine:
            with pytest.raises(EngineError, match="fit in 512 rows"):
                await answer_of(engine, Request(parts=(torch.zeros(600, dtype=torch.long),)))
            for _ in range(5):
                async with aclosing(engine.generate(requests[0])) as stream:  # type: ignore[type-var]
                    await anext(stream)
            assert await answer_of(engine, requests[1])
            assert engine.numbers()["cells_used"] == 0

    asyncio.run(run())
