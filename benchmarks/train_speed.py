"""Training speed beside the machine's own rate of matrix products, in one run.

Prints one JSON line for each shape of instance: predicted tokens/s, floating-point operations of a
step (matrix products and attention, counted by torch), the rate that this makes, the rate of plain
matrix products of the same width, and the share of it.

    python benchmarks/train_speed.py --steps 3 --compile
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import nullcontext

import torch
from torch.utils.flop_counter import FlopCounterMode

from extensible_embedding import ExtensibleEmbedder, Reader
from extensible_embedding.train.speed import compiled, keep_freed_memory
from extensible_embedding.train.two_stream import TwoStreamModel

SHAPES = ((16, 64, 2), (16, 64, 4), (8, 128, 2), (8, 128, 4), (4, 256, 4))
"""Chunks, tokens of a chunk, scale factor."""
BATCH = 2
"""Instances at once."""


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="as `compile: true` in training")
    options = parser.parse_args()
    reader = Reader.from_pretrained()
    model = TwoStreamModel(ExtensibleEmbedder.from_reader(reader).train())
    keep_freed_memory()
    counts = [count(model, shape) for shape in SHAPES]  # of the code before it is compiled
    with compiled(model) if options.compile else nullcontext():
        for shape, flops in zip(SHAPES, counts, strict=True):
            print(json.dumps(measure(model, shape, flops, options.steps)), flush=True)


def instances(model: TwoStreamModel, shape: tuple[int, int, int]) -> torch.Tensor:
    """Random tokens (B, N, L)."""
    return torch.randint(5, model.embedder.reader.vocab_size, (BATCH, *shape[:2]))


def count(model: TwoStreamModel, shape: tuple[int, int, int]) -> int:
    """Floating-point operations of one step."""
    with FlopCounterMode(display=False) as counter:
        step(model, instances(model, shape), shape[2])
    return int(counter.get_total_flops())


def measure(
    model: TwoStreamModel, shape: tuple[int, int, int], flops: int, steps: int
) -> dict[str, object]:
    """The best of some steps, beside the rate of plain products measured right after."""
    reader, (num_chunks, chunk_tokens, k) = model.embedder.reader, shape
    ids = instances(model, shape)
    step(model, ids, k)
    seconds = min(step(model, ids, k) for _ in range(steps))
    rate, product = flops / seconds, matmul_rate(reader, ids.numel())
    return {
        "chunks": num_chunks,
        "chunk_tokens": chunk_tokens,
        "k": k,
        "dtype": str(reader.dtype).removeprefix("torch."),
        "tokens_per_s": round(BATCH * (num_chunks - 1) * chunk_tokens / seconds, 1),
        "tflop_per_step": round(flops / 1e12, 3),
        "gflop_per_s": round(rate / 1e9),
        "matmul_gflop_per_s": round(product / 1e9),
        "share": round(rate / product, 2),
    }


def step(model: TwoStreamModel, ids: torch.Tensor, k: int) -> float:
    """Seconds of one forward and backward pass."""
    model.zero_grad(set_to_none=True)
    reader, start = model.embedder.reader, time.monotonic()
    wanted = reader.dtype is torch.bfloat16
    with torch.autocast(reader.device.type, torch.bfloat16, enabled=wanted):
        loss = model(ids, k)["loss"]
    loss.backward()
    return time.monotonic() - start


def matmul_rate(reader: Reader, num_tokens: int, seconds: float = 1.0) -> float:
    """Floating-point operations a second of one product at the reader's own widths."""
    width, inner = reader.hidden_size, int(reader.model.config.intermediate_size)
    left = torch.randn(num_tokens, width, dtype=reader.dtype, device=reader.device)
    right = torch.randn(inner, width, dtype=reader.dtype, device=reader.device)
    start, count = time.monotonic(), 0
    while time.monotonic() - start < seconds:
        torch.nn.functional.linear(left, right)
        count += 1
    return 2 * num_tokens * width * inner * count / (time.monotonic() - start)


if __name__ == "__main__":
    main()
