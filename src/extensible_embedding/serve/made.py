"""Rows of long messages -> kept for the next turn, in which the client sends them again.

In: contexts that were made of messages. Out: the same for the same tokens and k, as long as there
is room for them. For several threads.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict

from torch import Tensor

from ..context import Context


class Made:
    """Contexts of long texts that were made lately: a client sends its chat again with each turn.

    Args:
        most_bytes: of rows and ids; the oldest go first.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes, self._bytes = most_bytes, 0
        self._contexts: OrderedDict[bytes, Context] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, ids: Tensor, k: int) -> Context | None:
        """The context of these tokens (n,) at k, if it is there."""
        key = _digest(ids, k)
        with self._lock:
            if key in self._contexts:
                self._contexts.move_to_end(key)
            return self._contexts.get(key)

    def keep(self, context: Context) -> None:
        """Adds one."""
        key = _digest(context.token_ids, context.k)
        with self._lock:
            if key not in self._contexts:
                self._contexts[key] = context
                self._bytes += _num_bytes(context)
            while self._bytes > self.most_bytes:
                self._bytes -= _num_bytes(self._contexts.popitem(last=False)[1])


def _digest(ids: Tensor, k: int) -> bytes:
    return hashlib.sha256(f"{k}:".encode() + ids.numpy().tobytes()).digest()


def _num_bytes(context: Context) -> int:
    return context.rows.nbytes + context.token_ids.nbytes
