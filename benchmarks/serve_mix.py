"""What the clients of the load test ask, and how an answer is judged.

In: a client of HTTP, shares of kinds of requests. Out: answers, errors, times and tokens, counted.
Each client keeps contexts of its own, so that what it is told of them can be checked.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2

MIXES: dict[str, dict[str, float]] = {
    "mixed": {
        "short": 0.30,
        "contexts": 0.30,
        "long": 0.05,
        "create": 0.08,
        "append": 0.07,
        "delete": 0.05,
        "list": 0.15,
    },
    "one": {"contexts": 1.0},
}
"""Shares of kinds of requests; `one` is what the engine alone is asked, too."""
STREAMED = {"mixed": 0.5, "one": 1.0}
"""Of chats, how many are streamed."""
MOST_KEPT = 4
"""Contexts of one client; who has as many deletes one instead of making another."""
TEXT_CHARS = 1500
"""Of a context that is made, or of what it grows by."""
NUM_LONG = 4
"""Different long messages: clients send one again with every turn of a chat, its rows are kept."""
QUESTION = "Who is the heroine, and where does she live?"
BOOK = "book"
"""A context that is there from the beginning."""


@dataclass
class Tally:
    """What came back."""

    answers: Counter[str] = field(default_factory=Counter)
    """By kind of request."""
    errors: Counter[str] = field(default_factory=Counter)
    told_to_wait: int = 0
    """429 with the time after which to come back: no error, the request is sent again."""
    tokens: int = 0
    first_s: list[float] = field(default_factory=list)
    """To the first token, of streamed answers."""
    took_s: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        """From the first request to the last answer."""
        return self.tokens / self.took_s


class Wrong(Exception):
    """An answer that is not what it must be."""


class MixedClient:
    """One client, which asks one thing after the other.

    Args:
        http: how the server is reached.
        number: of this client; it decides what is asked when.
        mix: one of `MIXES`.
        text: that contexts and messages are cut from.
        long_chars: of a message that is longer than the window.
        new_tokens: of an answer.
        tally: where it counts.
    """

    def __init__(
        self,
        http: httpx2.AsyncClient,
        number: int,
        mix: str,
        text: str,
        long_chars: int,
        new_tokens: int,
        tally: Tally,
    ) -> None:
        self._http, self._number, self._text, self._tally = http, number, text, tally
        self._shares, self._streamed = MIXES[mix], STREAMED[mix]
        self._long_chars, self._new_tokens = long_chars, new_tokens
        self._random = random.Random(number)
        self._kept: dict[str, int] = {}
        """Contexts of its own, with their tokens."""
        self._num_made = 0

    async def ask(self) -> None:
        """Asks something, and counts what came of it."""
        kind = self._kind()
        works: dict[str, Callable[[], Awaitable[None]]] = {
            "short": lambda: self._chat(QUESTION),
            "contexts": lambda: self._chat(QUESTION, [BOOK, *list(self._kept)[-1:]]),
            "long": lambda: self._chat(f"{self._long()}\n\n{QUESTION}"),
            "create": self._create,
            "append": self._append,
            "delete": self._delete,
            "list": self._list,
        }
        try:
            await works[kind]()
            self._tally.answers[kind] += 1
        except Wrong as error:
            self._tally.errors[f"{kind}: {error}"] += 1
        except httpx2.HTTPError as error:
            self._tally.errors[f"{kind}: {type(error).__name__}"] += 1

    def _kind(self) -> str:
        kind = self._random.choices(list(self._shares), list(self._shares.values()))[0]
        if kind in ("append", "delete") and not self._kept:
            return "create"
        return "delete" if kind == "create" and len(self._kept) >= MOST_KEPT else kind

    async def _chat(self, message: str, contexts: list[str] | None = None) -> None:
        stream = self._random.random() < self._streamed
        body = {
            "model": "extensible",
            "messages": [{"role": "user", "content": message}],
            "max_tokens": self._new_tokens,
            "stream": stream,
            "stream_options": {"include_usage": True} if stream else None,
            "extensible": {"contexts": contexts or []},
        }
        usage = await (self._streamed_usage(body) if stream else self._whole_usage(body))
        if not usage["completion_tokens"]:
            raise Wrong("an answer without tokens")
        self._tally.tokens += usage["completion_tokens"]

    async def _whole_usage(self, body: dict[str, Any]) -> dict[str, Any]:
        usage: dict[str, Any] = (await self._json("POST", "chat/completions", body))["usage"]
        return usage

    async def _streamed_usage(self, body: dict[str, Any]) -> dict[str, Any]:
        start, first, usage, done = time.monotonic(), None, None, False
        while True:
            async with self._http.stream("POST", "/v1/chat/completions", json=body) as answer:
                if await self._waits(answer):
                    continue
                await _check(answer)
                async for line in answer.aiter_lines():
                    done = done or line == "data: [DONE]"
                    if not line.startswith("data: {"):
                        continue
                    event = json.loads(line[6:])
                    if "error" in event:
                        raise Wrong(event["error"]["message"])
                    if any(choice["delta"].get("content") for choice in event["choices"]):
                        first = first or time.monotonic() - start  # the first event has no text
                    usage = event.get("usage") or usage
            break
        if usage is None or not done:
            raise Wrong("a stream without its end")
        self._tally.first_s.append(first or 0.0)
        return usage

    async def _create(self) -> None:
        name = f"client{self._number}-{self._num_made}"
        self._num_made += 1
        made = await self._json("POST", "contexts", {"name": name, "text": self._part()})
        self._kept[name] = made["tokens"]

    async def _append(self) -> None:
        name = self._random.choice(list(self._kept))
        grown = await self._json("POST", f"contexts/{name}/append", {"text": self._part()})
        if grown["tokens"] <= self._kept[name]:
            raise Wrong("a context that did not grow")
        self._kept[name] = grown["tokens"]

    async def _delete(self) -> None:
        name = next(iter(self._kept))
        await self._json("DELETE", f"contexts/{name}")
        del self._kept[name]

    async def _list(self) -> None:
        prefix = f"client{self._number}-"
        listed = await self._json("GET", f"contexts?limit=1000&after={prefix}")
        own = {
            each["name"]: each["tokens"]
            for each in listed["data"]
            if each["name"].startswith(prefix)
        }
        if own != self._kept:
            raise Wrong("a list that is not what was kept")

    async def _json(self, method: str, path: str, body: Any = None) -> Any:
        while True:
            answer = await self._http.request(method, f"/v1/{path}", json=body)
            if not await self._waits(answer):
                await _check(answer)
                return answer.json()

    async def _waits(self, answer: httpx2.Response) -> bool:
        """Whether the server is full; waits as long as it says."""
        if answer.status_code != 429:
            return False
        self._tally.told_to_wait += 1
        await asyncio.sleep(float(answer.headers["retry-after"]))
        return True

    def _long(self) -> str:
        start = self._random.randrange(NUM_LONG) * 1000
        return self._text[start : start + self._long_chars]

    def _part(self) -> str:
        start = self._random.randrange(len(self._text) - TEXT_CHARS)
        return self._text[start : start + TEXT_CHARS]


async def _check(answer: httpx2.Response) -> None:
    if answer.status_code not in (200, 201):
        code = json.loads(await answer.aread())["error"]["code"]
        raise Wrong(f"{answer.status_code} {code}")
