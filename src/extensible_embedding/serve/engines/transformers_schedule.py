"""Requests side by side on one reader: what is read next, and whose tokens come of it.

In: jobs. Out: their pieces, by `deliver`. In a step every request that is being answered gets a
token, all in one pass, and then prompts are read, the first come first, by a number of rows that
bounds how long answers wait. A request joins the others as soon as its prompt has been read.

Axes: R row, H reader hidden size, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Cache,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from ...errors import EngineError, InputError
from ...generation import FinishReason
from ...reader import Reader
from .base import NewTokens, Request, Sampling
from .prefix_cache import PrefixCache, Shared, shared_prefixes
from .transformers_passes import Passes
from .worker import Job, check_parts

_GREEDY_BELOW = 1e-5
"""A lower temperature overflows, and would choose the same."""


@dataclass(frozen=True, kw_only=True)
class TransformersSettings:
    """How much one reader does at a time."""

    max_running: int = 8
    """The most requests that run side by side; others wait."""
    max_rows: int | None = None
    """Rows of all running prompts and their answers together; by default four windows."""
    prefill_rows: int = 256
    """Rows of prompts that are read at once: running answers wait as long."""
    prefix_cache_bytes: int = 1 << 30
    """Of the keys and values that are kept of recent contexts."""

    def __post_init__(self) -> None:
        least = min(self.max_running, self.prefill_rows, self.max_rows or 1)
        if least < 1 or self.max_rows == 0 or self.prefix_cache_bytes < 0:
            raise InputError(
                "An engine runs at least 1 request and reads at least 1 row, and keeps no less "
                f"than 0 bytes, but these are its settings: {self}; give others."
            )


class Choice:
    """How a request's tokens are chosen, by transformers' own processors of logits.

    Args:
        sampling: what the request asks for.
        penalty: of repetitions, of the model's own generation configuration.
        device: where logits are.
    """

    def __init__(self, sampling: Sampling, penalty: float | None, device: torch.device) -> None:
        self._greedy = sampling.temperature < _GREEDY_BELOW
        self._processors = LogitsProcessorList()
        if penalty is not None and penalty != 1:
            self._processors.append(RepetitionPenaltyLogitsProcessor(float(penalty)))
        if self._greedy:
            return
        self._processors.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_p < 1:
            self._processors.append(TopPLogitsWarper(sampling.top_p))
        self._random = torch.Generator(device)
        if sampling.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(sampling.seed)

    def next_token(self, logits: Tensor, token_ids: Sequence[int]) -> int:
        """Of logits (V,) after the tokens that were chosen before."""
        before: Any = torch.tensor([token_ids], dtype=torch.long, device=logits.device)
        scores = self._processors(before, logits[None])[0]
        if self._greedy:
            return int(scores.argmax())
        return int(torch.multinomial(scores.softmax(-1), 1, generator=self._random))


@dataclass(eq=False)
class _Running:
    """A job that has begun."""

    job: Job
    cache: Cache
    choice: Choice
    unread: Tensor
    """Rows (R, H) of its prompt."""
    shared: Sequence[Shared]
    """What is kept of it, as soon as it has been read."""
    num_rows: int
    """Of its prompt and its answer."""
    token_ids: list[int] = field(default_factory=list)


class TransformersSchedule:
    """All jobs of one reader.

    Args:
        reader: runs them.
        settings: how much at a time.
    """

    def __init__(self, reader: Reader, settings: TransformersSettings) -> None:
        self._reader, self._settings = reader, settings
        self._max_rows = settings.max_rows or 4 * reader.window
        self._passes = Passes(reader)
        self._prefixes = PrefixCache(settings.prefix_cache_bytes if self._passes.keeps else 0)
        generation = reader.model.generation_config
        ends = generation.eos_token_id
        self._ends = {ends} if isinstance(ends, int) else set(ends or ())
        self._penalty = generation.repetition_penalty
        self._waiting: deque[Job] = deque()
        self._reading: _Running | None = None
        self._writing: list[_Running] = []
        self._num_read_rows = self._num_new_tokens = 0

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._waiting or self._running())

    def numbers(self) -> Mapping[str, float]:
        """What it counts."""
        running, kept = self._running(), self._prefixes
        return {
            "running": len(running),
            "waiting": len(self._waiting),
            "rows_held": sum(each.num_rows for each in running),
            "rows_read": self._num_read_rows,
            "new_tokens": self._num_new_tokens,
            "prefix_cache_hits": kept.num_hits,
            "prefix_cache_misses": kept.num_misses,
            "prefix_cache_rows_reused": kept.num_reused_rows,
            "prefix_cache_bytes": kept.num_bytes,
        }

    def check_request(self, request: Request) -> None:
        """Raises EngineError unless the reader can read it, and there is ever room for it."""
        reader = self._reader
        check_parts(request, hidden_size=reader.hidden_size, vocab_size=reader.vocab_size)
        rows = request.num_rows + request.sampling.max_new_tokens
        if rows > self._max_rows:
            raise EngineError(
                f"A prompt and its answer fit the engine's {self._max_rows} rows (max_rows), but "
                f"they take {rows}; shorten them, or give the engine more."
            )

    def submit(self, job: Job) -> None:
        """Takes a job, whose request has been checked."""
        self._waiting.append(job)

    @torch.inference_mode()
    def step(self) -> None:
        """One token of every answer, then as many rows of prompts as may be read at once."""
        self._drop_cancelled()
        self._write()
        room = self._settings.prefill_rows
        while room > 0 and (each := self._reading or self._begin()) is not None:
            room -= self._read(each, room)

    def close(self, error: EngineError) -> None:
        """Ends all jobs with an error, and keeps nothing."""
        for job in [*self._waiting, *(each.job for each in self._running())]:
            job.deliver(error)
        self._waiting.clear()
        self._reading, self._writing = None, []
        self._prefixes.clear()

    def _running(self) -> list[_Running]:
        return [*self._writing, *([self._reading] if self._reading else [])]

    def _drop_cancelled(self) -> None:
        self._waiting = deque(job for job in self._waiting if not job.cancelled)
        for each in self._running():
            if each.job.cancelled:
                self._end(each)

    def _begin(self) -> _Running | None:
        """The oldest that waits, where there is room for it.

        None overtakes it: a long prompt would wait for ever. The next prompt begins after this one
        has been read, so that it finds what was kept of it.
        """
        while self._waiting:
            request = self._waiting[0].request
            rows = request.num_rows + request.sampling.max_new_tokens
            held = sum(each.num_rows for each in self._writing)
            if len(self._writing) == self._settings.max_running or held + rows > self._max_rows:
                return None
            job = self._waiting.popleft()
            try:
                self._reading = self._prepared(job, rows)
                return self._reading
            except Exception as error:  # of the request's own, such as too little memory for it
                job.deliver(_failure(error))
        return None

    def _prepared(self, job: Job, num_rows: int) -> _Running:
        request, reader = job.request, self._reader
        cache = self._passes.new_cache(num_rows)
        shared = shared_prefixes(request) if self._prefixes.max_bytes else []
        # The last row is read again even where all of them are known: its logits are needed.
        known = self._prefixes.restore(shared, cache, request.num_rows - 1)
        rows = [part if part.ndim == 2 else reader.embed_tokens(part) for part in request.parts]
        embeds = torch.cat([part.to(reader.device, reader.dtype) for part in rows if len(part)])
        choice = Choice(request.sampling, self._penalty, reader.device)
        return _Running(job, cache, choice, embeds[known:], shared, num_rows)

    def _read(self, each: _Running, room: int) -> int:
        """Reads some of a prompt, and says how many rows; the first token follows the last row."""
        position = each.job.request.num_rows - len(each.unread)
        until_kept = (each.shared[-1].num_rows if each.shared else 0) - position
        count = min(until_kept, room) if until_kept > 0 else room
        piece = each.unread[:count] if self._passes.splits else each.unread
        try:
            logits = self._passes.read(piece, each.cache)
            each.unread = each.unread[len(piece) :]
            if until_kept == len(piece):
                self._prefixes.keep(each.shared, each.cache)
        except Exception as error:  # of this request alone
            self._fail([each], error)
            return len(piece)
        self._num_read_rows += len(piece)
        if not len(each.unread):
            self._reading = None
            self._writing.append(each)
            self._choose(each, logits)
        return len(piece)

    def _write(self) -> None:
        """One more token of every answer."""
        writing = list(self._writing)
        if not writing:
            return
        try:
            logits = self._passes.write(
                [each.token_ids[-1] for each in writing], [each.cache for each in writing]
            )
        except Exception as error:  # their caches cannot be trusted any longer
            self._fail(writing, error)
            return
        for each, its_logits in zip(writing, logits, strict=True):
            self._choose(each, its_logits)

    def _choose(self, each: _Running, logits: Tensor) -> None:
        try:
            token = each.choice.next_token(logits, each.token_ids)
        except Exception as error:  # of this request alone, such as logits that are no numbers
            self._fail([each], error)
            return
        each.token_ids.append(token)
        self._num_new_tokens += 1
        at_limit = len(each.token_ids) == each.job.request.sampling.max_new_tokens
        reason: FinishReason | None = "length" if at_limit else None
        reason = "stop" if token in self._ends else reason
        if reason:  # before anybody hears of it, so that its place is seen to be free
            self._end(each)
        each.job.deliver(NewTokens(token_ids=(token,), finish_reason=reason))

    def _fail(self, which: Sequence[_Running], error: Exception) -> None:
        for each in which:
            self._end(each)
            each.job.deliver(_failure(error))

    def _end(self, each: _Running) -> None:
        if each is self._reading:
            self._reading = None
        else:
            self._writing.remove(each)


def _failure(error: Exception) -> EngineError:
    """One for each request: each is raised where its request is waited for."""
    failure = EngineError(
        f"The reader failed on this request ({type(error).__name__}: {error}); ask again, or for "
        "less."
    )
    failure.__cause__ = error
    return failure
