"""The contract of an engine: rows and tokens in, tokens out, as they come.

In: the parts of a prompt in order and how to sample. Out: new token ids. An engine knows nothing of
contexts, questions, HTTP and text: prompts are put together before it, and what comes out is
decoded after it (`detokenize`).

Axes: R row, H reader hidden size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ...errors import InputError
from ...generation import FinishReason


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How new tokens are chosen; greedy unless `temperature` says otherwise."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    seed: int | None = None
    """The same seed and request give the same tokens on the same engine."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(
                f"At least 1 token is generated, but max_new_tokens is {self.max_new_tokens}; ask "
                "for 1 or more."
            )
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise InputError(
                "A temperature is 0 or more and top_p above 0 and at most 1, but they are "
                f"{self.temperature} and {self.top_p}; give others."
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """One prompt to go on from.

    Attributes:
        parts: token ids (t,) or rows (R, H), in order (`Prompt.tensors`).
        num_shared: leading parts that other requests are likely to share (head and contexts):
            what an engine may keep, so that the next one pays only for the rest.
        sampling: how new tokens are chosen.
    """

    parts: tuple[Tensor, ...]
    num_shared: int = 0
    sampling: Sampling = field(default_factory=Sampling)

    @property
    def num_rows(self) -> int:
        """Rows of the whole prompt, a token being one."""
        return sum(len(part) for part in self.parts)


@dataclass(frozen=True, kw_only=True)
class NewTokens:
    """What an engine has generated since the last piece."""

    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    """Of the last piece: "stop" at an end token, which is the last id, or "length"."""


class Engine(ABC):
    """Runs the reader on prompts of tokens and rows; one obligatory method.

    Requests run side by side. Each engine is started by `async with`, and ends there whatever still
    runs. A prompt and its new tokens fit the window: the caller has seen to it.
    """

    name: str

    @abstractmethod
    def generate(self, request: Request) -> AsyncIterator[NewTokens]:
        """New tokens as they come; the last piece alone has a finish reason.

        An async generator: closing it (`aclose`) ends the generation and frees what it held.

        Raises:
            EngineError: the engine failed, is gone or refused the request.
        """

    async def __aenter__(self) -> Engine:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Ends what runs and gives back what is held."""
        return None

    async def check(self) -> None:
        """Raises EngineError where the engine could not take a request now (readiness)."""
        return None

    def numbers(self) -> Mapping[str, float]:
        """What it counts, for metrics: names as `prefix_cache_hits`, `running`, `waiting`."""
        return {}
