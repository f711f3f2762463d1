"""Memory and window of a context that grows: does it stay flat?

Reads a text over and over into a `ContextStream` on the real reader and prints a JSON line each
50,000 tokens: tokens read, rows, raw tokens, scale factor, tokens dropped, memory, tokens/s.

    python benchmarks/stream_memory.py --tokens 1000000
"""

from __future__ import annotations

import argparse
import json
import time

import psutil

from extensible_embedding import ContextStream, ExtensibleEmbedder, Reader, read_document
from extensible_embedding.released import book_path, has_released_embedder, released_embedder


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--every", type=int, default=50_000)
    parser.add_argument("--k", type=int, default=16)
    options = parser.parse_args()
    reader = Reader.from_pretrained()
    trained = has_released_embedder()
    embedder = released_embedder(reader) if trained else ExtensibleEmbedder.from_reader(reader)
    ids = reader.encode(read_document(book_path()).text)
    stream = ContextStream(embedder.eval(), k=options.k)
    start, mark = time.monotonic(), 0
    while stream.num_tokens < options.tokens:
        place = stream.num_tokens % len(ids)
        stream.append(ids[place : place + 2_048])
        if stream.num_tokens // options.every > mark:
            mark = stream.num_tokens // options.every
            print(json.dumps(measure(stream, time.monotonic() - start)), flush=True)


def measure(stream: ContextStream, seconds: float) -> dict[str, float]:
    """What the stream holds now."""
    return {
        "tokens": stream.num_tokens,
        "rows": stream.num_rows,
        "raw_tokens": stream.num_recent,
        "k": stream.k,
        "dropped_tokens": stream.num_dropped_tokens,
        "resident_mb": round(psutil.Process().memory_info().rss / 1e6),
        "tokens_per_s": round(stream.num_tokens / seconds, 1),
    }


if __name__ == "__main__":
    main()
