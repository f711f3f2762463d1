"""Where the tokens of a context stand in the text that they were made of.

In: that text, or whatever keeps it. Out: its bytes after some of the tokens. Tokens alone do not
tell: a tokenizer may write characters otherwise than it read them.

Axes: n token; m place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from .errors import InputError

if TYPE_CHECKING:
    from .reader import Reader


class Source(Protocol):
    """A text that tokens were made of."""

    def text(self) -> str:
        """All of it."""

    def places(self, reader: Reader, token_ids: Tensor) -> tuple[Tensor, Tensor] | None:
        """Numbers of tokens (m,), in order, and the bytes of the text, UTF-8, after these (m,).

        None where it cannot be told.
        """


@dataclass(frozen=True)
class GivenText:
    """A text that was given as one."""

    given: str

    def text(self) -> str:
        """All of it."""
        return self.given

    def places(self, reader: Reader, token_ids: Tensor) -> tuple[Tensor, Tensor] | None:
        """After every token; None if this reader's tokenizer makes other tokens, or tells none."""
        try:
            ids, ends = reader.encode_spans(self.given)
        except InputError:
            return None
        return (torch.arange(1, len(ids) + 1), ends) if torch.equal(ids, token_ids) else None


def characters_before(text: str, ends: Tensor) -> Tensor:
    """How many whole characters of a text stand before these of its bytes, UTF-8 (m,)."""
    data = np.frombuffer(text.encode(), dtype=np.uint8)
    starts = np.flatnonzero((data & 0xC0) != 0x80)  # no byte that goes on with a character
    return torch.from_numpy(np.searchsorted(starts, ends.numpy(), side="left"))
