"""One reading with a stopwatch: times, cache and operations up to the first token, and after it.

In: a function that makes a `Reading`. Out: a `Sample`. What it times is the method's own code and
transformers' own `generate`; hooks on the models note when each new token is there, what the cache
holds and how much was computed. Knows nothing of methods.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from ..embedder import ExtensibleEmbedder
from ..reader import Reader
from .flops import Shape, causal_pairs, chunk_flops, head_flops, layers_flops
from .methods import Reading


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What one reading took."""

    make_s: float
    """To what the reader sees: selecting, compressing, token embeddings."""
    read_s: float
    """From there to the first new token."""
    new_tokens_per_s: float | None
    """After the first; None if there is no other."""
    num_rows: int
    """Of the prompt."""
    k: int
    """Tokens per row in the end."""
    cache_bytes: int
    """Of keys and values when the first new token is there."""
    flops: int
    """Until then."""


def measure(
    make: Callable[[], Reading], embedder: ExtensibleEmbedder, shape: Shape, new_tokens: int
) -> Sample:
    """Makes a reading and generates `new_tokens` tokens after it, whatever they are.

    Raises:
        WindowError, CannotRunError: what `make` raises.
    """
    reader = embedder.reader
    with ExitStack() as stack:
        work = stack.enter_context(counted_work(embedder, shape))
        stack.enter_context(_exactly(reader, new_tokens))
        start = _now(reader)
        reading = make()
        made = _now(reader)
        marks: list[_Mark] = []
        hook = reader.model.register_forward_hook(
            lambda module, inputs, output: marks.append(_mark(reader, output, work))
        )
        stack.callback(hook.remove)
        reading.generate(new_tokens)
    first, last = marks[0], marks[-1]
    more = len(marks) - 1
    return Sample(
        make_s=made - start,
        read_s=first.time_s - made,
        new_tokens_per_s=more / (last.time_s - first.time_s) if more else None,
        num_rows=reading.num_rows,
        k=reading.k,
        cache_bytes=first.cache_bytes,
        flops=first.flops,
    )


@dataclass(frozen=True)
class _Mark:
    """A moment at which a new token is there."""

    time_s: float
    cache_bytes: int
    flops: int


def _mark(reader: Reader, output: Any, work: Work) -> _Mark:
    return _Mark(_now(reader), cache_bytes(output), work.flops)


def cache_bytes(output: Any) -> int:
    """Bytes of the tensors in the cache that a model's output holds; 0 without one."""
    caches = [value for value in output.values() if isinstance(value, Cache)]
    tensors = [part for cache in caches for layer in cache.layers for part in vars(layer).values()]
    return sum(part.nbytes for part in tensors if isinstance(part, Tensor))


@dataclass
class Work:
    """Operations so far."""

    flops: int = 0


@contextmanager
def counted_work(embedder: ExtensibleEmbedder, shape: Shape) -> Iterator[Work]:
    """Counts what the reader and the embedder compute meanwhile."""
    work, model = Work(), embedder.reader.model

    def decoder(module: nn.Module, inputs: Any, settings: dict[str, Any]) -> None:
        rows = _first(settings, "inputs_embeds", "input_ids")
        cache = _first(settings, "cache", "past_key_values")
        past = 0 if cache is None else int(cache.get_seq_length())
        pairs = causal_pairs(rows.shape[1], past)
        work.flops += len(rows) * layers_flops(shape, shape.num_layers, rows.shape[1], pairs)

    def head(module: nn.Module, inputs: Any) -> None:
        work.flops += head_flops(shape, inputs[0].numel() // inputs[0].shape[-1])

    def chunks(module: nn.Module, inputs: Any) -> None:
        (num_chunks, length), picked = inputs[0].shape, [len(places) for places in inputs[1:]]
        work.flops += num_chunks * chunk_flops(shape, embedder.config, length, *picked)

    hooks = [
        model.get_decoder().register_forward_pre_hook(decoder, with_kwargs=True),
        model.get_output_embeddings().register_forward_pre_hook(head),
        embedder.register_forward_pre_hook(chunks),
    ]
    try:
        yield work
    finally:
        for hook in hooks:
            hook.remove()


def _first(settings: dict[str, Any], *names: str) -> Any:
    """The value of the first of these names that has one; versions of transformers differ."""
    return next((settings[name] for name in names if settings.get(name) is not None), None)


@contextmanager
def _exactly(reader: Reader, new_tokens: int) -> Iterator[None]:
    """No generation ends before so many tokens: an end token would spoil the comparison."""
    config = reader.model.generation_config
    before = config.min_new_tokens
    config.min_new_tokens = new_tokens
    try:
        yield
    finally:
        config.min_new_tokens = before


def _now(reader: Reader) -> float:
    """The time when the reader's device has done all it was asked."""
    if reader.device.type != "cpu":
        torch.accelerator.synchronize(reader.device)
    return time.perf_counter()
