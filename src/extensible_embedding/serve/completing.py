"""A prompt -> text as it comes, from an engine.

In: a prompt that is ready. Out: pieces of text, the last with how it ended. Closing the pieces
closes the engine's generation. Knows nothing of HTTP but the errors that it raises.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import cast

import anyio
from transformers import PreTrainedTokenizerBase

from ..errors import EngineError
from ..generation import FinishReason
from .engines.base import Engine, NewTokens, Request
from .errors import ApiError


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What came since the last piece."""

    text: str
    num_tokens: int
    """Generated so far."""
    finish_reason: FinishReason | None = None
    """Of the last piece."""


class Detokenizer:
    """Token ids as they come -> text of whole characters."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer, self._ids, self._said = tokenizer, [], ""

    def add(self, ids: Sequence[int]) -> str:
        self._ids += ids
        whole = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        if whole.endswith("\ufffd"):
            return ""
        new, self._said = whole[len(self._said) :], whole
        return new

    def end(self) -> str:
        whole = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        return whole[len(self._said) :]


class StopTexts:
    """Ends a text before the first of some texts; holds back what may be the start of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops, self._held = stops, ""

    def add(self, text: str, *, last: bool = False) -> tuple[str, bool]:
        """What can be said after this text came, and whether it ends there."""
        whole = self._held + text
        found = [place for stop in self._stops if (place := whole.find(stop)) >= 0]
        if found:
            return whole[: min(found)], True
        held = 0 if last else max((_overlap(whole, stop) for stop in self._stops), default=0)
        self._held = whole[len(whole) - held :]
        return whole[: len(whole) - held], False


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of a text that a stop begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if stop.startswith(text[-n:])), 0)


async def text_of(
    engine: Engine,
    request: Request,
    detokenizer: Detokenizer,
    stops: Sequence[str],
    timeout_s: float,
) -> AsyncGenerator[Piece]:
    """Pieces of the text that goes on from a prompt.

    Raises:
        EngineError: the engine failed.
        ApiError: 504, it took too long.
    """
    until, held, count = time.monotonic() + timeout_s, StopTexts(stops), 0
    stream = cast(AsyncGenerator[NewTokens], engine.generate(request))
    try:
        while True:
            new = await _next(stream, until - time.monotonic(), timeout_s)
            count += len(new.token_ids)
            last = new.finish_reason is not None
            text = detokenizer.add(new.token_ids) + (detokenizer.end() if last else "")
            text, stopped = held.add(text, last=last)
            reason = "stop" if stopped else new.finish_reason
            if text or reason:
                yield Piece(text=text, num_tokens=count, finish_reason=reason)
            if reason:
                return
    finally:
        with anyio.CancelScope(shield=True):
            await stream.aclose()


async def _next(stream: AsyncIterator[NewTokens], left_s: float, timeout_s: float) -> NewTokens:
    try:
        with anyio.fail_after(max(0.0, left_s)):
            return await anext(stream)
    except TimeoutError:
        raise ApiError(
            504,
            f"An answer is there within {timeout_s:g} seconds, but this one was not; ask for fewer "
            "new tokens, or again when the server has less to do.",
            code="timeout",
        ) from None
    except StopAsyncIteration:
        raise EngineError(
            "An engine says how an answer ends, but this one broke off; see its log."
        ) from None
