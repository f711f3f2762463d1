"""Samples -> records: medians, paired comparison with raw reading, intervals, bounds.

A comparison is paired: both readings were timed one after the other in every round, the ratio is
taken round by round, and its median is resampled over rounds. Pure functions of numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cost_settings import OFFLINE, ONLINE, CostSetting, raw_of
from .flops import Shape, layer_bound, read_flops
from .records import CostRecord
from .scoring import RESAMPLES

_INTERVAL = (2.5, 97.5)
Numbers = NDArray[np.float64]


@dataclass(kw_only=True)
class Measured:
    """What was measured of a setting."""

    rounds: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    """Fields of a `Sample` by the number of the round; none of a round that failed."""
    load_s: float | None = None
    peak_bytes: int | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def samples(self) -> list[Mapping[str, Any]]:
        """Of all rounds, in order."""
        return list(self.rounds.values())

    def ttft(self, rounds: Iterable[int] | None = None) -> Numbers:
        """Time to first token in every round, or in these."""
        chosen = [self.rounds[number] for number in (self.rounds if rounds is None else rounds)]
        return np.array([sample["make_s"] + sample["read_s"] for sample in chosen])

    def median(self, name: str) -> float | None:
        """Of a number that every round has."""
        return _median(np.array([sample[name] for sample in self.samples], dtype=float))

    def first(self, name: str) -> Any:
        """A number that is the same in all rounds."""
        return self.samples[0][name] if self.samples else None


@dataclass(frozen=True, kw_only=True)
class Models:
    """What the bounds depend on beside the setting."""

    shape: Shape
    num_embedder_layers: int
    num_head: int
    """Rows of the head."""


def score_cost(
    measured: Mapping[CostSetting, Measured],
    reported: Sequence[CostSetting],
    models: Models,
    new_tokens: int,
) -> list[CostRecord]:
    """One record for every setting."""
    return [
        _record(each, measured[each], measured.get(raw_of(each)), models, new_tokens)
        for each in reported
    ]


def _record(
    setting: CostSetting,
    measured: Measured,
    raw: Measured | None,
    models: Models,
    new_tokens: int,
) -> CostRecord:
    ttft = measured.ttft()
    median, (low, high) = _median(ttft), _interval(ttft)
    ratio = _paired(raw, measured)
    speedup, (slower, faster) = _median(ratio), _interval(ratio)
    flops, k_read, cache = (measured.first(name) for name in ("flops", "k", "cache_bytes"))
    raw_cache = raw.first("cache_bytes") if raw else None
    raw_flops = read_flops(models.shape, models.num_head + setting.context_tokens)
    return CostRecord(
        method=setting.method,
        mode=setting.mode,
        k=setting.k or k_read or 0,
        k_read=k_read,
        context_tokens=setting.context_tokens,
        window=setting.window,
        new_tokens=new_tokens,
        num_repeats=len(ttft),
        rows=measured.first("num_rows"),
        ttft_s=median,
        ttft_low=low,
        ttft_high=high,
        make_s=measured.median("make_s"),
        read_s=measured.median("read_s"),
        load_s=measured.load_s,
        context_tokens_per_s=setting.context_tokens / median if median else None,
        new_tokens_per_s=measured.median("new_tokens_per_s"),
        speedup=speedup,
        speedup_low=slower,
        speedup_high=faster,
        flops=flops,
        flop_bound=raw_flops / flops if flops else None,
        layer_bound=_layer_bound(setting, models),
        cache_bytes=cache,
        cache_saving=raw_cache / cache if raw_cache and cache else None,
        peak_bytes=measured.peak_bytes,
        ttft_samples_s=ttft.tolist(),
        note="; ".join(dict.fromkeys(measured.notes)),
    )


def _layer_bound(setting: CostSetting, models: Models) -> float | None:
    """Where all of the context is rows at one k; None elsewhere."""
    whole = setting.method == "extensible" and setting.window is None and setting.k > 0
    if not whole or setting.mode not in (ONLINE, OFFLINE):
        return None
    layers = models.num_embedder_layers, models.shape.num_layers
    return layer_bound(*layers, setting.k, setting.mode == ONLINE)


def _paired(raw: Measured | None, measured: Measured) -> Numbers:
    """Raw reading's time over this one's, in every round that has both."""
    if raw is None:
        return np.empty(0)
    shared = [number for number in raw.rounds if number in measured.rounds]
    return np.asarray(raw.ttft(shared) / measured.ttft(shared))


def _median(values: Numbers) -> float | None:
    return float(np.median(values)) if len(values) and np.isfinite(values).all() else None


def _interval(values: Numbers) -> tuple[float | None, float | None]:
    """Of the median, by resampling rounds; none of fewer than two."""
    if len(values) < 2:
        return None, None
    picks = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(np.median(values[picks], axis=1), _INTERVAL)
    return float(low), float(high)
