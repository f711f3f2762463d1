"""`extensible compress`: files -> folders of saved contexts."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError, StorageError
from ..text import Document, read_document
from .console import load_embedder, load_reader, progress_bar, quiet_libraries
from .options import AUTO, JsonOption, MakingKOption, Models, parse_k, with_models

if TYPE_CHECKING:
    from torch import Tensor

    from ..embedder import ExtensibleEmbedder
    from ..reader import Reader

RESERVE_ROWS = 512
"""Rows that k=auto keeps free for the question and its answer."""


@with_models
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
    k: MakingKOption = AUTO,
    as_json: JsonOption = False,
    *,
    models: Models,
) -> None:
    """Compress files once, to ask about them many times.

    Each FILE becomes a folder that `extensible ask` and `extensible chat` take in its place. Rows
    made at k can be read at every multiple of k. A saved context in the way is replaced, any
    other folder is left alone. `auto` keeps 512 rows of the window free for question and answer.
    """
    scale_factor = parse_rows_k(k)
    documents = [read_document(file) for file in files]
    folders = target_folders(files, out)
    _compress(documents, folders, scale_factor, models, as_json=as_json)


def parse_rows_k(text: str) -> int | str:
    """A scale factor of 2 or more, or "auto".

    Raises:
        InputError: it is neither.
    """
    k = parse_k(text)
    if k == 1:
        raise InputError(
            "Rows stand for k tokens each, 2 or more, but --k is 1, which is the raw text; give "
            "the text itself to `extensible ask`, or compress it at `--k 2` or more."
        )
    return k


@quiet_libraries()
def _compress(
    documents: Sequence[Document],
    folders: Sequence[Path],
    k: int | str,
    models: Models,
    *,
    as_json: bool,
) -> None:
    embedder = load_embedder(models, load_reader(models.reader, models))
    texts = [embedder.reader.encode(document.text) for document in documents]
    factors = [_factor(*pair, embedder, k) for pair in zip(documents, texts, strict=True)]
    results = []
    for one in zip(documents, texts, factors, folders, strict=True):
        results.append(_compress_one(embedder, *one))
        if not as_json:
            typer.echo(_summary(results[-1]))
    if as_json:
        typer.echo(json.dumps({"contexts": results}, indent=2, ensure_ascii=False))


def _factor(
    document: Document, token_ids: Tensor, embedder: ExtensibleEmbedder, k: int | str
) -> int:
    """The scale factor of one text, checked before any is compressed."""
    if isinstance(k, str):
        return auto_k(len(token_ids), embedder)
    if k > len(token_ids):
        raise InputError(
            f"--k is at most the length of a text, but it is {k} and {document.source!r} has "
            f"{len(token_ids)} tokens; leave out that file, or give `--k auto`."
        )
    return k


def _compress_one(
    embedder: ExtensibleEmbedder, document: Document, token_ids: Tensor, k: int, folder: Path
) -> dict[str, Any]:
    start = time.monotonic()
    with progress_bar(f"Compressing {Path(document.source).name}", "tokens") as progress:
        context = embedder.compress(token_ids, k=k, title=document.title, progress=progress)
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
    from ..prompt import smallest_k

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
        StorageError: that place cannot be written.
    """
    from ..context import Context

    if len(files) == 1:
        folders = [out]
    elif Context.is_saved_at(out):
        raise InputError(
            f"Several contexts go into an ordinary folder, but {str(out)!r} is a saved context "
            "itself; choose another --out."
        )
    else:
        # No leading dot: `extensible ask DIR` passes over hidden folders.
        names = [file.stem.lstrip(".") or "context" for file in files]
        folders = [out / name for name in _distinct(names)]
    for folder in folders:
        _check_free(folder)
        check_writable("--out", folder)
    return folders


def check_writable(option: str, place: Path) -> None:
    """Raises before hours of work unless a file or a folder can be made or replaced at a place.

    Raises:
        InputError: a file stands where its folder should be.
        StorageError: its folder may not be written.
    """
    parent = Path(os.path.realpath(place)).parent
    while not os.path.lexists(parent):
        parent = parent.parent
    if not parent.is_dir():
        raise InputError(
            f"{option} is a place in a folder, but of {str(place)!r} the part {str(parent)!r} is a "
            f"file; choose another {option}."
        )
    if not os.access(parent, os.W_OK | os.X_OK):
        raise StorageError(
            f"{option} is a place that you may write, but in {str(parent)!r} you may not; change "
            f"its permissions or choose another {option}."
        )


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
    from ..context import Context

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
