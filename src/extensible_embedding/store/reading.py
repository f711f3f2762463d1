"""A stored context as any other, whose rows are read when it is known at which k.

In: a stored context. Out: a `Context` for prompts. A prompt is planned from lengths and titles
alone, and then only the rows of the chosen k are taken from the disk, however finely the context is
kept.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from ..context import Context
from .stored import StoredContext


@dataclass(frozen=True, kw_only=True)
class LazyContext(Context):
    """A context whose `rows` are empty until `at` reads them."""

    stored: StoredContext
    """Where they are."""

    @property
    def num_rows(self) -> int:
        """Rows as kept."""
        return self.stored.num_rows

    def at(self, k: int) -> Context:
        """The context with its rows at k; raises as `StoredContext.context`."""
        return dataclasses.replace(
            self.stored.context(k),
            title=self.title,
            reader_fingerprint=self.reader_fingerprint,
            tokenizer_fingerprint=self.tokenizer_fingerprint,
        )


def lazy_context(stored: StoredContext) -> LazyContext:
    """A context to plan with; raises as `StoredContext.token_ids`."""
    kept = stored.settings
    return LazyContext(
        rows=torch.empty(0, kept.row_width),
        token_ids=stored.token_ids(),
        k=kept.k,
        chunk_tokens=kept.chunk_tokens,
        down_sampling=kept.down_sampling,
        embedder_fingerprint=kept.embedder_fingerprint,
        reader_fingerprint=kept.reader_fingerprint,
        max_k=kept.max_k,
        title=stored.title,
        tokenizer_fingerprint=kept.tokenizer_fingerprint,
        source=stored,
        stored=stored,
    )
