"""`extensible store export`, `import` and `merge`: contexts that go from one store to another."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from .console import spinner
from .options import JsonOption, check_writable
from .stores import (
    LocalStoreArgument,
    NameArgument,
    open_local,
    shown,
    store_to_fill,
)


def export(
    store: LocalStoreArgument,
    name: NameArgument,
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="FILE", help="The file; an earlier export is replaced, else nothing."
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Write a context to one file, which `extensible store import` takes in elsewhere."""
    from ..store.portable import export_context

    opened = open_local(store)
    _check_export(out)
    with spinner(f"Writing {out} ..."):
        export_context(opened, name, out)
    record = {"context": shown(store, name), "file": str(out), "file_bytes": out.stat().st_size}
    if as_json:
        typer.echo(json.dumps(record, indent=2, ensure_ascii=False))
    else:
        typer.echo(f"{record['context']} -> {out}: {record['file_bytes']:,} bytes")


def _check_export(file: Path) -> None:
    """Raises InputError if something other than an export would be overwritten."""
    from ..store.manifest import MANIFEST

    check_writable("--out", file, folder=True)  # one is refused below
    if not file.exists():
        return
    if file.is_file() and zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if MANIFEST in archive.namelist():
                return
    raise InputError(
        f"--out replaces only an earlier export, but {str(file)!r} is something else; give another "
        "file."
    )


def import_(
    store: Annotated[
        str, typer.Argument(metavar="STORE", help="Folder of a store, made if need be.")
    ],
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="What `extensible store export` wrote.")
    ],
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="Its name here; by default the one it had."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Take in a context that was exported; its content is checked before it is there."""
    from ..store.portable import import_context

    opened = store_to_fill("STORE", store)
    with spinner(f"Reading {file} ..."):
        stored = import_context(opened, file, name)
    record = {
        "file": str(file),
        "context": shown(store, stored.name),
        "name": stored.name,
        "num_tokens": stored.num_tokens,
        "num_rows": stored.num_rows,
    }
    if as_json:
        typer.echo(json.dumps(record, indent=2, ensure_ascii=False))
    else:
        typer.echo(
            f"{file} -> {record['context']}: {stored.num_tokens:,} tokens in "
            f"{stored.num_rows:,} rows"
        )


def merge(
    store: Annotated[
        str, typer.Argument(metavar="STORE", help="Folder of a store, made if need be.")
    ],
    other: Annotated[
        str, typer.Argument(metavar="OTHER", help="Folder of the store that is taken in.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Take in all contexts of another store, which stays as it is.

    What both have stays; where a name stands for two different contexts, nothing is taken in.
    """
    from ..store.portable import merge_stores

    source = open_local(other)
    opened = store_to_fill("STORE", store)
    with spinner(f"Reading {other} ..."):
        new = merge_stores(opened, source)
    record = {"store": store, "new": new, "num_there": len(source) - len(new)}
    if as_json:
        typer.echo(json.dumps(record, indent=2, ensure_ascii=False))
        return
    for name in new:
        typer.echo(f"{shown(other, name)} -> {shown(store, name)}")
    typer.echo(f"{store}: {len(new)} new, {record['num_there']} there already.")
