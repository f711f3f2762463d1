"""Files -> their texts, each in a process of its own, a few at a time.

In: the path of a file, or an upload. Out: a `Document`. A file that takes too long or too much
memory is given up and its process killed, as when nobody waits for it any more; the next one goes
on. What is read, and how, is `parser`'s. Knows nothing of HTTP but the errors that it raises.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any

import anyio

from ..errors import InputError
from ..text import Document
from . import parser
from .errors import ApiError
from .keys import Client
from .limits import busy
from .settings import MIB, ServeSettings

# No module is taken from the folder that we were started in, as `-m` would.
_PROGRAM = (
    sys.executable,
    "-c",
    f"import sys; sys.path[:] = filter(None, sys.path); from {parser.__name__} import main; main()",
)
_MAX_NAME_BYTES = 150
"""Of a file, and of the context that is named like it."""
_ODD = re.compile(r"[^\w.() -]+")


class Parsing:
    """Reads files, so many at the same time; used on the event loop alone.

    Args:
        settings: what a file may take, and how many wait.
        share: of these, the most of one key; by default all.
        program: that reads, with the arguments of `parser`.
    """

    name = "parsing"

    def __init__(
        self,
        settings: ServeSettings,
        share: int | None = None,
        program: tuple[str, ...] = _PROGRAM,
    ) -> None:
        self.jobs, self.program = 0, program
        self._share = settings.max_queued if share is None else share
        self._of_key: Counter[str] = Counter()
        self._settings = settings
        self._places = asyncio.Semaphore(settings.max_parsing)

    async def file(self, path: str | Path) -> Document:
        """The text of a file of this machine.

        Raises:
            ApiError: 400, it takes too much; 429, too many wait.
            InputError: it cannot be read, and why.
        """
        if "\0" in str(path):
            raise InputError(f"A path has no NUL, but {str(path)!r} has one; give another.")
        async with self._place(Client()):
            return await self._parsed(Path(path))

    async def upload(self, content: IO[bytes], name: str, client: Client) -> Document:
        """The text of an uploaded file; raises as `file`, of a bad one ApiError too.

        Args:
            content: of the file.
            name: of it, one that a file can have (`file_name`).
            client: who sends it.
        """
        async with self._place(client):
            with tempfile.TemporaryDirectory(prefix="extensible-") as folder:
                path = Path(folder) / name
                await asyncio.to_thread(_copy, content, path)
                try:
                    return await self._parsed(path)
                except InputError as error:
                    told = str(error).replace(f"{folder}{os.sep}", "")
                    raise _refused(told, "unreadable_file") from error

    def check(self, client: Client) -> None:
        """Raises ApiError, 429, if no file of this client could wait now."""
        most = self._settings.max_queued
        if self.jobs >= most:
            raise busy(f"{most} files at most wait to be read")
        if self._of_key[client.name] >= self._share:
            raise busy(f"{self._share} files of a key at most wait to be read")

    @asynccontextmanager
    async def _place(self, client: Client) -> AsyncIterator[None]:
        self.check(client)
        self.jobs += 1
        self._of_key[client.name] += 1
        try:
            async with self._places:
                yield
        finally:
            self.jobs -= 1
            self._of_key[client.name] -= 1

    async def _parsed(self, path: Path) -> Document:
        with tempfile.TemporaryFile() as output:
            await self._run(path, output)
            found = await asyncio.to_thread(_decoded, output)
        if parser.MEMORY in found:
            raise _refused(
                f"A file is read in {self._settings.parse_memory_bytes // MIB} MiB of memory, but "
                "this one needs more; send it in parts, or its text alone.",
                "file_too_large",
            )
        if parser.TEXT_BYTES in found:
            raise _refused(
                f"The text of a file has {self._settings.max_document_bytes} bytes at most, but "
                f"this one's has {found[parser.TEXT_BYTES]}; send it in parts.",
                "file_too_large",
            )
        if parser.REFUSED in found:
            raise InputError(found[parser.REFUSED])
        return Document(title=found["title"], text=found["text"], source=str(path))

    async def _run(self, path: Path, output: IO[bytes]) -> None:
        """Runs the program to its end, or to its time's."""
        seconds = self._settings.parse_timeout_s
        process = await asyncio.create_subprocess_exec(
            *self.program,
            str(path),
            str(seconds),
            str(self._settings.parse_memory_bytes),
            str(self._settings.max_document_bytes),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=asyncio.subprocess.DEVNULL,  # it can quote the file
            start_new_session=True,  # Ctrl-C is for the server, which lets it end
        )
        try:
            with anyio.fail_after(seconds):
                await process.wait()
        except TimeoutError:
            raise _refused(
                f"A file is read within {seconds:g} seconds, but this one was not; send it in "
                "parts, or its text alone.",
                "file_too_slow",
            ) from None
        finally:
            if process.returncode is None:
                process.kill()
                with anyio.CancelScope(shield=True):
                    await process.wait()


def file_name(given: str) -> str:
    """A name that a file can have here, with the ending of the given one."""
    end = _ODD.sub("_", Path(given).name).encode()[-_MAX_NAME_BYTES:]
    return end.decode(errors="ignore").strip(". ") or "document"


def _copy(content: IO[bytes], path: Path) -> None:
    with path.open("wb") as copy:
        shutil.copyfileobj(content, copy)


def _decoded(output: IO[bytes]) -> dict[str, Any]:
    """What the program has written: nothing, or half of it, where it was ended from outside."""
    output.seek(0)
    try:
        found: dict[str, Any] = json.load(output)
    except ValueError:
        raise _refused(
            "A file is read by libraries that survive it, but this one ended them (it may be "
            "damaged, or need too much memory); get a sound copy, or send its text alone.",
            "unreadable_file",
        ) from None
    return found


def _refused(message: str, code: str) -> ApiError:
    return ApiError(400, message, code=code, param="file")
