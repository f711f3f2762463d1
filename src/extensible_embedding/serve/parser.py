"""A file -> its text, as a program that can be killed whenever it takes too much.

In: as arguments a path, and the seconds and bytes of memory that it may take. Out: on stdout a
JSON object with the `title` and `text` of a document, or with what is wrong. Knows nothing of the
server, and imports nothing but what reads files.
"""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout, suppress
from math import ceil
from pathlib import Path

from ..errors import InputError
from ..text import read_document

REFUSED, MEMORY = "refused", "memory"
"""Fields of what is wrong: a sentence, and whether the memory did not do."""


def main() -> None:
    """Reads the file that the arguments name."""
    path, seconds, memory_bytes = sys.argv[1:]
    try:
        _limit(float(seconds), int(memory_bytes))
        with redirect_stdout(sys.stderr):
            found = _read(path)
        sys.stdout.buffer.write(json.dumps(found, ensure_ascii=False).encode())
    except MemoryError:
        sys.stdout.buffer.write(json.dumps({MEMORY: True}).encode())


def _read(path: str) -> dict[str, object]:
    try:
        document = read_document(path)
    except InputError as error:
        return {REFUSED: str(error)}
    return {"title": document.title, "text": document.text}


def _limit(seconds: float, memory_bytes: int) -> None:
    """Limits of this process, where the system has such; of time for when nobody kills it.

    Where the machine's memory ends, this process is to go and not the server.
    """
    try:
        import resource
    except ImportError:  # Windows
        return
    limits = [(resource.RLIMIT_CPU, ceil(seconds) + 1)]
    if sys.platform == "linux":  # macOS refuses it
        limits.append((resource.RLIMIT_AS, memory_bytes))
        with suppress(OSError):  # a system without /proc
            Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    for limit, most in limits:
        hard = resource.getrlimit(limit)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (most, most))


if __name__ == "__main__":
    main()
