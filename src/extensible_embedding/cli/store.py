"""`extensible store`: what is in a store, and what becomes of it.

The group, and the commands that need no models; `growing`, `upkeep` and `moving` have the others.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ..errors import CheckpointError, ExtensibleError, MismatchError
from .console import note, plain_table, stdout
from .group import ExtensibleCommand, summary
from .growing import append, reembed
from .moving import export, import_, merge
from .options import JsonOption
from .stores import LocalStoreArgument, NameArgument, StoreArgument, open_local, open_store, shown
from .upkeep import compact, repair, verify

if TYPE_CHECKING:
    from ..store.manifest import Manifest

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    short_help="List, grow, check and move contexts that are kept.",
)


@app.callback()
def store() -> None:
    """List, grow, check and move contexts that are kept.

    A store is a folder that `extensible compress FILE --out STORE` makes. Every change is there as
    a whole or not at all, whatever interrupts it. docs/store.md has the whole of it.
    """


def list_(store: StoreArgument, as_json: JsonOption = False) -> None:
    """List the contexts of a store, and say which of them cannot be read."""
    found = list(open_store(store).survey())
    damaged = [each for each in found if isinstance(each, ExtensibleError)]
    readable = [each for each in found if not isinstance(each, ExtensibleError)]
    manifests = sorted(readable, key=lambda each: each.name)
    if as_json:
        record = {"store": store, "contexts": [facts(each) for each in manifests]}
        record |= {"unreadable": list(map(str, damaged))} if damaged else {}
        typer.echo(json.dumps(record, indent=2, ensure_ascii=False))
    elif manifests:
        stdout().print(_list_table(manifests))
    elif not damaged:
        typer.echo(f"{store} holds no context.")
    if damaged:
        for error in damaged:
            note(f"Cannot be read: {error}")
        raise typer.Exit(damaged[0].exit_code)


def show(
    store: StoreArgument,
    name: NameArgument,
    text: Annotated[
        bool, typer.Option("--text", help="Print the context's text instead of what it is.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what a context is, or its text."""
    stored = open_store(store).open(name)
    if as_json:
        record = {**facts(stored.manifest), **({"text": stored.text()} if text else {})}
        typer.echo(json.dumps(record, indent=2, ensure_ascii=False))
    elif text:
        typer.echo(stored.text(), nl=False)
    else:
        stdout().print(_facts_table(facts(stored.manifest)))


def delete(
    store: LocalStoreArgument,
    names: Annotated[
        list[str], typer.Argument(metavar="NAME", help="Names of contexts, all of which go.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Delete contexts: their rows and their texts."""
    opened = open_local(store)
    names = list(dict.fromkeys(names))
    for name in names:
        with suppress(CheckpointError, MismatchError):  # a damaged one can go
            opened.manifest(name)  # raises before any is deleted
    for name in names:
        opened.delete(name)
        if not as_json:
            typer.echo(f"Deleted {shown(store, name)}.")
    if as_json:
        typer.echo(json.dumps({"store": store, "deleted": names}, indent=2, ensure_ascii=False))


def rename(
    store: LocalStoreArgument,
    name: NameArgument,
    new_name: Annotated[str, typer.Argument(metavar="NEW", help="What it is called from now on.")],
) -> None:
    """Give a context another name."""
    made = open_local(store).rename(name, new_name)
    typer.echo(f"{shown(store, name)} is now {shown(store, made.name)}.")


def facts(manifest: Manifest) -> dict[str, Any]:
    """What a store says of a context."""
    kept = manifest.settings
    return {
        "name": manifest.name,
        "title": manifest.title,
        "num_tokens": manifest.num_tokens,
        "num_rows": manifest.num_rows,
        "k": kept.k,
        "row_type": kept.row_type,
        "text_bytes": manifest.text_bytes,
        "file_bytes": sum(each.rows_file_bytes + each.text_bytes for each in manifest.segments),
        "num_segments": len(manifest.segments),
        "chunk_tokens": kept.chunk_tokens,
        "down_sampling": kept.down_sampling,
        "embedder_fingerprint": kept.embedder_fingerprint,
        "reader_fingerprint": kept.reader_fingerprint,
        "created": _time(manifest.created),
        "changed": _time(manifest.changed),
        "metadata": manifest.metadata,
    }


def _time(seconds: float) -> str:
    """Local time with its offset, to the second."""
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


def _list_table(manifests: list[Manifest]) -> Table:
    table = plain_table(["name", "title"], ["tokens", "rows", "k", "rows as", "MB", "changed"])
    for each in manifests:
        told = facts(each)
        table.add_row(
            each.name,
            each.title if each.title != each.name else "",
            f"{each.num_tokens:,}",
            f"{each.num_rows:,}",
            str(told["k"]),
            told["row_type"],
            f"{told['file_bytes'] / 1e6:,.1f}",
            told["changed"][:16].replace("T", " "),
        )
    return table


def _facts_table(told: dict[str, Any]) -> Table:
    table = plain_table(["", ""], [])
    table.show_header = False
    for name, value in told.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {part}" for key, part in value.items()) or "none"
        text = f"{value:,}" if isinstance(value, int) else str(value)
        table.add_row(name.replace("_", " "), text)
    return table


COMMANDS: dict[str, Callable[..., None]] = {
    "list": list_,
    "show": show,
    "append": append,
    "delete": delete,
    "rename": rename,
    "export": export,
    "import": import_,
    "merge": merge,
    "verify": verify,
    "repair": repair,
    "reembed": reembed,
    "compact": compact,
}
for _name, _command in COMMANDS.items():
    app.command(name=_name, cls=ExtensibleCommand, short_help=summary(_command))(_command)
