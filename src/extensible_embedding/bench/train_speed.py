"""How fast training is, beside the machine's own rate and beside plainer ways to the same loss.

In: an embedder with its reader, and shapes of instances. Out: a record for every shape and way of
making the loss. All ways take the same random tokens, one after the other in every round, so that
comparisons are paired. Measures steps without the optimizer; nothing is learnt.

    two-stream  as training runs: attention split into rows and chunks, a head in blocks
    dense       one pass over a dense mask, all logits at once
    per-chunk   one pass for each chunk
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..embedder import ExtensibleEmbedder
from ..errors import InputError
from ..train.reference import dense_loss, per_chunk_loss
from ..train.speed import compiled, keep_freed_memory
from ..train.two_stream import TwoStreamModel

TWO_STREAM, DENSE, PER_CHUNK = "two-stream", "dense", "per-chunk"
WAYS = (TWO_STREAM, DENSE, PER_CHUNK)
_MATMUL_S = 1.0

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


@dataclass(frozen=True)
class InstanceShape:
    """Of the instances of a step."""

    num_chunks: int
    chunk_tokens: int
    k: int

    @property
    def num_predicted(self) -> int:
        """Tokens of an instance that are predicted."""
        return (self.num_chunks - 1) * self.chunk_tokens


SHAPES = (InstanceShape(16, 64, 4), InstanceShape(8, 128, 4), InstanceShape(4, 256, 8))


@dataclass(frozen=True, kw_only=True)
class TrainSpeedRecord:
    """Speed of one way of making the loss; times are medians over rounds."""

    way: str
    num_chunks: int
    chunk_tokens: int
    k: int
    batch_size: int
    compiled: bool
    dtype: str
    """Of the matrix products."""
    num_rounds: int
    step_s: float
    """One forward and backward pass."""
    predicted_tokens_per_s: float
    flops: int
    """Operations of a step: matrix products and attention."""
    flops_per_s: float
    matmul_flops_per_s: float
    """Of plain products at the reader's own widths, measured in every round."""
    share: float
    """Of that rate."""
    versus_dense: float | None
    """Predicted tokens a second over those of `dense` in the same round, the median."""
    versus_per_chunk: float | None


def measure_train_speed(
    embedder: ExtensibleEmbedder,
    *,
    shapes: Sequence[InstanceShape] = SHAPES,
    ways: Sequence[str] = WAYS,
    batch_size: int = 2,
    num_rounds: int = 3,
    compile_parts: bool = True,
    progress: Progress | None = None,
) -> list[TrainSpeedRecord]:
    """Times every way of making the loss at every shape.

    Args:
        embedder: with its reader; its gradients are made and dropped.
        shapes: of instances.
        ways: of `WAYS`.
        batch_size: instances of a step.
        num_rounds: timed rounds, after one that is not.
        compile_parts: compile norms and MLPs for `two-stream`, as `compile: true` in training.
        progress: called after every step.

    Raises:
        InputError: an argument is not usable.
    """
    _check(shapes, ways, batch_size, num_rounds)
    keep_freed_memory()
    embedder.train()
    model, records = TwoStreamModel(embedder), list[TrainSpeedRecord]()
    each, total = len(ways) * num_rounds, len(shapes) * len(ways) * num_rounds
    with compiled(model) if compile_parts else nullcontext(nullcontext) as eager:
        bench = _Bench(model, ways, batch_size, compile_parts, eager)
        for number, shape in enumerate(shapes):
            report = None if progress is None else partial(_add, progress, number * each, total)
            records += bench.measure(shape, num_rounds, report)
    embedder.zero_grad(set_to_none=True)
    return records


def _add(progress: Progress, before: int, total: int, done: int) -> None:
    progress(before + done, total)


def _check(
    shapes: Sequence[InstanceShape], ways: Sequence[str], batch_size: int, num_rounds: int
) -> None:
    unknown = [way for way in ways if way not in WAYS]
    if unknown or not ways:
        found = f"{unknown[0]!r} is none of them" if unknown else "none is given"
        raise InputError(
            f"A way of making the loss is one of {', '.join(WAYS)}, but {found}; choose of these."
        )
    if min(batch_size, num_rounds) < 1 or not shapes:
        raise InputError(
            "A benchmark of training has 1 or more instances, rounds and shapes, but there are "
            f"{batch_size}, {num_rounds} and {len(shapes)}; give more."
        )
    for shape in shapes:
        if shape.num_chunks < 2 or not 1 <= shape.k <= shape.chunk_tokens:
            raise InputError(
                "An instance has 2 or more chunks, and k from 1 to their length, but one has "
                f"{shape.num_chunks} chunks of {shape.chunk_tokens} tokens at k={shape.k}; give "
                "other shapes."
            )


class _Bench:
    """Steps of every way."""

    def __init__(
        self,
        model: TwoStreamModel,
        ways: Sequence[str],
        batch_size: int,
        compiles: bool,
        eager: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.model, self.embedder, self.ways = model, model.embedder, ways
        self.batch_size, self.compiles, self.eager = batch_size, compiles, eager
        self.half = self.embedder.reader.dtype in (torch.bfloat16, torch.float16)

    def measure(
        self, shape: InstanceShape, num_rounds: int, report: Callable[[int], None] | None
    ) -> list[TrainSpeedRecord]:
        """Records of all ways at a shape; the first round, which compiles, does not count."""
        ids = torch.randint(
            5,
            self.embedder.reader.vocab_size,
            (self.batch_size, shape.num_chunks, shape.chunk_tokens),
        )
        times: dict[str, list[float]] = {way: [] for way in self.ways}
        flops = {way: self._count(way, ids, shape.k) for way in self.ways}
        rates: list[float] = []
        for number in range(num_rounds):
            turn = number % len(self.ways)
            for place, way in enumerate([*self.ways[turn:], *self.ways[:turn]]):
                if number == 0:
                    self._step(way, ids, shape.k)
                times[way].append(self._step(way, ids, shape.k))
                if report is not None:
                    report(len(self.ways) * number + place + 1)
            rates.append(self._matmul_rate(ids.numel()))
        return [self._record(way, shape, times, flops[way], rates) for way in self.ways]

    def _record(
        self,
        way: str,
        shape: InstanceShape,
        times: dict[str, list[float]],
        flops: int,
        rates: Sequence[float],
    ) -> TrainSpeedRecord:
        step_s = float(np.median(times[way]))
        rate = float(np.median(rates))
        return TrainSpeedRecord(
            way=way,
            num_chunks=shape.num_chunks,
            chunk_tokens=shape.chunk_tokens,
            k=shape.k,
            batch_size=self.batch_size,
            compiled=self.compiles and way == TWO_STREAM,
            dtype=str(self.embedder.reader.dtype).removeprefix("torch."),
            num_rounds=len(rates),
            step_s=step_s,
            predicted_tokens_per_s=self.batch_size * shape.num_predicted / step_s,
            flops=flops,
            flops_per_s=flops / step_s,
            matmul_flops_per_s=rate,
            share=flops / step_s / rate,
            versus_dense=_ratio(times.get(DENSE), times[way]),
            versus_per_chunk=_ratio(times.get(PER_CHUNK), times[way]),
        )

    def _step(self, way: str, ids: Tensor, k: int) -> float:
        """Seconds of one forward and backward pass."""
        self.model.zero_grad(set_to_none=True)
        start = time.perf_counter()
        with nullcontext() if way == TWO_STREAM else self.eager():
            with self._autocast():
                loss = self._loss(way, ids, k)
            loss.backward()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        """Until an accelerator has done what it was given."""
        if self.embedder.reader.device.type != "cpu":
            torch.accelerator.synchronize()

    def _loss(self, way: str, ids: Tensor, k: int) -> Tensor:
        ids = ids.to(self.embedder.reader.device)
        if way == TWO_STREAM:
            loss: Tensor = self.model(ids, k)["loss"]
            return loss
        return (dense_loss if way == DENSE else per_chunk_loss)(self.embedder, ids, k)

    def _autocast(self) -> torch.autocast:
        reader = self.embedder.reader
        return torch.autocast(
            reader.device.type, reader.dtype if self.half else None, enabled=self.half
        )

    def _count(self, way: str, ids: Tensor, k: int) -> int:
        """Operations of a step, of code that is not compiled."""
        with self.eager(), FlopCounterMode(display=False) as counter:
            with self._autocast():
                loss = self._loss(way, ids, k)
            loss.backward()
        return int(counter.get_total_flops())

    def _matmul_rate(self, num_tokens: int) -> float:
        """Operations a second of a product at the width of the reader's MLP."""
        reader = self.embedder.reader
        config = reader.model.config.get_text_config()
        inner = int(getattr(config, "intermediate_size", None) or 4 * reader.hidden_size)
        made = [torch.randn(count, reader.hidden_size) for count in (num_tokens, inner)]
        left, right = (each.to(reader.device, reader.dtype) for each in made)
        start, count = time.perf_counter(), 0
        while (spent := time.perf_counter() - start) < _MATMUL_S:
            torch.nn.functional.linear(left, right)
            self._wait()
            count += 1
        return 2.0 * num_tokens * reader.hidden_size * inner * count / spent


def _ratio(reference_s: Sequence[float] | None, own_s: Sequence[float]) -> float | None:
    if reference_s is None:
        return None
    return float(np.median(np.array(reference_s) / np.array(own_s)))
