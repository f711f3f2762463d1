"""What ships inside the package: the released embedder and a book to try it on.

In: a reader. Out: the embedder that was trained for the embedded default reader. Knows nothing of
training.
"""

from __future__ import annotations

from pathlib import Path

from .checkpoint import CONFIG
from .embedder import ExtensibleEmbedder
from .errors import InputError
from .reader import Reader

_ASSETS = Path(__file__).parent / "assets"
RELEASED_FOLDER = _ASSETS / "smollm2-135m-instruct"
"""Folder of the released embedder, for the embedded reader SmolLM2-135M-Instruct."""


def released_embedder(reader: Reader) -> ExtensibleEmbedder:
    """The embedder that ships with the package, for the embedded default reader.

    Raises:
        InputError: this installation does not have it.
        CheckpointError: its files are damaged.
        MismatchError: the reader is another one.
    """
    if not has_released_embedder():
        raise InputError(
            f"The released embedder is in {str(RELEASED_FOLDER)!r}, but this installation has none "
            "there; install the package again, or name another embedder (folder or hub id)."
        )
    return ExtensibleEmbedder.from_pretrained(RELEASED_FOLDER, reader)


def has_released_embedder() -> bool:
    """Whether this installation has the released embedder."""
    return (RELEASED_FOLDER / CONFIG).is_file()


def book_path() -> Path:
    """The shipped book, a UTF-8 text; assets/BOOK.md tells where it comes from."""
    return _ASSETS / "northanger-abbey.txt"
