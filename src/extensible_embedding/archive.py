"""A zip file -> its parts, opened only when they fit in memory.

In: the bytes of a zip file (EPUB and DOCX are such). Out: the archive, which will not inflate
beyond a limit. Knows nothing of what the parts hold.
"""

from __future__ import annotations

import zipfile
from io import BytesIO
from pathlib import Path

from .errors import InputError

MAX_UNPACKED_BYTES = 1 << 30
MAX_RATIO = 200
"""Unpacked to packed bytes; books and reports stay far below."""
RATIO_FREE_BYTES = 100 << 20
"""Below this many unpacked bytes any ratio will do."""


def open_archive(path: Path, data: bytes) -> zipfile.ZipFile:
    """Opens the bytes of a zip file; `path` is only named in errors.

    The sizes are those that the archive declares; `zipfile` never yields more of a part than that.

    Raises:
        InputError: it would unpack to more than the limits.
        zipfile.BadZipFile: it is no zip file, or damaged.
    """
    archive = zipfile.ZipFile(BytesIO(data))
    unpacked = sum(part.file_size for part in archive.infolist())
    if unpacked > MAX_UNPACKED_BYTES:
        raise InputError(_bomb(path, f"{MAX_UNPACKED_BYTES >> 20} MiB", unpacked))
    if unpacked > RATIO_FREE_BYTES and unpacked > MAX_RATIO * len(data):
        raise InputError(_bomb(path, f"{MAX_RATIO} times the file's own size", unpacked))
    return archive


def _bomb(path: Path, limit: str, unpacked: int) -> str:
    return (
        f"A {path.suffix} file must unpack to at most {limit}, but '{path}' would unpack to "
        f"{unpacked >> 20} MiB (a zip bomb?); convert it to text with a program that you trust."
    )
