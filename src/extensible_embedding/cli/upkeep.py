"""`extensible store verify`, `repair` and `compact`: what is damaged, and what is left over."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ..errors import CheckpointError
from .console import load_embedder, load_reader, note, progress_bar, quiet_libraries
from .growing import with_makers
from .options import JsonOption, Models
from .stores import LocalStoreArgument, command, open_local

if TYPE_CHECKING:
    from ..store.checking import Fault
    from ..store.store import ContextStore


def verify(store: LocalStoreArgument, as_json: JsonOption = False) -> None:
    """Read every file of a store and tell what is damaged, and what is lost by it.

    Every flipped bit, every cut and every file of a context that is missing is found, also while
    others change the store. The exit code is 4 if there is any; `extensible store repair` then
    makes again what the rest still says. What broken changes left is no damage, and only told.
    """
    opened = open_local(store)
    faults = _faults(opened)
    _tell(store, opened, faults, as_json=as_json)


def _faults(store: ContextStore) -> list[Fault]:
    from ..store.checking import verify as find

    with progress_bar("Checking", "contexts") as progress:
        return find(store, progress)


def _tell(
    place: str,
    store: ContextStore,
    faults: Sequence[Fault],
    *,
    as_json: bool,
    num_mended: int = 0,
) -> None:
    """Prints faults, and exits with 4 if there are any."""
    from ..store.checking import left_over

    num_contexts, folders = len(store), left_over(store)
    if as_json:
        record = {
            "store": place,
            "num_contexts": num_contexts,
            "num_mended": num_mended,
            "faults": [dataclasses.asdict(fault) for fault in faults],
            "left_over": folders,
        }
        typer.echo(json.dumps(record, indent=2, ensure_ascii=False))
    else:
        for fault in faults:
            typer.echo(_sentence(place, fault))
        typer.echo(_verdict(place, num_contexts, len(faults), num_mended))
    if folders:
        note(_left_over(place, len(folders)))
    if faults:
        raise typer.Exit(CheckpointError.exit_code)


def _sentence(place: str, fault: Fault) -> str:
    advice = "it cannot be made again: restore the file from a copy, or delete the context"
    if fault.mendable:
        advice = f"`{command('repair', place)}` may make it again"
    return f"{fault.context}: {fault.file} {fault.what}; lost: {fault.lost}; {advice}."


def _verdict(place: str, num_contexts: int, num_faults: int, num_mended: int) -> str:
    mended = f"{num_mended} {_files(num_mended)} made again; " if num_mended else ""
    state = f"{num_faults} {_files(num_faults)} damaged" if num_faults else "all is whole"
    contexts = "context" if num_contexts == 1 else "contexts"
    return f"{place}, {num_contexts} {contexts}: {mended}{state}."


def _left_over(place: str, number: int) -> str:
    holds = "1 folder holds" if number == 1 else f"{number} folders hold"
    return (
        f"{holds} what a change left that was broken off, or is going on: no context; if nothing "
        f"changes {place}, `{command('compact', place)}` removes it."
    )


def _files(number: int) -> str:
    return "file is" if number == 1 else "files are"


@with_makers
def repair(store: LocalStoreArgument, as_json: JsonOption = False, *, models: Models) -> None:
    """Make damaged files again: rows from the text, text from the tokens.

    Needs the embedder that made the rows. The exit code is 4 if something is left that cannot be
    made again.
    """
    opened = open_local(store)
    before = _faults(opened)
    left = _repair(opened, models) if any(fault.mendable for fault in before) else before
    _tell(store, opened, left, as_json=as_json, num_mended=len(before) - len(left))


@quiet_libraries()
def _repair(store: ContextStore, models: Models) -> list[Fault]:
    from ..store.mending import repair as mend

    embedder = load_embedder(models, load_reader(models.reader, models))
    with progress_bar("Repairing", "contexts") as progress:
        return mend(store, embedder, progress)


def compact(store: LocalStoreArgument, as_json: JsonOption = False) -> None:
    """Remove what changes that were broken off have left behind.

    The next change of the same context does so too; this is for disks that are nearly full.
    """
    opened = open_local(store)
    before = _size(opened.place.folder)
    opened.compact()
    freed = max(0, before - _size(opened.place.folder))
    if as_json:
        typer.echo(json.dumps({"store": store, "freed_bytes": freed}, ensure_ascii=False))
    else:
        typer.echo(f"{store}: {freed:,} bytes were freed.")


def _size(folder: Path) -> int:
    """Bytes of all files below a folder, as far as they are still there."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # a reader or another process removed it meanwhile
            continue
    return total
