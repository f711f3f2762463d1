"""Children that are forked, and killed or kill themselves."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

ON_DISK = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link"}


def forked(work: Callable[[], object]) -> int:
    """Does something in a child; returns its process id."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = 3
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(process: int) -> int:
    """Waits for a child; returns its exit code, or minus the signal that killed it."""
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if code > 0:
        raise RuntimeError(f"A child failed with exit code {code}; its error is above.")
    return code


def die_before(step: int) -> None:
    """From now on this process kills itself before the so-manyth call that changes the disk."""
    left = step

    def count(event: str, args: tuple[Any, ...]) -> None:
        nonlocal left
        writes = event == "open" and bool(args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if event in ON_DISK or writes:
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
