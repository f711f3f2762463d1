"""Methods: ways to read a context that may not fit the window.

One file a method or a small family; `base` has the contract, `METHODS` their names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ...embedder import ExtensibleEmbedder
from ...errors import InputError
from .base import CannotRunError, EmbedsReading, Method, Passage, Reading
from .plain import NoContext, Raw, SinksAndRecent, Truncate
from .prune import Prune
from .retrieve import Retrieve
from .rope import DynamicNtk, PositionInterpolation, Yarn
from .rows import Extensible, MeanPool

__all__ = [
    "METHODS",
    "CannotRunError",
    "EmbedsReading",
    "Method",
    "Passage",
    "Reading",
    "make_method",
]

METHODS: Mapping[str, Callable[[ExtensibleEmbedder], Method]] = {
    "none": lambda embedder: NoContext(embedder.reader),
    "raw": lambda embedder: Raw(embedder.reader),
    "truncate": lambda embedder: Truncate(embedder.reader),
    "streaming-llm": lambda embedder: SinksAndRecent(embedder.reader),
    "retrieve": lambda embedder: Retrieve(embedder.reader),
    "llmlingua": lambda embedder: Prune(embedder.reader),
    "pi": lambda embedder: PositionInterpolation(embedder.reader),
    "ntk": lambda embedder: DynamicNtk(embedder.reader),
    "yarn": lambda embedder: Yarn(embedder.reader),
    "extensible": Extensible,
    "mean-pool": MeanPool,
}
"""Every method by its name, made from an embedder with its reader."""


def make_method(name: str, embedder: ExtensibleEmbedder) -> Method:
    """The method of a name.

    Raises:
        InputError: there is none of that name.
    """
    if name not in METHODS:
        raise InputError(f"A method is one of {', '.join(METHODS)}, but it is {name!r}.")
    return METHODS[name](embedder)
