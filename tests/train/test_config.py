"""The training configuration: types, ranges, and errors that name the mend."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from extensible_embedding.errors import ConfigError, InputError, StorageError
from extensible_embedding.train.config import (
    RANGES,
    TrainConfig,
    check_files,
    config_from,
    load_config,
)
from extensible_embedding.train.trainer import train

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


NAN, INFINITY = float("nan"), float("inf")
NOT_COUNTS: list[object] = [0, -1, 2.5, True, "many", None]
NOT_STEPS: list[object] = [-5, 2.5, True, None]
NOT_NUMBERS: list[object] = [NAN, INFINITY, -1.0, True, "fast", None]
NOT_FLAGS: list[object] = [1, "yes"]
NOT_LISTS_OF_COUNTS: list[object] = [[], [0], [-4], [2.5], [True], 4, None]
OUT_OF_RANGE: dict[str, list[object]] = {
    "output_dir": ["", None, 3],
    "data": [[], [""], "a.parquet", [7], None],
    "data_weights": [[], [NAN], [INFINITY], [-1.0], [0.0], [0.5, 0.5], 1.0],
    "questions": [[], [""], "a.jsonl", [3]],
    "question_share": [0, -0.5, 1.5, "half", NAN],
    "span_tokens": [[], [-1], [2.5], [True], 128, None],
    "cache_dir": ["", 3],
    "reader": ["", None],
    "init_from": ["", 3],
    "num_layers": NOT_COUNTS,
    "reading_chunk_tokens": NOT_COUNTS,
    "down_sampling": ["median", ""],
    "residual": [*NOT_FLAGS, None],
    "final_norm": [*NOT_FLAGS, None],
    "projection_start": [1e7, *(value for value in NOT_NUMBERS if value is not None)],
    "scale_factors": NOT_LISTS_OF_COUNTS,
    "instance_tokens": [*NOT_LISTS_OF_COUNTS, [100]],
    "chunk_tokens": NOT_LISTS_OF_COUNTS,
    "one_stream": [*NOT_FLAGS, None],
    "first_scale_factors": [[], [0], [2.5], 4],
    "first_steps": NOT_STEPS,
    "sequence_places": [value for value in NOT_COUNTS if value is not None],
    "workers": NOT_STEPS,
    "max_steps": [*NOT_COUNTS, 2**31],
    "batch_size": NOT_COUNTS,
    "gradient_accumulation_steps": NOT_COUNTS,
    "learning_rate": [*NOT_NUMBERS, 0.0],
    "projection_learning_rate": [*NOT_NUMBERS, 0.0],
    "weight_decay": NOT_NUMBERS,
    "max_minutes": [*(value for value in NOT_NUMBERS if value is not None), 0.0],
    "max_grad_norm": NOT_NUMBERS,
    "warmup_steps": NOT_STEPS,
    "decay_steps": NOT_STEPS,
    "bf16": NOT_FLAGS,
    "compile": [*NOT_FLAGS, None],
    "seed": [*NOT_STEPS, 2**32],
    "save_steps": NOT_COUNTS,
    "save_total_limit": NOT_COUNTS,
    "logging_steps": NOT_COUNTS,
    "eval_data": [[], [""], "a.parquet"],
    "eval_steps": NOT_COUNTS,
    "eval_instances": NOT_COUNTS,
}


@pytest.mark.parametrize("spec", dataclasses.fields(TrainConfig), ids=lambda spec: spec.name)
def test_a_value_out_of_range_is_refused(spec: dataclasses.Field[Any]) -> None:
    """Of every field: one without bad values here, or without a range, fails."""
    assert spec.name in RANGES
    for value in OUT_OF_RANGE[spec.name]:
        with pytest.raises(ConfigError, match=f"`{spec.name}` is .*, but it is .*; correct"):
            TrainConfig(**{**LEAST, spec.name: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data_weights", [0.0, 2]),
        ("max_grad_norm", 0),
        ("weight_decay", 0),
        ("warmup_steps", 0),
        ("decay_steps", 0),
        ("seed", 2**32 - 1),
        ("learning_rate", 1),
    ],
)
def test_the_ends_of_ranges_are_in_them(key: str, value: object) -> None:
    TrainConfig(**{**LEAST, "data": ["a", "b"], key: value})


def test_spans_without_questions_are_refused() -> None:
    with pytest.raises(ConfigError, match="`span_tokens` is .0. without `questions`"):
        TrainConfig(**{**LEAST, "span_tokens": [0, 128]})


def test_a_key_that_comes_twice_is_refused(tmp_path: Path) -> None:
    text = "output_dir: a\ndata: [b]\nseed: 1\noutput_dir: c\n"
    with pytest.raises(ConfigError, match="`output_dir` comes again in line 4; delete one"):
        load_config(written(tmp_path, text))


def test_a_projection_starts_only_where_there_is_one() -> None:
    assert config_from({**LEAST, "projection_start": 4.0}).projection_start == 4.0
    assert config_from({**LEAST, "residual": False}).projection_start is None
    with pytest.raises(ConfigError, match="`projection_start` is 0 without `residual`"):
        config_from({**LEAST, "projection_start": 4.0, "residual": False})


@pytest.mark.parametrize("name", ["scale_factors", "first_scale_factors"])
def test_a_row_stands_for_tokens_of_one_chunk(name: str) -> None:
    values = {**LEAST, "chunk_tokens": [64], "scale_factors": [2], "reading_chunk_tokens": 128}
    values |= {"first_scale_factors": [2], "first_steps": 3}
    with pytest.raises(ConfigError, match=f"`{name}` is at most 64, .* but it is .2, 65."):
        config_from({**values, name: [2, 65]})
    assert config_from({**values, name: [2, 64]})
    assert config_from({**values, name: [2, 128], "questions": ["q.parquet"]})


@pytest.mark.parametrize("key", ["data", "questions", "eval_data"])
def test_missing_data_are_refused(tmp_path: Path, key: str) -> None:
    good = written(tmp_path, "text")
    values = {"output_dir": str(tmp_path / "run"), "data": [str(good)]}
    check_files(TrainConfig(**{**values, "eval_data": [str(good)]}))
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(InputError, match=f"{path}' is none; check `{key}`"):
            check_files(TrainConfig(**{**values, key: [str(path)]}))


@pytest.mark.parametrize("below", ["", "run"])
def test_a_file_is_no_output_folder(tmp_path: Path, below: str) -> None:
    file = written(tmp_path, "text")
    with pytest.raises(ConfigError, match="run.yaml' is a file; give another output_dir"):
        check_files(TrainConfig(output_dir=str(file / below), data=[str(file)]))


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **settings: object) -> None:
        raise PermissionError(13, "Permission denied")

    def load(*arguments: object) -> None:
        raise AssertionError("the reader was loaded")

    monkeypatch.setattr("extensible_embedding.train.trainer.load_reader", load)
    file = written(tmp_path, "text")
    config = TrainConfig(output_dir=str(tmp_path / "new" / "run"), data=[str(file)])
    for broken in ("pathlib.Path.mkdir", "tempfile.TemporaryFile"):
        with monkeypatch.context() as patch:
            patch.setattr(broken, refuse)
            with pytest.raises(StorageError, match="new/run' is none .*Permission denied"):
                train(config)


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
