"""Variants change what they say, and train on equal budgets."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from extensible_embedding import Reader
from extensible_embedding.bench.variants import (
    BASELINE,
    VARIANTS,
    Ablation,
    baseline_config,
    check_variant,
    choose,
    run_name,
    steps_for,
    variant_config,
    with_budget,
)
from extensible_embedding.errors import ConfigError, InputError
from extensible_embedding.train.config import TrainConfig
from extensible_embedding.train.data import Instances
from extensible_embedding.train.trainer import instances

BASE = baseline_config(TrainConfig(output_dir="x", data=["a.txt"]))


def test_names_are_distinct_and_no_variant_is_called_baseline() -> None:
    names = [variant.name for variant in VARIANTS]
    assert len({*names, BASELINE}) == len(names) + 1


def test_every_variant_is_a_configuration_that_changes_one_thing() -> None:
    for variant in VARIANTS:
        changed = variant_config(BASE, variant)
        differing = {
            field.name
            for field in dataclasses.fields(TrainConfig)
            if getattr(changed, field.name) != getattr(BASE, field.name)
        }
        assert differing <= set(variant.overrides)
        assert (run_name(BASE, variant) == BASELINE) == (not differing)


@pytest.mark.parametrize(
    "settings", [{"projection_start": 4.0, "final_norm": False}, {"residual": False}]
)
def test_every_variant_is_a_configuration_whatever_the_baseline_starts_with(
    settings: dict[str, Any],
) -> None:
    base = dataclasses.replace(BASE, **settings)
    names = ["plain", "token-start", "hidden-start"]
    plain, token, hidden = (variant_config(base, each) for each in choose(names))
    assert (plain.residual, plain.projection_start) == (False, None)
    assert (token.residual, token.projection_start) == (True, 0.0)
    assert (hidden.residual, hidden.projection_start) == (True, None)
    for variant in VARIANTS:
        variant_config(base, variant)


def test_every_group_has_the_defaults_choice() -> None:
    """Of the defaults only the chunk length, drawn from several, is no variant by itself."""
    same = {variant.group for variant in VARIANTS if run_name(BASE, variant) == BASELINE}
    assert same == {variant.group for variant in VARIANTS} - {"chunk length"}


def test_variants_by_name_keep_their_order() -> None:
    assert [variant.name for variant in choose(["plain", "mean"])] == ["mean", "plain"]
    with pytest.raises(InputError, match="one or more of strided, .*, but 'magic' is none of them"):
        choose(["mean", "magic"])
    with pytest.raises(InputError, match="none is given"):
        choose([])


def test_ablations_begin_with_the_readers_layers() -> None:
    with pytest.raises(ConfigError, match="`init_from` is 'some'; leave it out"):
        baseline_config(dataclasses.replace(BASE, init_from="some"))
    assert baseline_config(dataclasses.replace(BASE, eval_data=["a"])).eval_data is None


def test_what_cannot_be_made_or_measured_is_refused(tiny_reader: Reader) -> None:
    small = dataclasses.replace(BASE, num_layers=4, reading_chunk_tokens=16)
    check_variant("small", small, tiny_reader, [2, 16])
    with pytest.raises(InputError, match="reader, which has 4, but 'deep' takes 5; leave it out"):
        check_variant("deep", dataclasses.replace(small, num_layers=5), tiny_reader, [2])
    with pytest.raises(InputError, match="'small' reads chunks of 16 tokens and k is 32"):
        check_variant("small", small, tiny_reader, [2, 32])


@pytest.fixture
def drawn(tmp_path: Path, tiny_reader: Reader, text: str) -> tuple[TrainConfig, Instances]:
    (tmp_path / "data.txt").write_text(text * 4)
    config = TrainConfig(
        output_dir="x",
        cache_dir=str(tmp_path / "cache"),
        data=[str(tmp_path / "data.txt")],
        instance_tokens=[64],
        scale_factors=[2, 4],
        chunk_tokens=[16],
        batch_size=2,
        gradient_accumulation_steps=1,
    )
    return config, instances(config, tiny_reader)


def test_a_budget_becomes_the_fewest_steps(drawn: tuple[TrainConfig, Instances]) -> None:
    config, found = drawn  # two instances of three predicted chunks of 16 a step
    assert [steps_for(config, found, budget) for budget in (1, 96, 97, 960)] == [1, 1, 2, 10]
    one = dataclasses.replace(config, one_stream=True)  # a third of that
    assert steps_for(one, found, 96) == 3


def test_the_rate_falls_over_the_same_share_of_any_budget() -> None:
    base = dataclasses.replace(BASE, max_steps=100, decay_steps=30, warmup_steps=10)
    config = with_budget(base, 50, Path("out") / "a")
    found = (config.output_dir, config.max_steps, config.decay_steps, config.warmup_steps)
    assert found == (str(Path("out") / "a"), 50, 15, 5)
    assert with_budget(base, 400, Path("out")).warmup_steps == 10


def test_one_stream_may_see_the_baselines_instances() -> None:
    same = [variant.name for variant in VARIANTS if variant.same_steps]
    assert same == ["one-stream-same-steps"]
    assert Ablation(name="a", group="b").overrides == {}
