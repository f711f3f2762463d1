"""What the type that a store keeps rows in costs: bytes of a row, and recovery.

The same targets as `extensible eval lm` draws, the last `--context-tokens` before each read as rows
in every type; recovery is (loss without context - loss with rows) / (loss without - loss with raw
text), the mean over domains.

    python benchmarks/row_types.py --data books.parquet code.parquet --num-targets 8 --json out.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from extensible_embedding import ExtensibleEmbedder, Reader, released_embedder
from extensible_embedding.evals.targets import draw_targets, read_domains
from extensible_embedding.prompt import language_head
from extensible_embedding.store.segment import ROW_TYPES, keep

TARGET_TOKENS = 256
SCALE_BYTES = 4
"""Of a row of int8."""


def main() -> None:
    """Runs the benchmark."""
    options = arguments()
    embedder = released_embedder(Reader.from_pretrained())
    losses: dict[str, list[dict[str, float]]] = {}
    spans = list(targets(embedder.reader, options))
    for domain, ids in track(spans, description="Reading targets", console=Console(stderr=True)):
        losses.setdefault(domain, []).append(losses_of(embedder, ids, options.k))
    result = {
        "k": options.k,
        "context_tokens": options.context_tokens,
        "num_targets": options.num_targets,
        "row_bytes": {name: row_bytes(name, embedder.reader.hidden_size) for name in ROW_TYPES},
        "recovery": {name: recovery(losses, name) for name in ROW_TYPES},
    }
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--context-tokens", type=int, default=1024)
    parser.add_argument("--num-targets", type=int, default=8, help="of each domain")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def targets(reader: Reader, options: argparse.Namespace) -> Iterator[tuple[str, Tensor]]:
    """(domain, token ids of a context and its target)."""
    span = options.context_tokens + TARGET_TOKENS
    for domain, texts in read_domains(options.data).items():
        for ids in draw_targets(reader, domain, texts, span, options.num_targets, seed=0):
            yield domain, ids


def losses_of(embedder: ExtensibleEmbedder, ids: Tensor, k: int) -> dict[str, float]:
    """Mean loss of a target after nothing, raw text, and rows in every type."""
    reader, context, target = embedder.reader, ids[:-TARGET_TOKENS], ids[-TARGET_TOKENS:]
    rows = embedder.compress(context, k=k).rows
    read = {"none": rows[:0], "raw": reader.embed_tokens(context)}
    for name in ROW_TYPES:
        kept, scales = keep(rows, name)
        read[name] = kept.float() if scales is None else kept.float() * scales[:, None]
    head = reader.embed_tokens(language_head(reader))
    return {
        name: float(reader.nll(torch.cat([head, part.to(head.dtype)]), target).mean())
        for name, part in read.items()
    }


def recovery(losses: dict[str, list[dict[str, float]]], name: str) -> float:
    """Of a type of rows, the mean over domains."""
    shares = []
    for found in losses.values():
        none, raw, rows = (sum(each[key] for each in found) for key in ("none", "raw", name))
        shares.append((none - rows) / (none - raw))
    return sum(shares) / len(shares)


def row_bytes(name: str, width: int) -> int:
    """Bytes that a store keeps of a row."""
    return width * ROW_TYPES[name].itemsize + (SCALE_BYTES if name == "int8" else 0)


def show(result: dict[str, dict[str, float]]) -> None:
    """Prints a table."""
    table = Table("type of rows", "bytes a row", "recovery")
    for name in ROW_TYPES:
        table.add_row(name, str(result["row_bytes"][name]), f"{result['recovery'][name]:.4f}")
    Console().print(table)


if __name__ == "__main__":
    main()
