"""The training configuration: types, ranges, and errors that name the mend."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from extensible_embedding.errors import ConfigError, InputError
from extensible_embedding.train.config import TrainConfig, config_from, load_config

LEAST: dict[str, Any] = {"output_dir": "runs/x", "data": ["a.parquet"]}


def written(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_becomes_a_configuration(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "output_dir: runs/x  # a comment\n"
        "data: [a.parquet, b.jsonl]\n"
        "data_weights: [1, 0.5]\n"
        "learning_rate: 4e-4\n"
        "projection_learning_rate: 1.0e-3\n"
        "weight_decay: 0\n"
        "bf16: false\n"
        "init_from: null\n"
        "scale_factors: [2, 4]\n",
    )
    config = load_config(path)
    assert config == TrainConfig(
        output_dir="runs/x",
        data=["a.parquet", "b.jsonl"],
        data_weights=[1.0, 0.5],
        learning_rate=4e-4,
        projection_learning_rate=1e-3,
        weight_decay=0.0,
        bf16=False,
        scale_factors=[2, 4],
    )
    assert all(isinstance(share, float) for share in config.data_weights or [])


def test_every_default_survives_yaml() -> None:
    config = config_from(dict(LEAST))
    text = yaml.safe_dump(dataclasses.asdict(config))
    assert config_from(yaml.safe_load(text)) == config


def test_the_given_values_are_not_changed() -> None:
    values = {**LEAST, "learning_rate": "4e-4"}
    config_from(values)
    assert values["learning_rate"] == "4e-4"


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("learning_rat", "learning_rate"),
        ("scale_factor", "scale_factors"),
        ("batchsize", "batch_size"),
        ("max_step", "max_steps"),
        ("zzz", ""),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(key: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"no setting `{key}`; the nearest is `{near}"):
        config_from({**LEAST, key: 1})


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("max_steps", "many", "int"),
        ("max_steps", 2.5, "int"),
        ("max_steps", True, "int"),
        ("learning_rate", "fast", "float"),
        ("learning_rate", True, "float"),
        ("residual", 1, "bool"),
        ("residual", "yes", "bool"),
        ("reader", 7, "str"),
        ("data", "a.parquet", r"list\[str\]"),
        ("scale_factors", [2, "four"], r"list\[int\]"),
        ("scale_factors", None, r"list\[int\]"),
        ("data_weights", ["half"], r"list\[float\]"),
        ("bf16", "auto", "bool"),
    ],
)
def test_a_wrong_type_is_refused(key: str, value: object, kind: str) -> None:
    with pytest.raises(ConfigError, match=f"`{key}` is of type {kind}, but it is"):
        config_from({**LEAST, key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_steps", 0),
        ("batch_size", 0),
        ("gradient_accumulation_steps", -1),
        ("save_steps", 0),
        ("scale_factors", []),
        ("scale_factors", [0]),
        ("chunk_tokens", [-4]),
        ("instance_tokens", [100]),
        ("data", []),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
    ],
)
def test_a_value_out_of_range_is_refused(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"`{key}` is .*, but it is"):
        config_from({**LEAST, key: value})


@pytest.mark.parametrize("missing", ["output_dir", "data"])
def test_what_must_be_there(missing: str) -> None:
    with pytest.raises(ConfigError, match=f"has `{missing}`, but it is missing"):
        config_from({key: value for key, value in LEAST.items() if key != missing})


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words", "", "a: [1\n", "a: {b\n"])
def test_what_is_no_configuration_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"is not YAML|holds keys and values"):
        load_config(written(tmp_path, text))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a YAML file, but"):
        load_config(tmp_path / "none.yaml")
