"""The server as a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

PROGRAM = [sys.executable, "-m", "extensible_embedding"]


@contextmanager
def served(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`extensible serve` with these arguments, and its URL; it is killed in the end."""
    command = [*PROGRAM, "serve", *map(str, arguments), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            told = next(line for line in process.stderr if "Serving" in line)
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield process, re.findall(r"(http://\S+)/v1", told)[0]
        finally:
            process.kill()
