"""What a larger reader or corpus needs, worked out from numbers of operations: docs/scale.md.

    python scripts/scale.py            print the tables
    python scripts/scale.py --check    fail unless docs/scale.md holds them

Counts are those of `evals.flops`, which tests compare with what torch counts on a real step. What
they are divided by is an assumption that stands beside every table.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from transformers import LlamaConfig

from extensible_embedding import EmbedderConfig
from extensible_embedding.evals.flops import (
    Shape,
    compress_flops,
    layers_flops,
    read_flops,
    shape_of,
    train_flops,
)
from extensible_embedding.evals.markdown import markdown_table

PAGE = Path(__file__).resolve().parents[1] / "docs" / "scale.md"
PEAK, TRAIN_SHARE, READ_SHARE = 989e12, 0.35, 0.5
"""Dense bf16 products of one H100 a second, by its maker, and the shares of it that are assumed."""
BYTES, OPTIMIZER_BYTES = 2, 16
"""Of a weight in bf16; of a trained one with float32 master, gradient and two moments."""
TRAIN_TOKENS = 800_000_000
"""Predicted tokens of the paper's training, about."""
CORPUS_TOKENS = 10**12
CHUNK_TOKENS, CONTEXT_TOKENS = 256, 32_000


@dataclass(frozen=True, kw_only=True)
class Case:
    """A reader and the embedder made of its first layers."""

    name: str
    config: LlamaConfig
    embedder: EmbedderConfig

    @property
    def shape(self) -> Shape:
        """Of the reader."""
        return shape_of(self.config)


CASES = (
    Case(
        name="135M (the built-in reader)",
        config=LlamaConfig(
            hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
            num_key_value_heads=3, vocab_size=49_152, tie_word_embeddings=True,
        ),
        embedder=EmbedderConfig(num_layers=8, chunk_tokens=CHUNK_TOKENS),
    ),
    Case(
        name="7B (Llama 2)",
        config=LlamaConfig(
            hidden_size=4096, intermediate_size=11_008, num_hidden_layers=32,
            num_attention_heads=32, num_key_value_heads=32, vocab_size=32_000,
        ),
        embedder=EmbedderConfig(num_layers=8, chunk_tokens=CHUNK_TOKENS),
    ),
    Case(
        name="70B (Llama 3)",
        config=LlamaConfig(
            hidden_size=8192, intermediate_size=28_672, num_hidden_layers=80,
            num_attention_heads=64, num_key_value_heads=8, vocab_size=128_256,
        ),
        embedder=EmbedderConfig(num_layers=8, chunk_tokens=CHUNK_TOKENS),
    ),
)  # fmt: skip


def main() -> None:
    """Prints, or compares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    text = tables()
    if not parser.parse_args().check:
        print(text)
    elif text not in PAGE.read_text(encoding="utf-8"):
        sys.exit("docs/scale.md does not hold what scripts/scale.py prints; put it there")


def tables() -> str:
    """Training, reading and a corpus, for each case."""
    training = markdown_table(
        ["reader", "FLOP for a predicted token", "H100 hours for 800 million", "reader, GB",
         "embedder and optimizer, GB"],
        [_training(case) for case in CASES],
    )  # fmt: skip
    reading = markdown_table(
        ["reader", "raw, PFLOP", "rows made on the way, k=8", "rows saved, k=8", "rows, MB"],
        [_reading(case) for case in CASES],
    )
    corpus = markdown_table(
        ["reader", "H100 days to embed", "H100 days to read raw", "rows at k=4, TB", "k=16, TB",
         "k=64, TB"],
        [_corpus(case) for case in CASES],
    )  # fmt: skip
    return f"{training}\n\n{reading}\n\n{corpus}"


def _training(case: Case) -> list[str]:
    instance = {"num_chunks": 8, "chunk_tokens": 128, "k": 8}
    flops = train_flops(case.shape, case.embedder, **instance) / (7 * 128)
    hours = TRAIN_TOKENS * flops / (PEAK * TRAIN_SHARE) / 3600
    shape = case.shape
    reader = shape.num_layers * shape.layer_weights + shape.head_weights
    own = case.embedder.num_layers * shape.layer_weights + shape.hidden_size**2
    return [
        case.name, f"{flops / 1e9:,.1f} G", f"{hours:,.1f}", f"{reader * BYTES / 1e9:,.1f}",
        f"{own * OPTIMIZER_BYTES / 1e9:,.1f}",
    ]  # fmt: skip


def _reading(case: Case) -> list[str]:
    shape, rows = case.shape, CONTEXT_TOKENS // 8
    raw, saved = read_flops(shape, CONTEXT_TOKENS), read_flops(shape, rows)
    online = saved + compress_flops(shape, case.embedder, CONTEXT_TOKENS, 8)
    return [
        case.name, f"{raw / 1e15:,.2f}", f"{raw / online:.1f} times less",
        f"{raw / saved:.1f} times less", f"{rows * shape.hidden_size * BYTES / 1e6:,.1f}",
    ]  # fmt: skip


def _corpus(case: Case) -> list[str]:
    shape, speed = case.shape, PEAK * READ_SHARE * 86_400
    chunks = CORPUS_TOKENS / CHUNK_TOKENS
    embed = chunks * compress_flops(shape, case.embedder, CHUNK_TOKENS, 4)
    # Attention depends on how long documents are; without it, this is the least that it takes.
    read = CORPUS_TOKENS * layers_flops(shape, shape.num_layers, 1, 0)
    sizes = [CORPUS_TOKENS / k * shape.hidden_size * BYTES / 1e12 for k in (4, 16, 64)]
    days = [embed / speed, read / speed]
    return [case.name, *(f"{each:,.1f}" for each in days), *(f"{each:,.0f}" for each in sizes)]


if __name__ == "__main__":
    main()
