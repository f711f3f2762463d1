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

import base64
import io
import json
from typing import Any

import httpx2
import torch
from torch import Tensor

from ...errors import EngineError
from .base import NewTokens, Request, Sampling
from .embeds import EmbedTokens
from .remote import Parser, RemoteEngine

_HINTS = {
    "enable-prompt-embeds": "start it with `vllm serve MODEL --enable-prompt-embeds`",
    "hidden_size": "serve the reader that the rows were made for",
    "maximum context length": "start it with a larger --max-model-len, or shorten the prompt",
}
"""What to do about what vLLM says, by words in that."""


class VllmServerEngine(RemoteEngine):
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
    product = "vLLM"
    path = "/v1/completions"
    format_advice = "use vLLM 0.10.2 or newer"

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
        super().__init__(
            url,
            embed_tokens,
            api_key=api_key,
            connect_timeout_s=connect_timeout_s,
            read_timeout_s=read_timeout_s,
            transport=transport,
        )
        self.model = model

    async def __aenter__(self) -> VllmServerEngine:
        """Asks the server for its model, and for one token: what it lacks shows now.

        Raises:
            EngineError: it is not there, or takes no rows of this reader.
        """
        try:
            if self.model is None:
                async with self.answer("GET", "/v1/models") as response:
                    self.model = _first_model(await response.aread(), self.url)
            head = torch.zeros(1, dtype=torch.long)
            probe = Request(parts=(head,), sampling=Sampling(max_new_tokens=1))
            async for _ in self.generate(probe):
                pass
        except BaseException:
            await self._client.aclose()
            raise
        return self

    def fields(self, request: Request, rows: Tensor) -> dict[str, Any]:
        sampling = request.sampling
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
        return fields

    def advice(self, message: str, code: object) -> str:
        found = (hint for words, hint in _HINTS.items() if words in message)
        return next(found, super().advice(message, code))

    def parser(self) -> Parser:
        return lambda event: [_piece(choice) for choice in event["choices"]]


def encoded(rows: Tensor) -> str:
    """Rows (S, H) as `prompt_embeds` takes them."""
    buffer = io.BytesIO()
    torch.save(rows, buffer)
    return base64.b64encode(buffer.getbuffer()).decode("ascii")


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
