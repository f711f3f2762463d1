"""The engine of SGLang: a running server, asked over HTTP.

In: requests of token ids and rows. Out: new token ids. A prompt goes to `/generate`, the server's
own protocol, as `input_embeds`: every row as numbers in JSON, which is slow for long prompts. The
server must run with `--disable-radix-cache`, since it refuses embeddings otherwise, and so it keeps
no prefixes. The reader here embeds tokens; the server runs the same model.

This was not run with a real SGLang. It follows its documentation (docs.sglang.io: native API and
sampling parameters) and its source, and is tested against a stand-in that checks the request.

Axes: R row, H reader hidden size.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx2
import torch

from ...errors import EngineError
from ...generation import FinishReason
from ...reader import Reader
from .base import Engine, NewTokens, Request
from .worker import check_parts

_ENDS: dict[str, FinishReason] = {"stop": "stop", "length": "length"}
_CONNECT_S, _SILENT_S = 10.0, 600.0
"""How long it may take to connect, and to say something: a long prompt is read in silence."""


class SGLangEngine(Engine):
    """Asks a server of SGLang.

    Args:
        reader: embeds token ids; the server runs its model.
        url: of the server, such as "http://127.0.0.1:30000".
        api_key: where it was started with one.
        transport: how it is reached, by default over the network.
    """

    name = "sglang"

    def __init__(
        self,
        reader: Reader,
        url: str,
        *,
        api_key: str | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._reader, self._url = reader, url
        self._client = httpx2.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx2.Timeout(_SILENT_S, connect=_CONNECT_S),
            transport=transport,
        )
        self._num_running = 0

    async def __aexit__(self, *exc_info: object) -> None:
        await self._client.aclose()

    async def check(self) -> None:
        try:
            answer = await self._client.get("/health", timeout=_CONNECT_S)
        except (httpx2.HTTPError, RuntimeError) as error:
            raise self._gone(error) from error
        if answer.status_code != httpx2.codes.OK:
            raise self._refused(answer.status_code, answer.text)

    def numbers(self) -> Mapping[str, float]:
        return {"running": self._num_running}

    async def generate(self, request: Request) -> AsyncIterator[NewTokens]:
        reader = self._reader
        check_parts(request, hidden_size=reader.hidden_size, vocab_size=reader.vocab_size)
        content = await asyncio.to_thread(self._content, request)
        headers = {"Content-Type": "application/json"}
        self._num_running += 1
        try:
            # Closing the answer before its end closes the connection, and the server gives up.
            async with self._client.stream(
                "POST", "/generate", content=content, headers=headers
            ) as answer:
                if answer.status_code != httpx2.codes.OK:
                    await answer.aread()
                    raise self._refused(answer.status_code, answer.text)
                async for piece in self._pieces(answer):
                    yield piece
                    if piece.finish_reason:
                        return
            raise EngineError(
                f"SGLang says how an answer ends, but {self._url} broke off; see its log."
            )
        except (httpx2.HTTPError, RuntimeError) as error:  # the latter of a client that was closed
            raise self._gone(error) from error
        finally:
            self._num_running -= 1

    def _content(self, request: Request) -> bytes:
        """What is sent; it takes seconds to write thousands of rows."""
        reader, sampling = self._reader, request.sampling
        rows = [part if part.ndim == 2 else reader.embed_tokens(part) for part in request.parts]
        embeds = torch.cat([part.to("cpu", torch.float32) for part in rows if len(part)])  # (R, H)
        asked: dict[str, Any] = {
            "max_new_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        }
        if sampling.seed is not None:
            asked["sampling_seed"] = sampling.seed
        body = {"input_embeds": embeds.tolist(), "sampling_params": asked, "stream": True}
        return json.dumps(body).encode()

    async def _pieces(self, answer: httpx2.Response) -> AsyncIterator[NewTokens]:
        num_seen = 0
        async for line in answer.aiter_lines():
            if not line.startswith("data:") or line == "data: [DONE]":
                continue
            event = self._event(line.removeprefix("data:"))
            info = event["meta_info"]
            # Ids are all so far, or the new ones alone where the server streams incrementally.
            count = info["completion_tokens"] - num_seen
            new = event["output_ids"][-count:] if count > 0 else []
            num_seen += len(new)
            reason = self._reason(info["finish_reason"])
            if new or reason:
                yield NewTokens(token_ids=tuple(new), finish_reason=reason)

    def _event(self, text: str) -> dict[str, Any]:
        try:
            event: dict[str, Any] = json.loads(text)
            if "error" in event:
                raise EngineError(
                    f"SGLang failed on this request ({_message(event['error'])}); see its log."
                )
            if not {"meta_info", "output_ids"} <= event.keys():
                raise ValueError("an event has no meta_info or no output_ids")
        except ValueError as error:
            raise EngineError(
                f"SGLang answers with events of its native API, but {self._url} did not ({error}); "
                "check the address, and that it is a current SGLang."
            ) from error
        return event

    def _reason(self, given: Mapping[str, Any] | None) -> FinishReason | None:
        if given is None:
            return None
        if given["type"] not in _ENDS:
            raise EngineError(
                f"SGLang ended this request by itself ({given.get('message', given['type'])}); "
                "see its log."
            )
        return _ENDS[given["type"]]

    def _gone(self, error: Exception) -> EngineError:
        return EngineError(
            f"SGLang at {self._url} does not answer ({type(error).__name__}: {error}); start it "
            "with `python -m sglang.launch_server --disable-radix-cache`, or correct the address."
        )

    def _refused(self, status: int, text: str) -> EngineError:
        return EngineError(
            f"SGLang at {self._url} refused with status {status} ({text.strip()[:500]}); follow "
            "what it says, and see that it runs this reader with `--disable-radix-cache`."
        )


def _message(error: Any) -> str:
    return str(error.get("message", error)) if isinstance(error, Mapping) else str(error)
