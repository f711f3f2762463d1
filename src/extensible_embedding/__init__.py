"""Extensible Embedding: long contexts for any causal language model, k tokens to a row.

The modules are the pipeline, in order:

    text         files -> Document
    chunks       token ids -> chunks
    embedder     chunks -> outputs, one for every token
    downsampling outputs -> rows, one for every k tokens
    context      rows with their provenance
    stream       a context that grows
    prompt       [head][rows][tail], and the choice of k
    reader       the frozen language model
    answer       prompt -> text

beside them `archive` and `epub` open what `text` reads, `checkpoint` and `folders` keep things on
disk, and `errors` says what can go wrong.
`train`, `evals` and `cli` import these, never the reverse.
"""

from ._version import __version__
from .answer import Answer, AnswerStream
from .context import Context
from .embedder import EmbedderConfig, ExtensibleEmbedder
from .errors import (
    CheckpointError,
    ConfigError,
    ExtensibleError,
    InputError,
    MismatchError,
    MissingExtraError,
    StorageError,
    WindowError,
)
from .prompt import Prompt
from .reader import Reader
from .stream import ContextStream
from .text import Document, read_document

__all__ = [
    "Answer",
    "AnswerStream",
    "CheckpointError",
    "ConfigError",
    "Context",
    "ContextStream",
    "Document",
    "EmbedderConfig",
    "ExtensibleEmbedder",
    "ExtensibleError",
    "InputError",
    "MismatchError",
    "MissingExtraError",
    "Prompt",
    "Reader",
    "StorageError",
    "WindowError",
    "__version__",
    "read_document",
]
