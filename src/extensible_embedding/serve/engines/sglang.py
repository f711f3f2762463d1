"""The engine of SGLang: a running server, on this machine or others.

In: requests of token ids and rows. Out: new token ids. A prompt goes to `/generate`, the server's
own protocol, as `input_embeds`: every row as numbers in JSON, which is slow for long prompts. The
server must run with `--disable-radix-cache`, since it refuses embeddings otherwise, and so it keeps
no prefixes. It must serve the reader whose rows it is sent.

This was not run with a real SGLang. It follows its documentation (docs.sglang.io: native API and
sampling parameters) and its source, and is tested against a stand-in that checks the request.

Axes: S prompt row, H reader hidden size.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...errors import EngineError
from .base import NewTokens, Request
from .remote import Parser, RemoteEngine


class SGLangEngine(RemoteEngine):
    """Sends requests to a server of SGLang, with the arguments of `RemoteEngine`."""

    name = "sglang"
    product = "SGLang"
    path = "/generate"
    format_advice = "use a current SGLang"

    def fields(self, request: Request, rows: Tensor) -> dict[str, Any]:
        sampling = request.sampling
        asked: dict[str, Any] = {
            "max_new_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            # What is left out would be taken from the model's generation configuration.
            "top_k": -1,
            "min_p": 0.0,
        }
        if sampling.seed is not None:
            asked["sampling_seed"] = sampling.seed
        return {"input_embeds": rows.tolist(), "sampling_params": asked, "stream": True}

    def advice(self, message: str, code: object) -> str:
        if "radix" in message:
            return "start it with `python -m sglang.launch_server --disable-radix-cache`"
        return super().advice(message, code)

    def parser(self) -> Parser:
        num_seen = 0

        def parse(event: dict[str, Any]) -> list[NewTokens]:
            """Ids are all so far, or the new ones alone where the server streams incrementally."""
            nonlocal num_seen
            info, ids = event["meta_info"], event["output_ids"]
            count = info["completion_tokens"] - num_seen
            num_seen += count
            end = info["finish_reason"] or {"type": None}
            if end["type"] not in (None, "stop", "length"):
                raise EngineError(
                    f"SGLang at {self.url} ended a request by itself "
                    f"({end.get('message', end['type'])}); see its log."
                )
            if not count and end["type"] is None:
                return []
            new = tuple(ids[len(ids) - count :])
            return [NewTokens(token_ids=new, finish_reason=end["type"])]

        return parse
