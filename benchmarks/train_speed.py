"""Training speed beside the machine's own rate of matrix products, in one run.

Prints one JSON line for each shape of instance: predicted tokens/s, floating-point operations of a
step (matrix products and attention, counted by torch), the rate that this makes, the rate of plain
matrix products of the same width, and the share of it.

    python benchmarks/train_speed.py --steps 3
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from extensible_embedding import ExtensibleEmbedder, Reader
from extensible_embedding.train.two_stream import TwoStreamModel

SHAPES = ((16, 64, 2), (16, 64, 4), (8, 128, 2), (8, 128, 4), (4, 256, 4))
"""Chunks, tokens of a chunk, scale factor."""


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    reader = Reader.from_pretrained()
    model = TwoStreamModel(ExtensibleEmbedder.from_reader(reader))
    for num_chunks, chunk_tokens, k in SHAPES:
        ids = torch.randint(5, reader.vocab_size, (1, num_chunks, chunk_tokens))
        with FlopCounterMode(display=False) as counter:
            step(model, ids, k)
        seconds = min(step(model, ids, k) for _ in range(options.steps))
        rate, product = counter.get_total_flops() / seconds, matmul_rate(reader, ids.numel())
        line = {
            "chunks": num_chunks,
            "chunk_tokens": chunk_tokens,
            "k": k,
            "dtype": str(reader.dtype).removeprefix("torch."),
            "tokens_per_s": round((num_chunks - 1) * chunk_tokens / seconds, 1),
            "tflop_per_step": round(counter.get_total_flops() / 1e12, 3),
            "gflop_per_s": round(rate / 1e9),
            "matmul_gflop_per_s": round(product / 1e9),
            "share": round(rate / product, 2),
        }
        print(json.dumps(line), flush=True)


def step(model: TwoStreamModel, ids: torch.Tensor, k: int) -> float:
    """Seconds of one forward and backward pass."""
    model.zero_grad(set_to_none=True)
    start = time.monotonic()
    model(ids, k)["loss"].backward()
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
