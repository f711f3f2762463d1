"""What `ask` and `chat` are given, FILE or DIR -> contexts.

Saved contexts are loaded, files are read and compressed on the way; the embedder is loaded only
if there is a file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from torch import Tensor

from ..context import Context
from ..embedder import ExtensibleEmbedder
from ..errors import InputError
from ..prompt import smallest_k
from ..reader import Reader
from ..text import Document, read_document
from .console import load_embedder, progress_bar

Source = Context | Document

SourcesArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="FILE-or-DIR",
        help="Files to read and compress on the way, and folders that `extensible compress` wrote "
        "(or that hold several of those).",
    ),
]


def open_sources(paths: Sequence[Path]) -> list[Source]:
    """Saved contexts and documents, in the order given.

    Raises:
        InputError: a file cannot be read, or a folder holds no context.
        CheckpointError: a saved context is damaged.
    """
    sources: list[Source] = []
    for path in paths:
        if path.is_dir():
            sources += [Context.load(folder) for folder in _saved_in(path)]
        else:
            sources.append(read_document(path))
    return sources


def _saved_in(folder: Path) -> list[Path]:
    if Context.is_saved_at(folder):
        return [folder]
    found = [child for child in sorted(folder.iterdir()) if Context.is_saved_at(child)]
    found = [child for child in found if not child.name.startswith(".")]
    if not found:
        raise InputError(
            f"A folder holds one or more saved contexts, but {str(folder)!r} holds none; make one "
            f"with `extensible compress FILE --out DIR`, or give files."
        )
    return found


def contexts_of(
    sources: Sequence[Source], reader: Reader, embedder: str, *, k: int | str, reserve: int
) -> list[Context]:
    """Contexts of all sources; files are compressed at k.

    Args:
        sources: from `open_sources`.
        reader: that will read them.
        embedder: its name, loaded only if there is something to compress.
        k: scale factor, or "auto": the smallest at which all fit.
        reserve: rows of the window that "auto" keeps free.
    """
    if all(isinstance(source, Context) for source in sources):
        return [source for source in sources if isinstance(source, Context)]
    loaded = load_embedder(embedder, reader)
    texts = [_tokens(source, reader) for source in sources]
    if isinstance(k, str):
        k = _common_k(sources, sum(map(len, texts)), loaded, reserve)
    return [
        source if isinstance(source, Context) else _compress(source, ids, loaded, k)
        for source, ids in zip(sources, texts, strict=True)
    ]


def _tokens(source: Source, reader: Reader) -> Tensor:
    return source.token_ids if isinstance(source, Context) else reader.encode(source.text)


def _compress(document: Document, ids: Tensor, embedder: ExtensibleEmbedder, k: int) -> Context:
    with progress_bar(f"Compressing {Path(document.source).name}", "tokens") as progress:
        return embedder.compress(ids, k=k, title=document.title, progress=progress)


def _common_k(
    sources: Sequence[Source], num_tokens: int, embedder: ExtensibleEmbedder, reserve: int
) -> int:
    """The smallest scale factor at which all sources fit and saved rows can be read."""
    # Texts apart end in a part of a row each, which one text of the same length would not.
    slack = len(sources) if len(sources) > 1 else 0
    k = smallest_k(
        num_tokens,
        room=embedder.reader.window - reserve - slack,
        chunk_tokens=embedder.config.chunk_tokens,
        max_k=embedder.config.max_k,
    )
    made_at = math.lcm(*(source.k for source in sources if isinstance(source, Context)))
    return 1 if k == 1 else -(-k // made_at) * made_at
