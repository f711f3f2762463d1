"""`extensible compress`: files -> folders of saved contexts."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..context import Context
from ..embedder import ExtensibleEmbedder
from ..errors import InputError
from ..prompt import AUTO, smallest_k
from ..reader import Reader
from ..text import Document, read_document
from .console import load_embedder, load_reader, progress_bar
from .options import RELEASED, EmbedderOption, JsonOption, KOption, ReaderOption, parse_k

RESERVE_ROWS = 512
"""Rows that k=auto keeps free for the question and its answer."""


def compress(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE", help="Text, .html, .epub, .pdf or .docx files."),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder of the saved context; with several files, each gets a folder inside it.",
        ),
    ],
    k: KOption = AUTO,
    reader: ReaderOption = "default",
    embedder: EmbedderOption = RELEASED,
    as_json: JsonOption = False,
) -> None:
    """Compress files once, to ask about them many times.

    Each FILE becomes a folder that `extensible ask` and `extensible chat` take in its place. Rows
    made at k can be read at every multiple of k. A saved context in the way is replaced, any
    other folder is left alone. 'auto' keeps 512 rows of the window free for question and answer.
    """
    scale_factor, folders = parse_k(k), target_folders(files, out)
    documents = [read_document(file) for file in files]
    loaded = load_embedder(embedder, load_reader(reader))
    results = []
    for document, folder in zip(documents, folders, strict=True):
        results.append(_compress_one(document, folder, loaded, scale_factor))
        if not as_json:
            typer.echo(_summary(results[-1]))
    if as_json:
        typer.echo(json.dumps({"contexts": results}, indent=2, ensure_ascii=False))


def _compress_one(
    document: Document, folder: Path, embedder: ExtensibleEmbedder, k: int | str
) -> dict[str, Any]:
    token_ids = embedder.reader.encode(document.text)
    scale_factor = auto_k(len(token_ids), embedder) if isinstance(k, str) else k
    start = time.monotonic()
    with progress_bar(f"Compressing {Path(document.source).name}", "tokens") as progress:
        context = embedder.compress(
            token_ids, k=scale_factor, title=document.title, progress=progress
        )
    seconds = time.monotonic() - start
    context.save(folder)
    return {
        "source": document.source,
        "folder": str(folder),
        "title": context.title,
        "num_tokens": context.num_tokens,
        "num_rows": context.num_rows,
        "k": context.k,
        "seconds": round(seconds, 3),
        "tokens_per_s": round(context.num_tokens / max(seconds, 1e-9), 1),
    }


def auto_k(num_tokens: int, embedder: ExtensibleEmbedder) -> int:
    """The smallest scale factor of 2 or more at which a text fits beside a question."""
    config = embedder.config
    k = smallest_k(
        num_tokens,
        room=embedder.reader.window - reserve_rows(embedder.reader),
        chunk_tokens=config.chunk_tokens,
        max_k=config.max_k,
    )
    return min(max(k, 2), num_tokens)  # saved raw rows could be read at k=1 alone


def reserve_rows(reader: Reader) -> int:
    """Rows kept free for question and answer: fewer where the window itself is small."""
    return min(RESERVE_ROWS, reader.window // 2)


def target_folders(files: Sequence[Path], out: Path) -> list[Path]:
    """Where each file's context goes.

    Raises:
        InputError: something other than a saved context is there.
    """
    if len(files) == 1:
        folders = [out]
    elif Context.is_saved_at(out):
        raise InputError(
            f"Several contexts go into an ordinary folder, but {str(out)!r} is a saved context "
            "itself; choose another --out."
        )
    else:
        folders = [out / name for name in _distinct([file.stem for file in files])]
    for folder in folders:
        _check_free(folder)
    return folders


def _distinct(names: Sequence[str]) -> list[str]:
    taken: list[str] = []
    for name in names:
        number, candidate = 1, name
        while candidate in taken:
            number += 1
            candidate = f"{name}-{number}"
        taken.append(candidate)
    return taken


def _check_free(folder: Path) -> None:
    if folder.is_dir():
        free = Context.is_saved_at(folder) or not any(folder.iterdir())
    else:
        free = not folder.exists()
    if not free:
        raise InputError(
            f"A context replaces only a saved context, but {str(folder)!r} holds something else; "
            "choose another --out or empty that place first."
        )


def _summary(result: dict[str, Any]) -> str:
    return (
        f"{result['source']} -> {result['folder']}: {result['num_tokens']:,} tokens in "
        f"{result['num_rows']:,} rows at k={result['k']}, {result['tokens_per_s']:,.0f} tokens/s"
    )
