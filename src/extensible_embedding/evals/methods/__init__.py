"""Methods: ways to read a context that may not fit the window.

One file a method or a small family; `base` has the contract, `METHODS` their names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...embedder import ExtensibleEmbedder
from ...errors import InputError
from .adaptive import ExtensibleAdaptive
from .base import CannotRunError, EmbedsReading, Method, Passage, Reading
from .cache import RowCache
from .kvpress import Knorm, SnapKv, StreamingLlm
from .llmlingua2 import LlmLingua2
from .mixed import ExtensibleMixed
from .online import ExtensibleOnline
from .plain import NoContext, Raw, SinksAndRecent, Truncate
from .prune import Prune
from .retrieve import Retrieve
from .rope import DynamicNtk, PositionInterpolation, Yarn
from .rows import Extensible, ExtensibleRawEnd, MeanPool, Recent

__all__ = [
    "METHODS",
    "WITH_K",
    "CannotRunError",
    "EmbedsReading",
    "Method",
    "Passage",
    "Reading",
    "RowCache",
    "check_methods",
    "check_windows",
    "make_method",
]

_RAW: tuple[type[Method], ...] = (
    NoContext,
    Raw,
    Truncate,
    SinksAndRecent,
    Retrieve,
    Prune,
    LlmLingua2,
    SnapKv,
    StreamingLlm,
    Knorm,
    PositionInterpolation,
    DynamicNtk,
    Yarn,
)
WITH_K: Mapping[str, type[Extensible]] = {
    each.name: each
    for each in (
        Extensible,
        ExtensibleRawEnd,
        ExtensibleMixed,
        ExtensibleAdaptive,
        ExtensibleOnline,
        MeanPool,
        Recent,
    )
}
"""Methods with a scale factor, by name."""
METHODS: Mapping[str, type[Method]] = {**{each.name: each for each in _RAW}, **WITH_K}
"""Every method by its name."""


def make_method(
    name: str,
    embedder: ExtensibleEmbedder,
    *,
    k: int | None = None,
    all_rows: bool = False,
    cache: RowCache | None = None,
) -> Method:
    """The method of a name.

    Args:
        name: one of `METHODS`.
        embedder: with the reader that reads.
        k: tokens per row, for methods that have rows; None: the method chooses.
        all_rows: read no recent part raw, for methods that have rows.
        cache: of rows, shared by the methods of one evaluation.

    Raises:
        InputError: there is none of that name.
    """
    check_methods([name], recovery=True)
    if name in WITH_K:
        return WITH_K[name](embedder, k, all_rows=all_rows, cache=cache)
    return METHODS[name](embedder.reader)


def check_methods(names: Sequence[str], *, recovery: bool = False) -> None:
    """Raises InputError unless all are methods, and there is one.

    Args:
        names: of methods.
        recovery: whether they read a whole context before text that goes on, in no window.
    """
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        found = f"{unknown[0]!r} is none of them" if unknown else "none is given"
        raise InputError(
            f"Methods are one or more of {', '.join(METHODS)}, but {found}; choose of these."
        )
    bound = [name for name in names if name in WITH_K and WITH_K[name].for_recovery]
    if bound and not recovery:
        raise InputError(
            f"Method {bound[0]!r} is one of language modelling without windows; with a window or a "
            "question, `truncate` and `extensible` are what it would be."
        )


def check_windows(windows: Sequence[int], most: int) -> None:
    """Raises InputError unless a reader that holds `most` rows can hold these."""
    if windows and max(windows) > most:
        raise InputError(
            f"A window to compare in is at most the reader's window of {most} rows, but one is "
            f"{max(windows)}; give smaller windows."
        )
