"""`extensible compress`: files -> contexts of a store."""

from __future__ import annotations

import json
import time
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError, MismatchError
from ..store.names import MAX_NAME_BYTES, is_seen
from ..text import Document, read_document
from .console import load_embedder, load_reader, progress_bar, quiet_libraries
from .options import JsonOption, Models, with_models
from .stores import (
    KEPT_K,
    KeptKOption,
    RowType,
    RowTypeOption,
    command,
    parse_kept_k,
    shown,
    store_to_fill,
)

if TYPE_CHECKING:
    from ..embedder import ExtensibleEmbedder
    from ..store.store import ContextStore

_DIGITS = 8
"""Bytes of a name that are kept free for a number behind it."""


@with_models
def compress(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE", help="Text, .html, .epub, .pdf or .docx files."),
    ],
    out: Annotated[
        str,
        typer.Option(
            "--out",
            metavar="STORE",
            help="Folder of the store, made if need be, in which each file becomes a context.",
        ),
    ],
    k: KeptKOption = KEPT_K,
    row_type: RowTypeOption = RowType.BFLOAT16,
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            metavar="NAME",
            help="What one file's context is called; by default the file's name without ending.",
        ),
    ] = None,
    title: Annotated[
        str | None,
        typer.Option(
            "--title",
            metavar="TEXT",
            help="One file's title, which the reader sees where it reads several contexts; by "
            "default the file's own, or its name.",
        ),
    ] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option(
            "--metadata",
            metavar="KEY=VALUE",
            help="A text to keep beside each context, such as `year=1817`; several times for "
            "several. `extensible store show` shows them.",
        ),
    ] = None,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace",
            help="Let a file take the place of a context of its name with another content; the old "
            "one stays until the new one is whole.",
        ),
    ] = False,
    as_json: JsonOption = False,
    *,
    models: Models,
) -> None:
    """Compress files once, to ask about them many times.

    Each FILE becomes a context of the store, named after it, which `extensible ask` and `extensible
    chat` take as STORE:NAME (and all of them as STORE). A text that the store has already is not
    computed again. After Ctrl-C the contexts that were finished stay. `extensible store` lists,
    grows, checks and moves what was kept.
    """
    scale_factor = parse_kept_k(k)
    names = context_names(files, name)
    title, told = title_of(files, title), parse_metadata(metadata or [])
    documents = [read_document(file) for file in files]
    kept = Kept(
        store_to_fill("--out", out),
        out,
        k=scale_factor,
        row_type=row_type.value,
        replace=replace,
        title=title,
        metadata=told,
    )
    for one, document in zip(names, documents, strict=True):
        kept.check_text(one, document)
    _compress(kept, names, documents, models, as_json=as_json)


def context_names(files: Sequence[Path], name: str | None) -> list[str]:
    """What the contexts of files are called: equal names get a number.

    Raises:
        InputError: one name is given for several files, or it is no name.
    """
    from ..store.names import check_name

    if name is None:
        return _distinct([name_of(file) for file in files])
    if len(files) > 1:
        raise InputError(
            f"--name is that of one context, but there are {len(files)} files; compress them one "
            "by one, or leave it out."
        )
    return [check_name(name)]


def name_of(file: Path) -> str:
    """A context's name for a file: that of the file without ending, as far as it can be one."""
    kept = (is_seen(each) and unicodedata.category(each)[0] != "C" for each in file.stem)
    seen = (each if keep else " " for each, keep in zip(file.stem, kept, strict=True))
    name = " ".join("".join(seen).replace("\\", "-").split()).lstrip(". ")
    short = name.encode()[: MAX_NAME_BYTES - _DIGITS]
    return short.decode(errors="ignore").strip() or "context"


def title_of(files: Sequence[Path], title: str | None) -> str:
    """A title on one line, empty if none is given.

    Raises:
        InputError: one is given for several files, or it is blank.
    """
    if title is None:
        return ""
    if len(files) > 1:
        raise InputError(
            f"--title is that of one context, but there are {len(files)} files; compress them one "
            "by one, or leave it out."
        )
    if not title.strip():
        raise InputError(
            f"--title is a text, but it is {title!r}; give some words, or leave it out."
        )
    return _shown(" ".join(title.split()))


def parse_metadata(words: Sequence[str]) -> dict[str, str]:
    """Metadata from KEY=VALUE.

    Raises:
        InputError: a word is none, or a key comes twice.
    """
    found: dict[str, str] = {}
    for word in map(_shown, words):
        key, equals, value = word.partition("=")
        key = key.strip()
        if not equals or not key:
            raise InputError(
                f"--metadata is KEY=VALUE, but it is {word!r}; give for example year=1817."
            )
        if key in found:
            raise InputError(
                f"--metadata has each key once, but {key!r} is both {found[key]!r} and {value!r}; "
                "give one of these."
            )
        found[key] = value
    return found


def _shown(text: str) -> str:
    """In characters that can be shown: arguments and names of files may hold others."""
    return text.encode(errors="replace").decode()


def _distinct(names: Sequence[str]) -> list[str]:
    from ..store.names import name_key

    taken: list[str] = []
    keys: set[str] = set()
    for name in names:
        number, candidate = 1, name
        while name_key(candidate) in keys:
            number += 1
            candidate = f"{name}-{number}"
        taken.append(candidate)
        keys.add(name_key(candidate))
    return taken


class Kept:
    """What is to be kept, where and how, and whether it is there already."""

    def __init__(
        self,
        store: ContextStore,
        place: str,
        *,
        k: int,
        row_type: str,
        replace: bool,
        title: str,
        metadata: dict[str, str],
    ) -> None:
        self.store, self.place = store, place
        self.k, self.row_type, self.replace = k, row_type, replace
        self.title, self.metadata = title, metadata

    def check_text(self, name: str, document: Document) -> None:
        """Raises InputError if the name stands for another text or title that may not go."""
        if self.replace or name not in self.store:
            return
        if self.store.open(name).text() != document.text:
            raise InputError(
                f"A name stands for one text, but {shown(self.place, name)!r} is another than "
                f"{document.source!r}; give --replace to put this one in its place, or --name."
            )
        if not self._is_told(name):
            raise InputError(
                f"A name stands for one title and metadata, but those of "
                f"{shown(self.place, name)!r} are others than --title and --metadata say; give "
                "--replace, which computes nothing again, or --name."
            )

    def _is_told(self, name: str) -> bool:
        """Whether a context has the title and the metadata that are given, if any are."""
        manifest = self.store.manifest(name)
        has_title = self.title in ("", manifest.title)
        return has_title and self.metadata.items() <= manifest.metadata.items()

    def has(self, name: str, document: Document, embedder: ExtensibleEmbedder) -> bool:
        """Whether the store has just this: text and title, by this embedder, at this k.

        Raises:
            InputError: it has the text in another form, which may not be replaced.
        """
        if name not in self.store:
            return False
        other = self._other_form(name, embedder)
        if other is None:
            return self.store.open(name).text() == document.text and self._is_told(name)
        if not self.replace:
            form = ("--k", str(self.k), "--row-type", self.row_type)
            reembed = command("reembed", self.place, name, *form)
            raise InputError(
                f"A name stands for one form of a text, but {shown(self.place, name)!r} {other}; "
                f"give --replace or --name, or make its rows anew with `{reembed}`."
            )
        return False

    def _other_form(self, name: str, embedder: ExtensibleEmbedder) -> str | None:
        """What the rows of a context are that these would not be."""
        from ..store.manifest import check_made_by

        manifest = self.store.manifest(name)
        try:
            check_made_by(manifest, embedder, self.place)
        except MismatchError:
            return "was made by another embedder"
        kept = manifest.settings
        if (kept.k, kept.row_type) != (self.k, self.row_type):
            return f"is kept at k={kept.k} in {kept.row_type}"
        return None


@quiet_libraries()
def _compress(
    kept: Kept,
    names: Sequence[str],
    documents: Sequence[Document],
    models: Models,
    *,
    as_json: bool,
) -> None:
    from ..store.manifest import settings_of

    embedder = load_embedder(models, load_reader(models.reader, models))
    settings_of(embedder, kept.k, kept.row_type)  # raises before anything is told of what is there
    pairs = list(zip(names, documents, strict=True))
    there = [kept.has(name, document, embedder) for name, document in pairs]
    results = []
    for (name, document), done in zip(pairs, there, strict=True):
        work = _Work() if done else _keep(kept, name, document, embedder)
        results.append(_result(kept, name, document, work))
        if not as_json:
            typer.echo(_summary(results[-1], done))
    if as_json:
        record = {"store": kept.place, "contexts": results}
        typer.echo(json.dumps(record, indent=2, ensure_ascii=False))


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What a context took."""

    seconds: float = 0.0
    computed: bool = False
    """Whether rows were: those of a text that the store has under another name are shared."""


def _keep(kept: Kept, name: str, document: Document, embedder: ExtensibleEmbedder) -> _Work:
    """Keeps a text, compressed if the store does not have its rows."""
    start, computed = time.monotonic(), False
    with progress_bar(f"Compressing {Path(document.source).name}", "tokens") as move:

        def progress(done: int, total: int) -> None:
            nonlocal computed
            computed = True
            move(done, total)

        kept.store.add(
            name,
            document.text,
            embedder,
            k=kept.k,
            row_type=kept.row_type,
            title=kept.title or document.title,
            metadata={"source": _shown(document.source), **kept.metadata},
            replace=kept.replace,
            progress=progress,
        )
    return _Work(seconds=time.monotonic() - start, computed=computed)


def _result(kept: Kept, name: str, document: Document, work: _Work) -> dict[str, Any]:
    manifest = kept.store.manifest(name)
    speed = round(manifest.num_tokens / max(work.seconds, 1e-9), 1)
    return {
        "source": _shown(document.source),
        "name": name,
        "context": shown(kept.place, name),
        "title": manifest.title,
        "num_tokens": manifest.num_tokens,
        "num_rows": manifest.num_rows,
        "k": manifest.settings.k,
        "row_type": manifest.settings.row_type,
        "computed": work.computed,
        "seconds": round(work.seconds, 3),
        "tokens_per_s": speed if work.computed else None,
    }


def _summary(result: dict[str, Any], was_kept: bool) -> str:
    if result["computed"]:
        speed = f"{result['num_tokens'] / max(result['seconds'], 1e-3):,.0f} tokens/s"
    elif was_kept:
        speed = "kept already, nothing was computed"
    else:
        speed = "its rows were in the store, nothing was computed"
    return (
        f"{result['source']} -> {result['context']}: {result['num_tokens']:,} tokens in "
        f"{result['num_rows']:,} rows at k={result['k']}, {speed}"
    )
