"""How many requests run at the same time, of each client and of all.

In: a client with a request. Out: a slot, or 429 with the time after which to come back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import ApiError
from .keys import Client

RETRY_AFTER_S = 2


class Slots:
    """Counts requests that run; used on the event loop alone.

    Args:
        most: requests of all clients together.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._running: Counter[str] = Counter()

    @property
    def running(self) -> int:
        """Requests that run."""
        return self._running.total()

    @contextmanager
    def taken(self, client: Client) -> Iterator[None]:
        """Holds a slot.

        Raises:
            ApiError: 429, there is none.
        """
        if self._running[client.name] >= client.limits.max_concurrent:
            raise busy(f"A key has {client.limits.max_concurrent} requests at the same time")
        if self.running >= self.most:
            raise busy(f"This server has {self.most} requests at the same time")
        self._running[client.name] += 1
        try:
            yield
        finally:
            self._running[client.name] -= 1
            if not self._running[client.name]:
                del self._running[client.name]


def busy(rule: str) -> ApiError:
    """Too much at once: what the limit is, and when to come back."""
    return ApiError(
        429,
        f"{rule}, and they run; try again in {RETRY_AFTER_S} seconds.",
        code="too_many_requests",
        headers={"Retry-After": str(RETRY_AFTER_S)},
    )
