"""The engine of a running `vllm serve --enable-prompt-embeds`, on this machine or others.

In: requests of token ids and rows. Out: new token ids. A request is one POST to /v1/completions
with `prompt_embeds` (base64 of torch.save) and `return_token_ids`; tokens come as server-sent
events, and closing the connection ends the generation. Scheduling, chunked prefill and the cache of
shared prefixes are vLLM's own, as are end tokens and the penalty of repetitions in the generation
configuration of the model that it serves.

The server must serve the reader whose rows it is sent, and trust this client: a malformed tensor
has crashed vLLM (CVE-2025-62164).

Axes: S prompt row, H reader hidden size.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import torch
from torch import Tensor

from ...errors import EngineError
from .base import Engine, NewTokens, Request, Sampling
from .embeds import EmbedTokens, joined_rows

_HINTS = {
    "enable-prompt-embeds": "start it with `vllm serve MODEL --enable-prompt-embeds`",
    "hidden_size": "serve the reader that the rows were made for",
    "maximum context length": "start it with a larger --max-model-len, or shorten the prompt",
}
"""What to do about what vLLM says, by words in that."""


class VllmServerEngine(Engine):
    """Sends requests to a server of vLLM.

    Args:
        url: where it is, with or without /v1.
        embed_tokens: the reader's table.
        model: the name that it serves the reader by; by default the first that it lists.
        api_key: what it was started with, if it was.
        connect_timeout_s: until it takes a connection.
        read_timeout_s: until something comes, such as the first token of a long prompt.
        transport: how it is reached, if not by the network.
    """

    name = "vllm-server"

    def __init__(
        self,
        url: str,
        embed_tokens: EmbedTokens,
        *,
        model: str | None = None,
        api_key: str | None = None,
        connect_timeout_s: float = 10.0,
        read_timeout_s: float = 600.0,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.model = model
        self._embed_tokens = embed_tokens
        self._num_running = 0
        self._client = httpx2.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx2.Timeout(read_timeout_s, connect=connect_timeout_s, pool=None),
            limits=httpx2.Limits(),  # it is the server that knows how many requests it takes
            transport=transport,
        )

    async def __aenter__(self) -> VllmServerEngine:
        """Asks the server for its model, and for one token: what it lacks shows now.

        Raises:
            EngineError: it is not there, or takes no rows of this reader.
        """
        try:
            if self.model is None:
                async with self._answer("GET", "/v1/models") as response:
                    self.model = _first_model(await response.aread(), self.url)
            head = torch.zeros(1, dtype=torch.long)
            probe = Request(parts=(head,), sampling=Sampling(max_new_tokens=1))
            async for _ in self.generate(probe):
                pass
        except BaseException:
            await self._client.aclose()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._client.aclose()

    async def check(self) -> None:
        async with self._answer("GET", "/health"):
            return

    def numbers(self) -> Mapping[str, float]:
        return {"running": self._num_running}

    async def generate(self, request: Request) -> AsyncIterator[NewTokens]:
        body = await asyncio.to_thread(self._body, request)
        self._num_running += 1
        try:
            async with self._answer("POST", "/v1/completions", body) as response:
                async for line in response.aiter_lines():
                    for piece in _pieces(line, self.url):
                        yield piece
                        if piece.finish_reason:
                            return
            raise EngineError(f"vLLM at {self.url} ended an answer before its end; ask again.")
        finally:
            self._num_running -= 1

    def _body(self, request: Request) -> bytes:
        """The request as JSON; of a long prompt it is megabytes."""
        rows, sampling = joined_rows(request, self._embed_tokens), request.sampling
        fields: dict[str, Any] = {
            "model": self.model,
            "prompt_embeds": encoded(rows),
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            # What is left out would be taken from the model's generation configuration.
            "top_k": 0,
            "min_p": 0.0,
            "stream": True,
            "return_token_ids": True,
        }
        if sampling.seed is not None:
            fields["seed"] = sampling.seed
        return json.dumps(fields).encode()

    @asynccontextmanager
    async def _answer(
        self, method: str, path: str, body: bytes | None = None
    ) -> AsyncIterator[httpx2.Response]:
        """A response that is no error; its body may be still to come."""
        headers = {"Content-Type": "application/json"} if body else {}
        try:
            async with self._client.stream(method, path, content=body, headers=headers) as response:
                if response.status_code != httpx2.codes.OK:
                    await response.aread()
                    raise _refusal(self.url, _message(response), response.status_code)
                yield response
        except httpx2.TimeoutException as error:
            raise EngineError(
                f"vLLM at {self.url} did not answer in time ({type(error).__name__}); ask for "
                "less, or give it longer time-outs."
            ) from error
        except httpx2.HTTPError as error:
            raise EngineError(
                f"vLLM at {self.url} cannot be reached ({type(error).__name__}: {error}); check "
                "the address, and that it runs."
            ) from error


def encoded(rows: Tensor) -> str:
    """Rows (S, H) as `prompt_embeds` takes them."""
    buffer = io.BytesIO()
    torch.save(rows, buffer)
    return base64.b64encode(buffer.getbuffer()).decode("ascii")


def _pieces(line: str, url: str) -> list[NewTokens]:
    """What one line of a stream of events says; most say nothing, or one thing."""
    kind, _, data = line.partition(":")
    if kind != "data" or data.strip() == "[DONE]":
        return []
    try:
        event = json.loads(data)
        if "error" in event:
            raise _refusal(url, str(event["error"]["message"]), event["error"].get("code"))
        return [_piece(choice) for choice in event["choices"]]
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(
            f"vLLM at {url} sends token ids as its documentation says, but it sent "
            f"{data.strip()[:200]!r}; use vLLM 0.10.2 or newer."
        ) from error


def _piece(choice: dict[str, Any]) -> NewTokens:
    reason = choice.get("finish_reason")
    if reason not in (None, "stop", "length"):
        raise ValueError(reason)
    return NewTokens(token_ids=tuple(choice["token_ids"]), finish_reason=reason)


def _first_model(body: bytes, url: str) -> str:
    try:
        return str(json.loads(body)["data"][0]["id"])
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise EngineError(
            f"vLLM at {url} lists what it serves, but it sent {body[:200]!r}; check the address, "
            "or name the model."
        ) from error


def _refusal(url: str, message: str, code: object) -> EngineError:
    found = (hint for words, hint in _HINTS.items() if words in message)
    hint = next(found, "check its API key" if code == 401 else "see its log")
    return EngineError(f"vLLM at {url} refused a request ({code}: {message.rstrip('.')}); {hint}.")


def _message(response: httpx2.Response) -> str:
    """Of an error: OpenAI's form, an older one of vLLM's, or whatever stands there."""
    try:
        body = response.json()
        error = body.get("error", body)
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, AttributeError):
        return response.text[:200] or response.reason_phrase
