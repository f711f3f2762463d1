"""`extensible store append` and `reembed`: what makes rows of contexts that are kept."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError, MismatchError
from ..text import read_document
from .console import load_embedder, load_reader, progress_bar, quiet_libraries
from .options import JsonOption, Models, with_models
from .stores import (
    KEPT_K,
    KEPT_K_HELP,
    ROW_TYPE_HELP,
    LocalStoreArgument,
    NameArgument,
    RowType,
    open_local,
    parse_kept_k,
    shown,
)

if TYPE_CHECKING:
    from ..embedder import ExtensibleEmbedder
    from ..store.store import ContextStore
    from ..store.stored import StoredContext

STDIN = "-"
with_makers = partial(with_models, leave_out=("window",))
"""Gives a command the options of what makes rows."""


@with_makers
def append(
    store: LocalStoreArgument,
    name: NameArgument,
    file: Annotated[
        str,
        typer.Argument(metavar="FILE|-", help="What is appended; `-` reads UTF-8 text from stdin."),
    ],
    new: Annotated[
        bool, typer.Option("--new", help="Begin the context if the store has none of that name.")
    ] = False,
    as_json: JsonOption = False,
    *,
    models: Models,
) -> None:
    """Append text to a context, such as the new lines of a log.

    Only the new text and the last, unfinished chunk before it are computed. The text is joined as
    it is: where it is to begin on a line of its own, the old one must end with a line break.
    """
    from ..store.names import check_name

    opened = open_local(store)
    if check_name(name) not in opened and not new:
        opened.manifest(name)  # raises: there is none
    text = _stdin() if file == STDIN else read_document(file).text
    if not text:
        raise InputError("What is appended holds text, but stdin was empty; nothing was changed.")
    _append(opened, store, name, text, models, as_json=as_json)


def _stdin() -> str:
    """UTF-8 text from stdin, with LF line ends."""
    data = typer.get_binary_stream("stdin").read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"What is appended from stdin is UTF-8, but byte {error.start} of it is not; convert "
            "it, for instance with `iconv -t UTF-8`."
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


@quiet_libraries()
def _append(
    store: ContextStore, place: str, name: str, text: str, models: Models, *, as_json: bool
) -> None:
    embedder = load_embedder(models, load_reader(models.reader, models))
    before = store.open(name).num_tokens if name in store else 0
    start = time.monotonic()
    with progress_bar(f"Appending to {name}", "tokens") as progress:
        if name in store:
            stored = store.append(name, text, embedder, progress=progress)
        else:
            stored = store.add(name, text, embedder, k=int(KEPT_K), progress=progress)
    record = {
        **_made(place, stored, time.monotonic() - start),
        "new_tokens": stored.num_tokens - before,
    }
    if as_json:
        typer.echo(json.dumps(record, indent=2, ensure_ascii=False))
    else:
        typer.echo(
            f"{record['context']}: {record['new_tokens']:,} more tokens, {stored.num_tokens:,} in "
            f"{stored.num_rows:,} rows at k={record['k']}"
        )


def _made(place: str, stored: StoredContext, seconds: float) -> dict[str, Any]:
    return {
        "name": stored.name,
        "context": shown(place, stored.name),
        "num_tokens": stored.num_tokens,
        "num_rows": stored.num_rows,
        "k": stored.settings.k,
        "row_type": stored.settings.row_type,
        "seconds": round(seconds, 3),
    }


@with_makers
def reembed(
    store: LocalStoreArgument,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Names of contexts.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All contexts of the store, in place of names.")
    ] = False,
    k: Annotated[
        str | None, typer.Option("--k", metavar="N", help=f"{KEPT_K_HELP} By default as before.")
    ] = None,
    row_type: Annotated[
        RowType | None,
        typer.Option(
            "--row-type",
            metavar="bfloat16|float16|float32|int8",
            help=f"{ROW_TYPE_HELP} By default as before.",
        ),
    ] = None,
    as_json: JsonOption = False,
    *,
    models: Models,
) -> None:
    """Make the rows of contexts anew from their texts.

    For another embedder or reader, another k or another type of rows. Each context stays as it was
    until its new rows are whole, and what is of this form already is passed over: after Ctrl-C, the
    same command goes on.
    """
    scale_factor = None if k is None else parse_kept_k(k)
    opened = open_local(store)
    chosen = _chosen(opened, names or [], everything=everything)
    form = {"k": scale_factor, "row_type": row_type.value if row_type else None}
    _reembed(opened, store, chosen, form, models, as_json=as_json)


def _chosen(store: ContextStore, names: Sequence[str], *, everything: bool) -> list[str]:
    """Names of contexts that are there."""
    if everything == bool(names):
        got = "both were given" if names else "neither was given"
        raise InputError(
            f"Rows are made anew of the contexts named or of --all, but {got}; give one of the two."
        )
    if everything:
        return sorted(each.name for each in store.manifests())
    return [store.manifest(name).name for name in dict.fromkeys(names)]


@quiet_libraries()
def _reembed(
    store: ContextStore,
    place: str,
    names: Sequence[str],
    form: dict[str, Any],
    models: Models,
    *,
    as_json: bool,
) -> None:
    embedder = load_embedder(models, load_reader(models.reader, models))
    records = []
    for name in names:
        records.append(_reembed_one(store, place, name, form, embedder))
        if not as_json:
            typer.echo(_told(records[-1]))
    if as_json:
        record = {"store": place, "contexts": records}
        typer.echo(json.dumps(record, indent=2, ensure_ascii=False))


def _reembed_one(
    store: ContextStore,
    place: str,
    name: str,
    form: dict[str, Any],
    embedder: ExtensibleEmbedder,
) -> dict[str, Any]:
    from ..store.mending import reembed as make

    start = time.monotonic()
    if _is_so(store, name, form, embedder):
        return {**_made(place, store.open(name), 0.0), "computed": False}
    with progress_bar(f"Reading {name} again", "tokens") as progress:
        stored = make(store, name, embedder, progress=progress, **form)
    return {**_made(place, stored, time.monotonic() - start), "computed": True}


def _is_so(
    store: ContextStore, name: str, form: dict[str, Any], embedder: ExtensibleEmbedder
) -> bool:
    """Whether a context's rows are those that would be made."""
    from ..store.manifest import check_made_by

    manifest = store.manifest(name)
    try:
        check_made_by(manifest, embedder, store.place.name)
    except MismatchError:
        return False
    kept = {"k": manifest.settings.k, "row_type": manifest.settings.row_type}
    return all(value in (None, kept[option]) for option, value in form.items())


def _told(record: dict[str, Any]) -> str:
    done = f"in {record['seconds']:,.1f} s" if record["computed"] else "as it was already"
    return (
        f"{record['context']}: {record['num_tokens']:,} tokens in {record['num_rows']:,} rows of "
        f"{record['row_type']} at k={record['k']}, {done}"
    )
