"""A file -> its text, as a program that can be killed whenever it takes too much.

In: as arguments a path, the seconds and bytes of memory that it may take, and the bytes that its
text may have. Out: on stdout a JSON object with the `title` and `text` of a document, or with what
is wrong. Knows nothing of the
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

REFUSED, MEMORY, TEXT_BYTES = "refused", "memory", "text_bytes"
"""Fields of what is wrong: a sentence, whether the memory did not do, how long a text is."""
_MAX_TITLE = 500
"""Characters of a title, which is read with every list."""


def main() -> None:
    """Reads the file that the arguments name."""
    path, seconds, memory_bytes, most_bytes = sys.argv[1:]
    try:
        _limit(float(seconds), int(memory_bytes))
        with redirect_stdout(sys.stderr):
            found = _read(path, int(most_bytes))
        written = json.dumps(found, ensure_ascii=False)
        sys.stdout.buffer.write(written.encode(errors="replace"))  # halves of characters
    except MemoryError:
        sys.stdout.buffer.write(json.dumps({MEMORY: True}).encode())


def _read(path: str, most_bytes: int) -> dict[str, object]:
    try:
        document = read_document(path)
    except InputError as error:
        return {REFUSED: str(error)}
    num_bytes = len(document.text.encode(errors="replace"))
    if num_bytes > most_bytes:
        return {TEXT_BYTES: num_bytes}
    return {"title": document.title[:_MAX_TITLE], "text": document.text}


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
