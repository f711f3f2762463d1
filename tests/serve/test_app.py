"""The server as it starts and stops."""

from __future__ import annotations

import signal
import threading

import httpx2
import pytest

from extensible_embedding import Reader
from extensible_embedding.errors import EngineError
from extensible_embedding.serve.app import run

from .conftest import Make, SimpleEngine


class Starting(SimpleEngine):
    """An engine that tells of its start, which may fail, or be told to stop."""

    def __init__(self, reader: Reader, told: list[str]) -> None:
        super().__init__(reader)
        self.told, self.stops = told, False

    async def __aenter__(self) -> Starting:
        if self.fails is not None:
            raise self.fails
        if self.stops:
            signal.raise_signal(signal.SIGINT)
        self.told.append("engine runs")
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.told.append("engine ended")


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def engine(tiny_reader: Reader, told: list[str]) -> Starting:
    return Starting(tiny_reader, told)


def test_that_it_serves_is_told_when_requests_are_answered(make: Make, told: list[str]) -> None:
    answered = []

    def ask(url: str) -> None:
        try:
            answered.append(httpx2.get(f"{url}/ready", timeout=10).status_code)
        finally:
            signal.raise_signal(signal.SIGINT)

    def started(url: str) -> None:
        told.append("serving")
        threading.Thread(target=ask, args=(url,)).start()

    with pytest.raises(KeyboardInterrupt):
        run(make(), "127.0.0.1", 0, started)
    assert told == ["engine runs", "serving", "engine ended"]
    assert answered == [200]


@pytest.mark.parametrize("error", [EngineError("It is gone; start it."), MemoryError("It is gone")])
def test_a_server_whose_engine_does_not_start_tells_why_alone(
    make: Make,
    engine: Starting,
    told: list[str],
    error: Exception,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine.fails = error
    with pytest.raises(type(error), match="gone"):
        run(make(), "127.0.0.1", 0, told.append)
    assert told == []
    assert "gone" in caplog.text
    assert "Traceback" not in caplog.text


def test_a_server_that_is_stopped_while_it_starts_tells_nothing(
    make: Make, engine: Starting, told: list[str]
) -> None:
    engine.stops = True
    with pytest.raises(KeyboardInterrupt):
        run(make(), "127.0.0.1", 0, told.append)
    assert told == ["engine runs", "engine ended"]
