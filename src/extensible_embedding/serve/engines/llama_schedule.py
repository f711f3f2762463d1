"""Requests side by side in one llama.cpp context: what is read next, and whose tokens come of it.

In: jobs. Out: their pieces. A step reads at most one batch of a prompt, the first come first, and
then one token of every running answer, in one batch together. Knows nothing of threads.

Axes: R row, H reader hidden size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ...errors import EngineError
from ...generation import FinishReason
from .base import NewTokens, Request, Sampling
from .llama_cells import Cells, Held, Sequences
from .prefix_cache import Shared, shared_prefixes
from .worker import Job, check_parts


class Model(Sequences, Protocol):
    """What a schedule asks of `LlamaContext`."""

    hidden_size: int
    vocab_size: int
    window: int
    batch_rows: int

    def is_end(self, token: int) -> bool:
        """Whether a text ends with this token."""

    def read(self, sequence: int, part: Tensor, position: int) -> None:
        """Reads token ids (t,) or rows (R, H); the last has logits."""

    def read_each(self, sequences: Sequence[int], tokens: Tensor, positions: Sequence[int]) -> None:
        """Reads a token (n,) for each of several sequences; each has logits."""

    def sampler(self, sampling: Sampling) -> Any:
        """How tokens of a request are drawn."""

    def draw(self, sampler: Any, index: int) -> int:
        """The next token after a place of the last batch."""

    def free_sampler(self, sampler: Any) -> None:
        """Frees what `sampler` gave."""

    def close(self) -> None:
        """Frees the model."""


@dataclass(eq=False)
class Running:
    """A job that holds cells.

    Attributes:
        job: whose it is.
        held: its cells.
        sampler: draws its tokens.
        chunks: of the prompt, that are still to be read.
        shared: what is to be kept of it, as soon as it has been read.
        position: where what is read next stands.
    """

    job: Job
    held: Held
    sampler: Any
    chunks: deque[Tensor]
    shared: Shared | None
    position: int
    last_token: int = 0
    num_new: int = 0


class LlamaSchedule:
    """All jobs of one model.

    Args:
        model: it is closed by `close`.
        num_cells: rows of all prompts, answers and kept prefixes together.
        num_requests: the most that run side by side; others wait.
        num_prefixes: the most that are kept.
    """

    def __init__(
        self, model: Model, *, num_cells: int, num_requests: int, num_prefixes: int
    ) -> None:
        self._model = model
        self._cells = Cells(
            model, num_cells=num_cells, num_requests=num_requests, num_prefixes=num_prefixes
        )
        self._waiting: deque[Job] = deque()
        self._reading: Running | None = None
        self._answering: list[Running] = []
        self._num_hits = self._num_misses = self._num_reused_rows = self._num_read_rows = 0

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._running)

    def check_request(self, request: Request) -> None:
        model, rows, new = self._model, request.num_rows, request.sampling.max_new_tokens
        room = min(self._cells.num_cells, model.window)
        if rows + new > room:
            raise EngineError(
                f"A prompt and its answer fit in {room} rows (the model's window and the engine's "
                f"num_cells), but they have {rows} and {new}; shorten them or give more cells."
            )
        check_parts(request, hidden_size=model.hidden_size, vocab_size=model.vocab_size)

    def submit(self, job: Job) -> None:
        self._waiting.append(job)

    def step(self) -> None:
        self._drop_cancelled()
        self._begin()
        self._read()
        self._next_tokens()

    def close(self, error: EngineError) -> None:
        for job in [*self._waiting, *(running.job for running in self._running)]:
            job.deliver(error)
        self._waiting.clear()
        self._model.close()

    def numbers(self) -> Mapping[str, float]:
        return {
            "running": len(self._running),
            "waiting": len(self._waiting),
            "prefix_cache_hits": self._num_hits,
            "prefix_cache_misses": self._num_misses,
            "prefix_cache_rows_reused": self._num_reused_rows,
            "rows_read": self._num_read_rows,
            "prefixes_kept": self._cells.num_kept,
            "cells_used": self._cells.num_used,
        }

    @property
    def _running(self) -> list[Running]:
        return [*self._answering, *([self._reading] if self._reading else [])]

    def _drop_cancelled(self) -> None:
        self._waiting = deque(job for job in self._waiting if not job.cancelled)
        for running in self._running:
            if running.job.cancelled:
                self._end(running)

    def _begin(self) -> None:
        """The oldest that waits, when no other prompt is being read and there is room for it.

        None overtakes it: a long prompt would wait for ever. The next prompt begins after this one
        has been read, so that it finds what was kept of it.
        """
        if self._reading or not self._waiting:
            return
        request = self._waiting[0].request
        prefixes = shared_prefixes(request)
        held = self._cells.take(request.num_rows, request.sampling.max_new_tokens, prefixes)
        if held is None:
            return
        self._reading = Running(
            job=self._waiting.popleft(),
            held=held,
            sampler=self._model.sampler(request.sampling),
            chunks=deque(_chunks(request.parts, held.num_reused, self._model.batch_rows)),
            shared=prefixes[-1] if prefixes else None,
            position=held.num_reused,
        )
        self._num_hits += held.num_reused > 0
        self._num_misses += held.num_reused == 0 < len(prefixes)
        self._num_reused_rows += held.num_reused

    def _read(self) -> None:
        running = self._reading
        if running is None:
            return
        chunk = running.chunks.popleft()
        try:
            self._model.read(running.held.sequence, chunk, running.position)
        except EngineError as error:
            self._fail([running], error)
            return
        running.position += len(chunk)
        self._num_read_rows += len(chunk)
        if running.shared and running.position >= running.shared.num_rows:
            self._cells.keep(running.held, running.shared)
            running.shared = None
        if not running.chunks:
            self._reading = None
            self._answering.append(running)
            self._deliver(running, self._model.draw(running.sampler, len(chunk) - 1))

    def _next_tokens(self) -> None:
        each = list(self._answering)
        if not each:
            return
        tokens = torch.tensor([running.last_token for running in each])
        positions = [running.position for running in each]
        try:
            self._model.read_each([running.held.sequence for running in each], tokens, positions)
        except EngineError as error:
            self._fail(each, error)
            return
        for index, running in enumerate(each):
            running.position += 1
            self._deliver(running, self._model.draw(running.sampler, index))

    def _deliver(self, running: Running, token: int) -> None:
        running.last_token = token
        running.num_new += 1
        at_limit = running.num_new == running.job.request.sampling.max_new_tokens
        reason: FinishReason | None = "length" if at_limit else None
        if self._model.is_end(token):
            reason = "stop"
        if reason:
            self._end(running)
        running.job.deliver(NewTokens(token_ids=(token,), finish_reason=reason))

    def _fail(self, each: Sequence[Running], error: EngineError) -> None:
        for running in each:
            self._end(running)
            running.job.deliver(error)

    def _end(self, running: Running) -> None:
        if running is self._reading:
            self._reading = None
        else:
            self._answering.remove(running)
        self._cells.release(running.held)
        self._model.free_sampler(running.sampler)


def _chunks(parts: Sequence[Tensor], num_skipped: int, batch_rows: int) -> Iterator[Tensor]:
    """What is read at once: of one part, at most `batch_rows`, after those to skip."""
    for part in parts:
        yield from part[num_skipped:].split(batch_rows) if num_skipped < len(part) else ()
        num_skipped = max(0, num_skipped - len(part))
