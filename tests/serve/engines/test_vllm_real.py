"""vLLM itself, in this process and as a server, on the embedded reader written as a folder."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from pathlib import Path

import httpx2
import pytest
import torch
from real_prompts import answer_of, mixed_requests, worst_loss

from extensible_embedding import Reader
from extensible_embedding.errors import EngineError
from extensible_embedding.serve.engines.base import Engine, Request, Sampling
from extensible_embedding.serve.engines.vllm import VllmEngine
from extensible_embedding.serve.engines.vllm_server import VllmServerEngine

# vLLM, its dependencies and its processes warn and leave files open as they like.
pytestmark = [pytest.mark.e2e, pytest.mark.filterwarnings("default")]
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm")

ROOT = Path(__file__).parents[3]
LOGIT_TOLERANCE = 0.01
"""Both in float32: only the order of sums differs."""
SETTINGS = {"dtype": "float32", "max_model_len": 2048, "enforce_eager": True}
KEY = "a-key-of-the-tests"


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader.from_pretrained(dtype=torch.float32)


@pytest.fixture(scope="module")
def requests(reader: Reader) -> list[Request]:
    return mixed_requests(reader)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("reader") / "base"
    script = ROOT / "scripts" / "make_derivatives.py"
    subprocess.run([sys.executable, str(script), "base", str(folder)], check=True)
    return str(folder)


@pytest.fixture(scope="module", autouse=True)
def _small_cache() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
        patch.setenv("VLLM_NO_USAGE_STATS", "1")
        yield


@pytest.fixture(scope="module")
def url(folder: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server; as a module, because the command `vllm` of vllm-cpu does not find its version."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--enable-prompt-embeds", "--enforce-eager", "--dtype=float32"]
    options += ["--max-model-len=2048", "--host=127.0.0.1", f"--port={port}", f"--api-key={KEY}"]
    module = "vllm.entrypoints.openai.api_server"
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("w") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", module, "--model", folder, *options], stdout=out, stderr=out
        )
        try:
            _wait_for(server, f"http://127.0.0.1:{port}", log)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(60)


def _wait_for(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    until = time.monotonic() + 1800
    while time.monotonic() < until:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            if httpx2.get(f"{url}/health").status_code == 200:
                return
        except httpx2.HTTPError:
            time.sleep(2)
    raise AssertionError(log.read_text()[-3000:])


async def check_answers(engine: Engine, reader: Reader, requests: list[Request]) -> None:
    """Greedy answers are the reader's; sampled ones repeat; a closed one leaves nothing."""
    answers = await asyncio.gather(*(answer_of(engine, each) for each in requests))
    for request, answer in zip(requests, answers, strict=True):
        assert worst_loss(reader, request, answer) < LOGIT_TOLERANCE
    seeded = Request(
        parts=requests[0].parts,
        sampling=Sampling(max_new_tokens=8, temperature=1.0, top_p=0.9, seed=3),
    )
    assert await answer_of(engine, seeded) == await answer_of(engine, seeded)
    long = Request(parts=requests[0].parts, sampling=Sampling(max_new_tokens=1000))
    async with aclosing(engine.generate(long)) as stream:  # type: ignore[type-var]
        await anext(stream)
    assert engine.numbers()["running"] == 0


def with_server(url: str, reader: Reader, work: Callable[[Engine], Awaitable[None]]) -> None:
    async def run() -> None:
        async with VllmServerEngine(url, reader.embed_tokens, api_key=KEY) as engine:
            await work(engine)

    asyncio.run(run())


def test_a_server_answers_as_the_reader(url: str, reader: Reader, requests: list[Request]) -> None:
    with_server(url, reader, lambda engine: check_answers(engine, reader, requests))


def metric(url: str, name: str) -> float:
    found = re.search(
        rf"^vllm:{name}(?:{{[^}}]*}})? (\S+)$", httpx2.get(f"{url}/metrics").text, re.M
    )
    assert found, f"there is no metric {name}"
    return float(found[1])


def test_a_server_reads_a_shared_prefix_once(
    url: str, reader: Reader, requests: list[Request]
) -> None:
    async def work(engine: Engine) -> None:
        await answer_of(engine, requests[0])
        before = metric(url, "prefix_cache_hits_total")
        await answer_of(engine, requests[1])
        assert metric(url, "prefix_cache_hits_total") - before >= 128

    with_server(url, reader, work)


def test_a_server_ends_what_is_closed(url: str, reader: Reader, requests: list[Request]) -> None:
    async def work(engine: Engine) -> None:
        long = Request(parts=requests[0].parts, sampling=Sampling(max_new_tokens=1500))
        async with aclosing(engine.generate(long)) as stream:  # type: ignore[type-var]
            await anext(stream)
            assert metric(url, "num_requests_running") == 1
        until = time.monotonic() + 20
        while metric(url, "num_requests_running") and time.monotonic() < until:
            await asyncio.sleep(0.5)
        assert metric(url, "num_requests_running") == 0

    with_server(url, reader, work)


def test_a_server_refuses_in_one_sentence(url: str, reader: Reader) -> None:
    async def started(embed_tokens: Callable[[torch.Tensor], torch.Tensor], key: str) -> None:
        async with VllmServerEngine(url, embed_tokens, api_key=key) as engine:
            with pytest.raises(EngineError, match="maximum context length"):
                await answer_of(engine, Request(parts=(torch.zeros(3000, dtype=torch.long),)))

    asyncio.run(started(reader.embed_tokens, KEY))
    with pytest.raises(EngineError, match="serve the reader"):
        asyncio.run(started(lambda ids: torch.zeros(len(ids), 64), KEY))
    with pytest.raises(EngineError, match="check its API key"):
        asyncio.run(started(reader.embed_tokens, "another"))


def test_in_this_process_it_answers_as_the_reader(
    folder: str, reader: Reader, requests: list[Request]
) -> None:
    async def run() -> None:
        async with VllmEngine(folder, reader.embed_tokens, **SETTINGS) as engine:
            await check_answers(engine, reader, requests)
            before = engine.numbers()["prefix_cache_rows_reused"]
            await answer_of(engine, requests[2])
            assert engine.numbers()["prefix_cache_rows_reused"] - before >= 128
            await engine.check()

    asyncio.run(run())
