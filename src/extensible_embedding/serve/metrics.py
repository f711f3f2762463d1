"""What a server counts, for Prometheus.

In: what happens. Out: the text that Prometheus reads. Numbers alone: no names, no texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_ROWS = tuple(2**power for power in range(4, 18))
_K = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one server.

    Args:
        running: requests that run.
        waiting: jobs that run or wait, by thread.
        engine: what the engine counts itself.
    """

    def __init__(
        self,
        running: Callable[[], float],
        waiting: Mapping[str, Callable[[], float]],
        engine: Callable[[], Mapping[str, float]],
    ) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "extensible_requests",
            "Requests answered.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self.seconds = self._histogram("request_seconds", "Time of a request.", _SECONDS, "route")
        self.first_token = self._histogram(
            "first_token_seconds", "Time from a request to its first token.", _SECONDS
        )
        self.prompt_rows = self._histogram("prompt_rows", "Rows of a prompt.", _ROWS)
        self.prompt_k = self._histogram("prompt_k", "Largest k of a prompt.", _K)
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens that prompts stood for.")
        self.new_tokens = self._counter("new_tokens", "Tokens generated.")
        self.embedded_tokens = self._counter("embedded_tokens", "Tokens that became rows.")
        Gauge(
            "extensible_running_requests", "Requests that run.", registry=self.registry
        ).set_function(running)
        queue = Gauge(
            "extensible_queue", "Jobs that run or wait.", ("thread",), registry=self.registry
        )
        for name, count in waiting.items():
            queue.labels(name).set_function(count)
        self.registry.register(_EngineNumbers(engine))
        ProcessCollector(registry=self.registry)  # memory, time and files of the process

    def text(self) -> bytes:
        """All of it."""
        return generate_latest(self.registry)

    def _counter(self, name: str, words: str) -> Counter:
        return Counter(f"extensible_{name}", words, registry=self.registry)

    def _histogram(
        self, name: str, words: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(
            f"extensible_{name}", words, labels, buckets=buckets, registry=self.registry
        )


class _EngineNumbers(Collector):
    """What the engine counts, under its own names."""

    def __init__(self, numbers: Callable[[], Mapping[str, float]]) -> None:
        self._numbers = numbers

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for name, value in self._numbers().items():
            yield GaugeMetricFamily(f"extensible_engine_{name}", "Counted by the engine.", value)
