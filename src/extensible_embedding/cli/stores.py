"""Stores as the command line names them: STORE, STORE:NAME, and what must be there.

In: an argument of the user. Out: a `ContextStore`, and a context's name if the argument gives one.
Imports no torch before a store is opened.
"""

from __future__ import annotations

import shlex
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError
from ..store.names import CONTEXTS
from .options import check_writable, parse_rows_k

if TYPE_CHECKING:
    from ..store.store import ContextStore

KEPT_K = "4"
"""Tokens per row, unless the user asks for another number: fine, and half of the text's tokens."""


class RowType(str, Enum):
    """Types that rows are kept in."""

    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"
    INT8 = "int8"


StoreArgument = Annotated[
    str, typer.Argument(metavar="STORE", help="Folder (or, to read, URL) of a store.")
]
LocalStoreArgument = Annotated[str, typer.Argument(metavar="STORE", help="Folder of a store.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of a context in it.")]
KEPT_K_HELP = (
    "Context tokens that one row stands for, 2 or more. Rows can be read at this k and all its "
    "multiples, so keep the finest that you want."
)
KeptKOption = Annotated[str, typer.Option("--k", metavar="N", help=KEPT_K_HELP)]
ROW_TYPE_HELP = (
    "How the numbers of a row are kept; int8 takes half of bfloat16's space, with a scale for each "
    "row."
)
RowTypeOption = Annotated[
    RowType,
    typer.Option("--row-type", metavar="bfloat16|float16|float32|int8", help=ROW_TYPE_HELP),
]


def parse_kept_k(text: str) -> int:
    """A scale factor that rows can be kept at.

    Raises:
        InputError: it is none.
    """
    k = parse_rows_k(text)
    if isinstance(k, str):
        raise InputError(
            "Rows are kept at one k and read at any multiple of it, but --k is `auto`; leave it "
            "out here, and give `--k auto` to `extensible ask`."
        )
    return k


def is_url(place: str) -> bool:
    """Whether a place is one that fsspec is asked for."""
    return "://" in place


def is_store(place: str) -> bool:
    """Whether there is a store.

    Raises:
        InputError: fsspec does not know such a URL.
        StorageError: it cannot be reached.
    """
    if not is_url(place):
        return (Path(place).expanduser() / CONTEXTS).is_dir()  # as `ContextStore` reads it
    from ..store.files import Place

    return Place(place).exists(CONTEXTS)


def open_store(place: str) -> ContextStore:
    """A store that is there.

    Raises:
        InputError: there is none.
    """
    from ..store.store import ContextStore

    if not is_store(place):
        raise InputError(
            f"A store is a folder that `extensible compress FILE --out STORE` made, but {place!r} "
            "is none; check the path."
        )
    return ContextStore(place)


def open_local(place: str) -> ContextStore:
    """A store that is there and can be changed.

    Raises:
        InputError: there is none, or it is behind a URL.
    """
    store = open_store(place)
    _ = store.place.folder
    return store


def store_to_fill(option: str, place: str) -> ContextStore:
    """A store that is there or can be made.

    Args:
        option: that names the place, for messages.
        place: a folder.

    Raises:
        InputError: something else is there, or it is a URL.
        StorageError: the place may not be written.
    """
    from ..store.store import ContextStore

    store = ContextStore(place)
    folder = store.place.folder
    if not is_store(place) and folder.is_dir() and any(folder.iterdir()):
        raise InputError(
            f"{option} is a store, a new folder or an empty one, but {place!r} {_what(folder)}; "
            "give another folder."
        )
    check_writable(option, folder, folder=True)
    return store


def _what(folder: Path) -> str:
    from ..context import Context

    if Context.is_saved_at(folder):
        return "is a single saved context, as earlier versions wrote (it can still be read)"
    return "holds something else"


def split_source(value: str) -> tuple[str, str | None] | None:
    """STORE or STORE:NAME -> the store's place, and the name if one is given; None if neither.

    The first colon counts that has a store before it and a name, which holds no slashes, behind.
    """
    if is_store(value):
        return value, None
    for place, character in enumerate(value):
        before, name = value[:place], value[place + 1 :]
        if character != ":" or not before or not name or {"/", "\\"} & set(name):
            continue
        if is_store(before):
            return before, name
    return None


def shown(place: str, name: str) -> str:
    """STORE:NAME."""
    return f"{place}:{name}"


def command(words: str, place: str, *names: str) -> str:
    """A command that the user can copy: `extensible store WORDS STORE NAME...`."""
    return shlex.join(["extensible", "store", *words.split(), place, *names])
