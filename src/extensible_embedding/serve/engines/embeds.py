"""The parts of a request as one tensor, for engines that take nothing but rows.

In: token ids and rows. Out: rows, those of tokens looked up in the reader's own table.

Axes: S prompt row, H reader hidden size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...errors import EngineError
from .base import Request

EmbedTokens = Callable[[Tensor], Tensor]
"""Rows (t, H) of token ids (t,), as the reader's first layer takes them: `Reader.embed_tokens`, or
the table of a reader whose weights are elsewhere."""


def joined_rows(request: Request, embed_tokens: EmbedTokens) -> Tensor:
    """All of a prompt (S, H) on the CPU, in the type of the reader's table.

    Raises:
        EngineError: there is nothing to read, or rows have another width than tokens.
    """
    parts = [part for part in request.parts if len(part)]
    if not parts:
        raise EngineError("A prompt has at least 1 row, but this one has none; give it a head.")
    table = embed_tokens(torch.zeros(1, dtype=torch.long))  # its width and type
    rows = [part if part.ndim == 2 else embed_tokens(part) for part in parts]
    widths = {part.shape[1] for part in rows}
    if widths != {table.shape[1]}:
        raise EngineError(
            f"Rows have {table.shape[1]} numbers each for this reader, but some have "
            f"{max(widths - {table.shape[1]})}; make them with its own embedder."
        )
    return torch.cat([part.detach().to("cpu", table.dtype) for part in rows])
