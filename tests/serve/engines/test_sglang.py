from __future__ import annotations

import asyncio
import json

import httpx2
import pytest
import torch

from extensible_embedding.errors import EngineError
from extensible_embedding.serve.engines.base import Request, Sampling
from extensible_embedding.serve.engines.sglang import SGLangEngine

URL = "http://sglang.test:30000"
SAMPLING_PARAMETERS = {
    "max_new_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "sampling_seed",
}


class StandIn(httpx2.AsyncBaseTransport):
    """Takes what SGLang's native API documents, and answers the ids 11, 12, ... as it streams."""

    def __init__(self, reader, *, count=4, incremental=False, end=None, say=None, status=200):
        self.reader, self.count, self.incremental = reader, count, incremental
        self.end = end or {"type": "length", "length": count}
        self.say, self.status = say, status
        self.asked, self.num_sent, self.closed = [], 0, False

    async def handle_async_request(self, request):
        if request.url.path == "/health":
            return httpx2.Response(self.status)
        assert (request.method, request.url.path) == ("POST", "/generate")
        assert request.headers["content-type"] == "application/json"
        body = json.loads(await request.aread())
        assert set(body) == {"input_embeds", "sampling_params", "stream"}
        assert body["stream"] is True
        assert set(body["sampling_params"]) <= SAMPLING_PARAMETERS
        assert all(len(row) == self.reader.hidden_size for row in body["input_embeds"])
        assert all(isinstance(number, float) for row in body["input_embeds"] for number in row)
        self.asked.append((request.headers, body))
        if self.status != 200:
            text = {"error": {"message": "input_embeds is provided while radix cache is on"}}
            return httpx2.Response(self.status, json=text)
        return httpx2.Response(200, stream=Events(self))

    def events(self):
        for number in range(1, self.count + 1):
            ids = [10 + n for n in range(number if self.incremental else 1, number + 1)]
            last = number == self.count
            info = {"id": "1", "prompt_tokens": 3, "completion_tokens": number}
            info["finish_reason"] = self.end if last else None
            yield f"data: {json.dumps({'text': 'x', 'output_ids': ids, 'meta_info': info})}\n\n"
        yield "data: [DONE]\n\n"


class Events(httpx2.AsyncByteStream):
    def __init__(self, server):
        self.server = server

    async def __aiter__(self):
        for event in self.server.say or self.server.events():
            self.server.num_sent += 1
            yield event.encode()
            await asyncio.sleep(0)

    async def aclose(self):
        self.server.closed = True


def request(reader, **sampling):
    rows = torch.randn(4, reader.hidden_size, generator=torch.Generator().manual_seed(0))
    parts = (torch.tensor([1, 2]), rows.bfloat16(), torch.tensor([], dtype=torch.long))
    return Request(parts=parts, num_shared=2, sampling=Sampling(**sampling))


def with_engine(reader, work, **server):
    stand_in = StandIn(reader, **server)

    async def run():
        async with SGLangEngine(
            URL, reader.embed_tokens, api_key="secret", transport=stand_in
        ) as engine:
            await work(engine, stand_in)

    asyncio.run(run())


@pytest.mark.parametrize("incremental", [False, True])
def test_it_asks_as_documented_and_gives_tokens_as_they_come(tiny_reader, incremental):
    asked = request(tiny_reader, max_new_tokens=4, temperature=0.5, top_p=0.9, seed=3)

    async def work(engine, server):
        pieces = [piece async for piece in engine.generate(asked)]
        assert [piece.token_ids for piece in pieces] == [(11,), (12,), (13,), (14,)]
        assert [piece.finish_reason for piece in pieces] == [None, None, None, "length"]
        headers, body = server.asked[0]
        assert headers["authorization"] == "Bearer secret"
        assert body["sampling_params"] == {
            "max_new_tokens": 4,
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": -1,
            "min_p": 0.0,
            "sampling_seed": 3,
        }
        expected = torch.cat([tiny_reader.embed_tokens(asked.parts[0]), asked.parts[1].float()])
        torch.testing.assert_close(torch.tensor(body["input_embeds"]), expected)
        assert engine.numbers() == {"running": 0}

    with_engine(tiny_reader, work, incremental=incremental)


def test_greedy_asks_for_temperature_zero_and_no_seed(tiny_reader):
    async def work(engine, server):
        pieces = [piece async for piece in engine.generate(request(tiny_reader))]
        assert pieces[-1].finish_reason == "stop"
        asked = server.asked[0][1]["sampling_params"]
        assert "sampling_seed" not in asked
        assert (asked["max_new_tokens"], asked["temperature"], asked["top_p"]) == (128, 0.0, 1.0)

    with_engine(tiny_reader, work, end={"type": "stop", "matched": 14})


def test_closing_closes_the_connection(tiny_reader):
    async def work(engine, server):
        stream = engine.generate(request(tiny_reader))
        await anext(stream)
        assert engine.numbers() == {"running": 1}
        assert not server.closed
        await stream.aclose()
        assert server.closed
        assert server.num_sent < 50
        assert engine.numbers() == {"running": 0}

    with_engine(tiny_reader, work, count=50)


@pytest.mark.parametrize(
    ("server", "match"),
    [
        ({"status": 400}, r"refused a request \(400: .*radix.*\); start it with .*disable-radix"),
        ({"status": 401}, r"refused a request \(401: .*disable-radix"),
        ({"end": {"type": "abort", "message": "out of memory"}}, "by itself .out of memory."),
        ({"say": ['data: {"error": {"message": "bad"}}\n\n']}, r"\(None: bad\); see its log"),
        ({"say": ['data: {"text": "x"}\n\n']}, "sent the fields text; use a current SGLang"),
        ({"say": ["data: <html>\n\n"]}, "sent 7 characters that are no JSON"),
        ({"say": ["data: [DONE]\n\n"]}, "before its end; ask again"),
    ],
)
def test_what_goes_wrong_is_an_engine_error(tiny_reader, server, match):
    async def work(engine, _):
        with pytest.raises(EngineError, match=match):
            async for _piece in engine.generate(request(tiny_reader)):
                pass
        assert engine.numbers() == {"running": 0}

    with_engine(tiny_reader, work, **server)


def test_a_prompt_that_cannot_be_read_is_not_sent(tiny_reader):
    async def work(engine, server):
        for parts, match in [
            ((), "at least 1 row"),
            ((torch.zeros(2, 3),), "32 numbers each for this reader"),
            ((torch.full((2, 32), float("nan")),), "Rows are finite numbers"),
        ]:
            with pytest.raises(EngineError, match=match):
                await anext(engine.generate(Request(parts=parts)))
        assert server.asked == []

    with_engine(tiny_reader, work)


def test_readiness_is_the_servers(tiny_reader):
    async def ready(engine, _):
        await engine.check()

    async def not_ready(engine, _):
        with pytest.raises(EngineError, match="503"):
            await engine.check()

    with_engine(tiny_reader, ready)
    with_engine(tiny_reader, not_ready, status=503)


def test_a_server_that_is_not_there(tiny_reader):
    async def run():
        engine = SGLangEngine("http://127.0.0.1:9/v1/", tiny_reader.embed_tokens)
        async with engine:
            for ask in (engine.check(), anext(engine.generate(request(tiny_reader)))):
                with pytest.raises(EngineError, match=r"cannot be reached .*check the address"):
                    await ask
        with pytest.raises(EngineError, match="it has been stopped"):
            await anext(engine.generate(request(tiny_reader)))

    asyncio.run(run())
