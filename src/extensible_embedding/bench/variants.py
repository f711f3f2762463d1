"""The ablations as data: what each variant of a training run changes.

In: the configuration that all variants share. Out: the configuration of each variant, for a budget
of predicted tokens. Knows nothing of how a run is trained and measured.

Paper: arXiv 2401.07793, ablations of down-sampling, layers and fixed against random k; 2402.11577
for what two-stream training predicts. Residual and chunk length are choices of this library.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..embedder import EmbedderConfig
from ..errors import ConfigError, InputError
from ..reader import Reader
from ..train.config import TrainConfig
from ..train.data import Instances

BASELINE = "baseline"
_WARMUP_SHARE = 10


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """One change of the baseline."""

    name: str
    """Also of its folder."""
    group: str
    """What is compared: a table shows one group after the other."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the training configuration that differ."""
    same_steps: bool = False
    """Train on the baseline's number of instances, not for its number of predicted tokens."""


def _chunk(num_tokens: int) -> Ablation:
    changed = {"chunk_tokens": [num_tokens], "reading_chunk_tokens": num_tokens}
    return Ablation(name=f"chunk-{num_tokens}", group="chunk length", overrides=changed)


def _layers(count: int) -> Ablation:
    return Ablation(name=f"layers-{count}", group="layers", overrides={"num_layers": count})


def _sampling(name: str) -> Ablation:
    return Ablation(name=name, group="down-sampling", overrides={"down_sampling": name})


def _trained_at(name: str, *scale_factors: int) -> Ablation:
    changed = {"scale_factors": list(scale_factors)}
    return Ablation(name=name, group="scale factor", overrides=changed)


_ONE_STREAM = {"one_stream": True}
_PLAIN = {"residual": False, "projection_start": None}
_TOKEN_START = {"residual": True, "projection_start": 0.0}
_HIDDEN_START = {"residual": True, "projection_start": None}
VERSION = 2
"""Raised when a variant of some name becomes another one: its figures do not stand beside it."""
VARIANTS: tuple[Ablation, ...] = (
    *map(_sampling, ("strided", "mean", "terminal", "random")),
    *map(_layers, (4, 8, 12)),
    _trained_at("k-random", 2, 4, 8, 16, 32),
    _trained_at("k-4", 4),
    _trained_at("k-16", 16),
    Ablation(name="residual", group="residual", overrides={"residual": True}),
    Ablation(name="plain", group="residual", overrides=_PLAIN),
    Ablation(name="token-start", group="start", overrides=_TOKEN_START),
    Ablation(name="hidden-start", group="start", overrides=_HIDDEN_START),
    *map(_chunk, (64, 128, 256)),
    Ablation(name="two-stream", group="streams", overrides={"one_stream": False}),
    Ablation(name="one-stream", group="streams", overrides=_ONE_STREAM),
    Ablation(name="one-stream-same-steps", group="streams", overrides=_ONE_STREAM, same_steps=True),
)
"""Every variant; one that changes nothing of a baseline is the baseline, and is not run again."""


def choose(names: Sequence[str]) -> tuple[Ablation, ...]:
    """Variants by name, in the order of `VARIANTS`.

    Raises:
        InputError: there is none of a name.
    """
    known = {variant.name for variant in VARIANTS}
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        found = f"{unknown[0]!r} is none of them" if unknown else "none is given"
        raise InputError(
            f"Variants are one or more of {', '.join(v.name for v in VARIANTS)}, but {found}; "
            "choose of these."
        )
    return tuple(variant for variant in VARIANTS if variant.name in names)


def baseline_config(base: TrainConfig) -> TrainConfig:
    """The configuration that all variants share; it is not evaluated during training.

    Raises:
        ConfigError: it begins with an embedder, whose architecture no variant could change.
    """
    if base.init_from is not None:
        raise ConfigError(
            "Ablations begin with the reader's first layers, but `init_from` is "
            f"{base.init_from!r}; leave it out."
        )
    sampling = base.down_sampling or EmbedderConfig().down_sampling
    return dataclasses.replace(base, eval_data=None, down_sampling=sampling)


def variant_config(base: TrainConfig, variant: Ablation) -> TrainConfig:
    """The configuration of a variant, without its budget."""
    return dataclasses.replace(base, **variant.overrides)


def run_name(base: TrainConfig, variant: Ablation) -> str:
    """Of the run that a variant's figures come from: its own, or the baseline's if it is that."""
    return BASELINE if variant_config(base, variant) == base else variant.name


def check_variant(
    name: str, config: TrainConfig, reader: Reader, scale_factors: Sequence[int]
) -> None:
    """Refuses, before anything is trained, a variant that could not be made or measured.

    Raises:
        InputError: the reader has too few layers, or its chunks are shorter than a k.
    """
    if config.num_layers > reader.num_layers:
        raise InputError(
            f"A variant takes its layers from the reader, which has {reader.num_layers}, but "
            f"{name!r} takes {config.num_layers}; leave it out of --variants."
        )
    if max(scale_factors) > config.reading_chunk_tokens:
        raise InputError(
            f"A row stands for tokens of one chunk, but {name!r} reads chunks of "
            f"{config.reading_chunk_tokens} tokens and k is {max(scale_factors)}; give a smaller "
            "--k, or leave it out of --variants."
        )


def steps_for(config: TrainConfig, drawn: Instances, budget_tokens: int) -> int:
    """The fewest optimizer steps that predict so many tokens.

    Args:
        config: of the run.
        drawn: its instances.
        budget_tokens: predicted tokens.
    """
    per_step = config.batch_size * config.gradient_accumulation_steps
    steps = tokens = 0
    while tokens < budget_tokens:
        for number in range(steps * per_step, (steps + 1) * per_step):
            tokens += drawn.shape(number).num_predicted(config.one_stream)
        steps += 1
    return steps


def with_budget(config: TrainConfig, steps: int, folder: Path) -> TrainConfig:
    """The configuration of a run of so many steps; its rate falls over the same share of them."""
    return dataclasses.replace(
        config,
        output_dir=str(folder),
        max_steps=steps,
        decay_steps=round(config.decay_steps * steps / config.max_steps),
        warmup_steps=min(config.warmup_steps, steps // _WARMUP_SHARE),
    )
