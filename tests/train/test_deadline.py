"""A run ends by the clock, at a rate that has fallen by then, and goes on with the time left."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from extensible_embedding import ExtensibleEmbedder, Reader
from extensible_embedding.train import deadline
from extensible_embedding.train.config import TrainConfig
from extensible_embedding.train.optimizer import rate_at
from extensible_embedding.train.trainer import train

from .conftest import KillAfter, Killed, Watch, same, weights


@pytest.fixture
def minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock on which a minute passes whenever somebody looks."""
    looked = iter(range(100_000))
    monkeypatch.setattr(deadline, "monotonic", lambda: 60.0 * next(looked))


def test_time_that_has_passed_counts_as_steps(config: TrainConfig) -> None:
    """Of 12 steps with 4 of decay: after two thirds of the time the rate begins to fall."""
    shares = [rate_at(4, config, passed) for passed in (0.0, 0.5, 2 / 3, 5 / 6, 1.0)]
    assert shares == pytest.approx([1, 1, 1, 0.5, 0])
    assert rate_at(10, config, 0.5) == rate_at(10, config)


@pytest.mark.usefixtures("minutes")
def test_a_run_ends_in_time(config: TrainConfig, reader: Reader) -> None:
    timed = dataclasses.replace(config, max_minutes=8.0, warmup_steps=0, decay_steps=12)
    watch = Watch()
    folder = train(timed, reader=reader, callbacks=[watch])
    steps = ExtensibleEmbedder.from_pretrained(folder, reader).training_record["steps"]
    assert steps == len(watch.rates) < config.max_steps
    rates = [rate[0] for rate in watch.rates.values()]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < rates[0] / 2


@pytest.mark.usefixtures("minutes")
def test_a_run_that_goes_on_has_the_time_that_was_left(config: TrainConfig, reader: Reader) -> None:
    uninterrupted = Watch()
    timed: Any = dataclasses.replace(config, max_minutes=9.0, decay_steps=12, save_steps=1)
    folder = train(timed, reader=reader, callbacks=[uninterrupted])
    whole = ExtensibleEmbedder.from_pretrained(folder, reader)
    other = dataclasses.replace(timed, output_dir=config.output_dir + "2")
    with pytest.raises(Killed):
        train(other, reader=reader, callbacks=[KillAfter(3)])
    watch = Watch()
    resumed = ExtensibleEmbedder.from_pretrained(
        train(other, reader=reader, callbacks=[watch]), reader
    )
    for step, rates in watch.rates.items():
        if step in uninterrupted.rates:
            assert rates == pytest.approx(uninterrupted.rates[step], rel=0.3)
    lost = whole.training_record["steps"] - resumed.training_record["steps"]  # type: ignore[operator]
    assert lost in (0, 1)


@pytest.mark.usefixtures("minutes")
def test_a_run_that_is_over_trains_no_more(config: TrainConfig, reader: Reader) -> None:
    timed = dataclasses.replace(config, max_minutes=5.0)
    first, watch = weights(train(timed, reader=reader)), Watch()
    assert same(weights(train(timed, reader=reader, callbacks=[watch])), first)
    assert not watch.rates


def test_without_it_steps_decide(config: TrainConfig, reader: Reader) -> None:
    watch = Watch()
    train(config, reader=reader, callbacks=[watch])
    assert len(watch.rates) == config.max_steps
