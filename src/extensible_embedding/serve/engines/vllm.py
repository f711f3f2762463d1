"""The engine of vLLM in this process: many requests at once, on one GPU or several, or a CPU.

In: requests of token ids and rows. Out: new token ids. Prompts go in as `prompt_embeds`;
scheduling, chunked prefill and the cache of shared prefixes are vLLM's own, as are end tokens and
the penalty of repetitions in the model's generation configuration. vLLM runs the model in a process
of its own.

Axes: S prompt row, H reader hidden size.
"""

from __future__ import annotations

import importlib
import inspect
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from types import ModuleType
from typing import Any

from ...errors import EngineError, MissingExtraError
from .base import Engine, NewTokens, Request, Sampling
from .embeds import EmbedTokens, joined_rows

_OURS = ("model", "enable_prompt_embeds")
"""Arguments that the engine gives itself."""


class VllmEngine(Engine):
    """Runs a model of vLLM's.

    Args:
        model: a folder or a hub id, of the reader whose rows it is sent.
        embed_tokens: the reader's table.
        settings: passed on to vLLM's AsyncEngineArgs, such as dtype or tensor_parallel_size.
    """

    name = "vllm"

    def __init__(self, model: str, embed_tokens: EmbedTokens, **settings: Any) -> None:
        self._arguments = {"model": model, "enable_prompt_embeds": True, **settings}
        self._embed_tokens = embed_tokens
        self._vllm: ModuleType | None = None
        self._engine: Any = None
        self._defaults: dict[str, Any] = {}
        self._num_running = self._num_hits = self._num_misses = self._num_reused_rows = 0

    async def __aenter__(self) -> VllmEngine:
        """Starts vLLM.

        Raises:
            MissingExtraError: it is not installed.
            EngineError: it does not start.
        """
        self._vllm = vllm = _vllm()
        async_llm = importlib.import_module("vllm.v1.engine.async_llm")
        try:
            arguments = vllm.AsyncEngineArgs(**self._arguments)
            self._engine = async_llm.AsyncLLM.from_engine_args(arguments)
        except Exception as error:  # of configuration, weights, memory: they share no base
            raise EngineError(
                f"vLLM does not start with {self._arguments} ({_reason(error)}); see its log, and "
                "correct them."
            ) from error
        known = self._engine.model_config.get_diff_sampling_param()
        self._defaults = {key: known[key] for key in ("repetition_penalty",) if key in known}
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._engine is not None:
            self._engine.shutdown()
            self._engine = None

    async def check(self) -> None:
        if self._engine is None or self._engine.errored:
            state = "has not been started, or has ended" if self._engine is None else "has failed"
            raise EngineError(f"vLLM takes no request, because it {state}; start it again.")

    def numbers(self) -> Mapping[str, float]:
        return {
            "running": self._num_running,
            "prefix_cache_hits": self._num_hits,
            "prefix_cache_misses": self._num_misses,
            "prefix_cache_rows_reused": self._num_reused_rows,
        }

    async def generate(self, request: Request) -> AsyncIterator[NewTokens]:
        await self.check()
        prompt = {"prompt_embeds": joined_rows(request, self._embed_tokens)}
        sampling = self._sampling(request.sampling)
        stream = self._engine.generate(prompt, sampling, uuid.uuid4().hex)
        self._num_running += 1
        counted = False
        try:
            async with aclosing(stream):
                async for output in stream:
                    counted = counted or self._count(output)
                    piece = _piece(output.outputs[0])
                    if piece.token_ids or piece.finish_reason:
                        yield piece
        except EngineError:
            raise
        except Exception as error:  # vLLM's own and Python's, without a common base
            raise EngineError(f"vLLM refused a request ({_reason(error)}); see its log.") from error
        finally:
            self._num_running -= 1

    def _sampling(self, sampling: Sampling) -> Any:
        assert self._vllm is not None
        kinds = importlib.import_module("vllm.sampling_params")
        return self._vllm.SamplingParams(
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
            detokenize=False,
            output_kind=kinds.RequestOutputKind.DELTA,
            **self._defaults,
        )

    def _count(self, output: Any) -> bool:
        reused = output.num_cached_tokens or 0
        self._num_hits += reused > 0
        self._num_misses += reused == 0
        self._num_reused_rows += reused
        return True


def _piece(output: Any) -> NewTokens:
    if output.finish_reason not in (None, "stop", "length"):
        raise EngineError(f"vLLM gave up a request ({output.finish_reason}); ask again.")
    return NewTokens(token_ids=tuple(output.token_ids), finish_reason=output.finish_reason)


def known_settings() -> list[str]:
    """Names of what can be set: arguments of vLLM's but those that are ours.

    Raises:
        MissingExtraError: vLLM is not installed.
    """
    return [
        name for name in inspect.signature(_vllm().AsyncEngineArgs).parameters if name not in _OURS
    ]


def _vllm() -> ModuleType:
    try:
        return importlib.import_module("vllm")
    except ImportError as error:
        raise MissingExtraError(
            f"The engine vllm needs vLLM, which cannot be imported ({error}); install it in an "
            "environment of its own as docs/engines.md says, or use `vllm-server`."
        ) from error


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or ["no reason given"]
    return f"{type(error).__name__}: {lines[0].rstrip('.')}"
