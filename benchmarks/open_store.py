"""What opening a large store costs: time and memory, and those of reading it at a large k.

Writes a context of a million random rows with the store's own writer, then opens it and reads it in
fresh processes, some after the files were dropped from the page cache ("cold"). Memory is the
growth of what the process itself has taken (RssAnon): pages of a mapped file are the system's.

    python benchmarks/open_store.py --json open.json
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from extensible_embedding.downsampling import row_ends
from extensible_embedding.store.growth import SEGMENT_CHUNKS
from extensible_embedding.store.manifest import Manifest, Settings
from extensible_embedding.store.segment import Content, Segment, chain, write_segment
from extensible_embedding.store.store import ContextStore

Made = TypeVar("Made")
NAME = "a million rows"
SETTINGS = Settings(
    k=2,
    chunk_tokens=256,
    down_sampling="strided",
    max_k=256,
    row_width=576,
    row_type="bfloat16",
    embedder_fingerprint="none",
    reader_fingerprint="none",
    tokenizer_fingerprint="none",
)
TOKEN_BYTES = 4
"""Of text."""


def main() -> None:
    """Runs the benchmark."""
    options = arguments()
    if options.measure:
        print(json.dumps(measure(options.measure, options.read_rows)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        make(Path(folder), options.rows)
        result: dict[str, Any] = {
            "rows": options.rows,
            "row_bytes": 2 * SETTINGS.row_width,
            **disk(Path(folder)),
        }
        for state in ("cold", "warm"):
            runs = [
                fresh_process(Path(folder), options.read_rows, state)
                for _ in track(range(options.repeats), state, console=Console(stderr=True))
            ]
            result[state] = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1 << 20)
    parser.add_argument("--read-rows", type=int, default=8192, help="at the k that makes them")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="for the store, by default a temporary one")
    parser.add_argument("--json", type=Path)
    # What a fresh process is told to do.
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def make(folder: Path, num_rows: int) -> None:
    """A store with a context of that many rows."""
    manifest = Manifest(
        name=NAME, title=NAME, metadata={}, settings=SETTINGS, created=0.0, changed=0.0
    )
    store = ContextStore(folder)
    with store.changing(NAME, new=True) as context:
        store.commit(manifest, list(segments(context, num_rows * SETTINGS.k)))


def segments(folder: Path, num_tokens: int) -> Iterator[Segment]:
    """Random segments of the size that the store writes."""
    end, size = "", SEGMENT_CHUNKS * SETTINGS.chunk_tokens
    for first in track(range(0, num_tokens, size), "Writing", console=Console(stderr=True)):
        content = random_content(min(size, num_tokens - first))
        end = chain(end, content.token_ids, content.text)
        yield write_segment(folder, content, end)


def random_content(num_tokens: int) -> Content:
    """Rows, tokens and text of whole chunks."""
    num_rows = num_tokens // SETTINGS.k
    return Content(
        rows=torch.randn(num_rows, SETTINGS.row_width, dtype=torch.bfloat16),
        token_ids=torch.randint(1 << 15, (num_tokens,)),
        row_bytes=row_ends(num_tokens, SETTINGS.k) * TOKEN_BYTES,
        text=os.urandom(num_tokens * TOKEN_BYTES // 2).hex().encode(),
        settings_key=SETTINGS.key,
    )


def disk(folder: Path) -> dict[str, int]:
    """What the store takes."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {"files": len(files), "bytes": sum(path.stat().st_size for path in files)}


def fresh_process(folder: Path, read_rows: int, state: str) -> dict[str, float]:
    """Opens and reads the store in a process that has done nothing else."""
    for path in folder.rglob("*.*") if state == "cold" else ():
        drop(path)
    command = [sys.executable, __file__, "--measure", str(folder), "--read-rows", str(read_rows)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def drop(path: Path) -> None:
    """Has the system forget what it keeps of a file in memory."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def measure(folder: Path, read_rows: int) -> dict[str, float]:
    """Seconds, seconds of the processor and bytes of opening and of reading."""
    opened: dict[str, float] = {}
    read: dict[str, float] = {}
    with_cost(lambda: ContextStore(folder / "other").place, {})  # imports and the like
    stored = with_cost(lambda: ContextStore(folder).open(NAME), opened)
    k = SETTINGS.k * stored.num_rows // read_rows
    context = with_cost(lambda: stored.context(k), read)
    assert context.num_rows == read_rows
    return {
        "k": k,
        **{f"open_{key}": value for key, value in opened.items()},
        **{f"read_{key}": value for key, value in read.items()},
    }


def with_cost(work: Callable[[], Made], cost: dict[str, float]) -> Made:
    """Does something and writes down what it took."""
    memory, began, cpu = anonymous_bytes(), time.perf_counter(), time.process_time()
    made = work()
    cost["s"] = time.perf_counter() - began
    cost["cpu_s"] = time.process_time() - cpu
    cost["bytes"] = anonymous_bytes() - memory
    return made


def anonymous_bytes() -> int:
    """Memory that the process has taken, beside mapped files."""
    found = re.search(r"RssAnon:\s*(\d+) kB", Path("/proc/self/status").read_text("ascii"))
    assert found is not None
    return int(found[1]) * 1024


def show(result: dict[str, Any]) -> None:
    """Prints a table."""
    table = Table("", "files in memory", "time", "processor", "memory")
    for what in ("open", "read"):
        for state in ("cold", "warm"):
            seconds, cpu, memory = (
                result[state][f"{what}_{key}"] for key in ("s", "cpu_s", "bytes")
            )
            table.add_row(
                what,
                "no" if state == "cold" else "yes",
                f"{1000 * seconds:.1f} ms",
                f"{1000 * cpu:.1f} ms",
                f"{memory / 1e6:.2f} MB",
            )
    Console().print(table)


if __name__ == "__main__":
    main()
