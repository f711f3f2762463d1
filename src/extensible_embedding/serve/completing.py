"""A prompt -> text as it comes, from an engine.

In: a prompt that is ready. Out: pieces of text, the last with how it ended. Closing the pieces
closes the engine's generation. Knows nothing of HTTP but the errors that it raises.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import anyio

from ..errors import EngineError
from ..generation import FinishReason
from ..reader import Reader
from .detokenize import Detokenizer
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


async def text_of(
    engine: Engine,
    request: Request,
    reader: Reader,
    stops: Sequence[str],
    until: float,
    timeout_s: float,
) -> AsyncGenerator[Piece]:
    """Pieces of the text that goes on from a prompt.

    Args:
        engine: that goes on.
        request: the prompt.
        reader: that decodes; its tokenizer is used by one thread alone.
        stops: strings before which the text ends.
        until: when it must be there, by `time.monotonic`.
        timeout_s: seconds for the whole request, for the error.

    Raises:
        EngineError: the engine failed.
        ApiError: 504, it took too long.
    """
    detokenizer = Detokenizer(reader, stops)
    stream = cast(AsyncGenerator[NewTokens], engine.generate(request))
    try:
        while detokenizer.finish_reason is None:
            text = detokenizer.add(await _next(stream, until, timeout_s))
            if text or detokenizer.finish_reason:
                yield Piece(
                    text=text,
                    num_tokens=detokenizer.num_tokens,
                    finish_reason=detokenizer.finish_reason,
                )
    finally:
        with anyio.CancelScope(shield=True):
            await stream.aclose()


@contextmanager
def in_time(until: float, timeout_s: float) -> Iterator[None]:
    """Raises ApiError, 504, where what is done is not done until then."""
    try:
        with anyio.fail_after(max(0.0, until - time.monotonic())):
            yield
    except TimeoutError:
        raise ApiError(
            504,
            f"An answer is there within {timeout_s:g} seconds, but this one was not; ask for fewer "
            "new tokens, or again when the server has less to do.",
            code="timeout",
        ) from None


async def _next(stream: AsyncIterator[NewTokens], until: float, timeout_s: float) -> NewTokens:
    try:
        with in_time(until, timeout_s):
            return await anext(stream)
    except StopAsyncIteration:
        raise EngineError(
            "An engine says how an answer ends, but this one broke off; see its log."
        ) from None
