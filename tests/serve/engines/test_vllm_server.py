"""The engine of a vLLM server, against a stand-in that checks the documented request.

With vLLM itself: test_vllm_real.py.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json

import httpx2
import pytest
import torch

from extensible_embedding.errors import EngineError
from extensible_embedding.serve.engines.base import NewTokens, Request, Sampling
from extensible_embedding.serve.engines.embeds import joined_rows
from extensible_embedding.serve.engines.vllm_server import VllmServerEngine

TABLE = torch.arange(40.0).view(10, 4)
URL = "http://vllm.test"


def embed_tokens(ids):
    return TABLE[ids]


def event(token_ids, finish_reason=None):
    return {"choices": [{"index": 0, "token_ids": token_ids, "finish_reason": finish_reason}]}


class Events(httpx2.AsyncByteStream):
    """Server-sent events, one after the other; says when it was closed."""

    def __init__(self, events):
        self.events, self.num_sent, self.closed = events, 0, False

    async def __aiter__(self):
        for each in self.events:
            self.num_sent += 1
            if isinstance(each, Exception):
                raise each
            data = each if isinstance(each, str) else f"data: {json.dumps(each)}\n\n"
            yield data.encode()

    async def aclose(self):
        self.closed = True


class StandIn:
    """A vLLM server as its documentation describes it."""

    def __init__(self, *, key="secret", width=4, embeds=True, events=None):
        self.key, self.width, self.embeds = key, width, embeds
        self.events = events or [event([3]), event([4, 5]), event([2], "stop"), "data: [DONE]\n\n"]
        self.prompts, self.fields, self.streams, self.healthy = [], [], [], True

    def __call__(self, request):
        if request.url.path == "/health":
            return httpx2.Response(200 if self.healthy else 503)
        if request.headers.get("authorization") != f"Bearer {self.key}":
            return httpx2.Response(401, json={"error": "Unauthorized"})
        if (request.method, request.url.path) == ("GET", "/v1/models"):
            return httpx2.Response(200, json={"object": "list", "data": [{"id": "smollm2"}]})
        assert (request.method, request.url.path) == ("POST", "/v1/completions")
        assert request.headers["content-type"] == "application/json"
        return self.complete(json.loads(request.content))

    def complete(self, fields):
        assert "prompt" not in fields
        assert fields["stream"] is fields["return_token_ids"] is True
        if fields["model"] != "smollm2":
            return self.refuse(404, f"The model `{fields['model']}` does not exist.")
        if not self.embeds:
            return self.refuse(
                400, "You must set `--enable-prompt-embeds` to input `prompt_embeds`."
            )
        payload = base64.b64decode(fields.pop("prompt_embeds"), validate=True)
        rows = torch.load(io.BytesIO(payload), weights_only=True)
        assert rows.ndim == 2
        assert rows.is_floating_point()
        if rows.shape[1] != self.width:
            return self.refuse(
                400,
                f"`prompt_embeds` hidden_size {rows.shape[1]} does not match the model's "
                f"hidden_size {self.width}.",
            )
        self.prompts.append(rows)
        self.fields.append(fields)
        self.streams.append(Events(self.events))
        return httpx2.Response(
            200, headers={"content-type": "text/event-stream"}, stream=self.streams[-1]
        )

    @staticmethod
    def refuse(code, message):
        error = {"message": message, "type": "BadRequestError", "param": None, "code": code}
        return httpx2.Response(code, json={"error": error})


def engine_of(server, **settings):
    settings = {"api_key": "secret", "transport": httpx2.MockTransport(server), **settings}
    return VllmServerEngine(settings.pop("url", URL), embed_tokens, **settings)


def run(server, work, **settings):
    async def started():
        async with engine_of(server, **settings) as engine:
            return await work(engine)

    return asyncio.run(started())


async def collect(engine, request):
    return [piece async for piece in engine.generate(request)]


ASKED = Request(parts=(torch.tensor([1, 2]), torch.ones(3, 4), torch.tensor([], dtype=torch.long)))


def test_a_request_is_what_vllm_documents():
    server = StandIn()
    sampling = Sampling(max_new_tokens=7, temperature=0.5, top_p=0.9, seed=11)
    pieces = run(
        server, lambda engine: collect(engine, Request(parts=ASKED.parts, sampling=sampling))
    )
    assert pieces == [
        NewTokens(token_ids=(3,)),
        NewTokens(token_ids=(4, 5)),
        NewTokens(token_ids=(2,), finish_reason="stop"),
    ]
    assert torch.equal(server.prompts[-1], torch.cat([TABLE[1:3], torch.ones(3, 4)]))
    assert server.fields[-1] == {
        "model": "smollm2",
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 0,
        "min_p": 0.0,
        "seed": 11,
        "stream": True,
        "return_token_ids": True,
    }


def test_greedy_without_a_seed_sends_none():
    server = StandIn()
    run(server, lambda engine: collect(engine, ASKED))
    assert server.fields[-1]["temperature"] == 0.0
    assert "seed" not in server.fields[-1]


def test_the_start_asks_for_the_model_and_one_token():
    server = StandIn()
    run(server, lambda engine: engine.check(), url=f"{URL}/v1/")
    assert [rows.shape for rows in server.prompts] == [(1, 4)]
    assert server.fields[0]["max_tokens"] == 1
    run(server, lambda engine: engine.check(), model="smollm2")


@pytest.mark.parametrize(
    ("server", "settings", "message"),
    [
        (StandIn(embeds=False), {}, "vllm serve MODEL --enable-prompt-embeds`"),
        (StandIn(width=8), {}, "hidden_size 4 does not match .* serve the reader"),
        (StandIn(), {"api_key": None}, "401: Unauthorized.; check its API key"),
        (StandIn(), {"model": "other"}, "404: The model `other` does not exist"),
    ],
)
def test_a_server_that_does_not_fit_fails_the_start(server, settings, message):
    async def work(engine):
        raise AssertionError

    with pytest.raises(EngineError, match=message):
        run(server, work, **settings)


def test_a_server_that_is_not_there_fails_the_start():
    async def work(engine):
        raise AssertionError

    async def started():
        async with VllmServerEngine("http://127.0.0.1:9", embed_tokens) as engine:
            await work(engine)

    with pytest.raises(EngineError, match="cannot be reached .*check the address"):
        asyncio.run(started())


def test_what_is_no_vllm_is_said():
    with pytest.raises(EngineError, match="name the model"):
        run(lambda request: httpx2.Response(200, text="hello"), collect)
    with pytest.raises(EngineError, match="502: Bad Gateway"):
        run(lambda request: httpx2.Response(502), collect)


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([event([3])], "before its end"),
        ([event([3]), "data: [DONE]\n\n"], "before its end"),
        ([{"error": {"message": "out of memory", "code": 500}}], "500: out of memory"),
        ([event([3], "abort")], "0.10.2"),
        ([event(None)], "0.10.2"),
        ([{"choices": [{"index": 0, "text": "no ids"}]}], "0.10.2"),
        (["data: {half\n\n"], "0.10.2"),
        ([event([3]), httpx2.ReadError("gone")], "ReadError: gone"),
        ([event([3]), httpx2.ReadTimeout("slow")], "did not answer in time"),
    ],
)
def test_a_stream_that_breaks_is_an_error(events, message):
    server = StandIn()

    async def work(engine):
        server.events = events
        with pytest.raises(EngineError, match=message):
            await collect(engine, ASKED)
        assert engine.numbers() == {"running": 0}
        assert server.streams[-1].closed

    run(server, work)


def test_lines_that_say_nothing_are_passed_over():
    server = StandIn(events=[": ping\n\n", {"choices": []}, event([1], "length")])
    pieces = run(server, lambda engine: collect(engine, ASKED))
    assert pieces == [NewTokens(token_ids=(1,), finish_reason="length")]


def test_closing_closes_the_connection():
    server = StandIn()

    async def work(engine):
        server.events = [event([1])] * 1000
        stream = engine.generate(ASKED)
        assert (await anext(stream)).token_ids == (1,)
        assert engine.numbers() == {"running": 1}
        await stream.aclose()
        assert server.streams[-1].closed
        assert server.streams[-1].num_sent < 1000
        assert engine.numbers() == {"running": 0}

    run(server, work)


def test_requests_run_side_by_side():
    server = StandIn()

    async def work(engine):
        found = await asyncio.gather(*(collect(engine, ASKED) for _ in range(200)))
        assert {len(pieces) for pieces in found} == {3}

    run(server, work)


def test_a_server_that_has_failed_is_not_ready():
    server = StandIn()

    async def work(engine):
        await engine.check()
        server.healthy = False
        with pytest.raises(EngineError, match="503"):
            await engine.check()

    run(server, work)


def test_joined_rows_are_what_a_reader_would_embed(tiny_reader):
    parts = (torch.tensor([5, 6]), torch.randn(3, 32).bfloat16(), torch.tensor([7]))
    rows = joined_rows(Request(parts=parts), tiny_reader.embed_tokens)
    assert rows.dtype == tiny_reader.dtype
    assert torch.equal(rows[:2], tiny_reader.embed_tokens(parts[0]))
    assert torch.equal(rows[2:5], parts[1].float())
    assert torch.equal(rows[5:], tiny_reader.embed_tokens(parts[2]))


@pytest.mark.parametrize(
    ("parts", "message"),
    [((), "at least 1 row"), ((torch.ones(2, 5),), "have 4 numbers each .* some have 5")],
)
def test_rows_that_cannot_be_joined_are_refused(parts, message):
    with pytest.raises(EngineError, match=message):
        joined_rows(Request(parts=parts), embed_tokens)


def test_text_may_hold_what_python_takes_for_ends_of_lines():
    """JSON may hold them as they are, and the server sends text beside token ids."""
    said = event([3])
    said["choices"][0]["text"] = "a\x85b\u2028c"
    raw = f"data: {json.dumps(said, ensure_ascii=False)}\r\n\r\n"
    half = len(raw.encode()) // 2
    server = StandIn(events=[raw, raw[:half], raw[half:], event([2], "stop")])

    async def ask(engine):
        request = Request(parts=(torch.tensor([1]),), sampling=Sampling(max_new_tokens=4))
        return [piece.token_ids async for piece in engine.generate(request)]

    assert run(server, ask, model="smollm2") == [(3,), (3,), (2,)]
