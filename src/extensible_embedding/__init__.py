"""Extensible Embedding: long contexts for any causal language model, k tokens to a row.

The modules are the pipeline, in order:

    text         files -> Document
    chunks       token ids -> chunks
    embedder     chunks -> outputs, one for every token
    downsampling outputs -> rows, one for every k tokens
    context      rows with their provenance
    store        contexts that last: a folder of them, by name
    stream       a context that grows
    prompt       [head][rows][tail], and the choice of k
    expand       the spans that matter to a question, raw beside the rows
    reader       the frozen language model
    generation   prompts -> new tokens
    answer       a question -> its answer
    cite         an answer -> the sentences that it draws on

beside them `archive` and `epub` open what `text` reads, `checkpoint` and `folders` keep things on
disk, and `errors` says what can go wrong.
`train`, `evals` and `cli` import these, never the reverse.

A name is imported with its module when it is first used, so that `extensible --help` does not wait
for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from ._version import __version__
from .errors import (
    BusyError,
    CheckpointError,
    ConfigError,
    EngineError,
    ExtensibleError,
    InputError,
    MismatchError,
    MissingExtraError,
    StorageError,
    WindowError,
)

if TYPE_CHECKING:
    from .answer import Answer, AnswerStream
    from .context import Context
    from .embedder import EmbedderConfig, ExtensibleEmbedder
    from .prompt import Prompt
    from .reader import Reader
    from .released import released_embedder
    from .store.store import ContextStore
    from .store.stored import StoredContext
    from .stream import ContextStream
    from .text import Document, read_document

__all__ = [
    "Answer",
    "AnswerStream",
    "BusyError",
    "CheckpointError",
    "ConfigError",
    "Context",
    "ContextStore",
    "ContextStream",
    "Document",
    "EmbedderConfig",
    "EngineError",
    "ExtensibleEmbedder",
    "ExtensibleError",
    "InputError",
    "MismatchError",
    "MissingExtraError",
    "Prompt",
    "Reader",
    "StorageError",
    "StoredContext",
    "WindowError",
    "__version__",
    "read_document",
    "released_embedder",
]

_MODULES = {
    "Answer": "answer",
    "AnswerStream": "answer",
    "Context": "context",
    "ContextStore": "store.store",
    "ContextStream": "stream",
    "Document": "text",
    "EmbedderConfig": "embedder",
    "ExtensibleEmbedder": "embedder",
    "Prompt": "prompt",
    "Reader": "reader",
    "StoredContext": "store.stored",
    "read_document": "text",
    "released_embedder": "released",
}


def __getattr__(name: str) -> object:
    """Imports a public name from its module on first use (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """What is imported already, and what would be."""
    return sorted({*globals(), *__all__})
