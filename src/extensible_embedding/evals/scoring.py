"""Losses of targets -> records: means, bootstrap intervals, recovery, paired comparison.

    recovery = (loss none - loss of the method) / (loss none - loss raw)

on mean losses of the same targets: 1 is as good as raw text at 1/k of its rows, 0 is useless, a
negative number is harmful, and there is none where raw text itself does not help.

    versus truncate = perplexity of the method / perplexity of truncate - 1

at the same context and window; below 0 is better.

    kept = recovery with one reader / recovery with another

on the same targets. Every interval resamples targets, the same ones for both sides of a comparison.
Pure functions of numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .records import MEAN, LmRecord

RESAMPLES = 1000
_LEAST_DEFINED = 0.95
"""Share of resamples in which raw context must help for recovery to have an interval."""


@dataclass(frozen=True)
class Setting:
    """One way to read what stands before a target."""

    method: str
    k: int
    """Tokens per row; 1 for raw methods, 0 for none, and 0 for a k that the method chooses."""
    context_tokens: int
    window: int | None = None
    """Rows in all, the target's among them; None: the reader's own (the recovery protocol)."""


NONE = Setting("none", 0, 0)
Losses = dict[Setting, NDArray[np.float64]]
"""For every setting, the loss of each target (T,), or resampled means (resamples,)."""
Bounded = tuple[float | None, float | None, float | None]
"""A figure and its interval."""
Figure = Callable[[Losses, Setting], NDArray[np.float64]]


def raw_of(setting: Setting) -> Setting:
    """The raw reading that recovery compares with."""
    return Setting("raw", 1, setting.context_tokens)


def truncate_of(setting: Setting) -> Setting:
    """The reading of the most recent tokens that an equal-window comparison is with."""
    return Setting("truncate", 1, setting.context_tokens, setting.window)


def score(
    losses: Mapping[str, Losses],
    reported: Sequence[Setting],
    seed: int,
    *,
    used_k: Mapping[Setting, int] | None = None,
    notes: Mapping[Setting, str] | None = None,
) -> list[LmRecord]:
    """Records of every domain and of their mean.

    Args:
        losses: by domain, the loss of each target for every setting that could run.
        reported: settings that get a record, also those that could not run.
        seed: of the resamples.
        used_k: the k that a method chose, where it did.
        notes: why a setting could not run.
    """
    used_k, notes = used_k or {}, notes or {}
    means, samples = _resample(losses, seed)
    per_domain = list(losses.values())
    return [
        _record(
            domain,
            setting,
            [means[member] for member in members],
            [samples[member] for member in members],
            [per_domain[member].get(setting) for member in members],
            k=used_k.get(setting, setting.k),
            note=notes.get(setting, ""),
        )
        for domain, members in _groups(losses)
        for setting in reported
    ]


def kept_share(
    own: Mapping[str, Losses], found: Mapping[str, Losses], setting: Setting, seed: int
) -> dict[str, Bounded]:
    """Recovery of `found` as a share of that of `own`, with its interval, by domain and for all.

    Of several domains the mean recoveries are compared. There is no share of a recovery of 0 or
    less.

    Args:
        own: losses of the same targets with the other reader, by domain.
        found: losses by domain, the domains and targets in the same order.
        setting: how the rows were read.
        seed: of the resamples, which are the same for both.
    """
    mine, theirs = _resample(own, seed), _resample(found, seed)
    shares: dict[str, Bounded] = {}
    for domain, members in _groups(own):
        value, sample = (
            _share(
                [one[member] for member in members], [other[member] for member in members], setting
            )
            for one, other in zip(mine, theirs, strict=True)
        )
        shares[domain] = (_finite(value[0]), *_percentiles(sample))
    return shares


def compare_recovery(
    losses: Mapping[str, Losses], setting: Setting, reference: Setting, seed: int
) -> Bounded:
    """Recovery of a setting minus a reference's on the same targets, with its interval.

    Args:
        losses: by domain, of both settings, of none and of raw; domains are averaged.
        setting: what is compared.
        reference: what it is compared with.
        seed: of the resamples.
    """
    means, samples = _resample(losses, seed)
    value, bounds = _with_bounds(
        lambda each, of: np.asarray(_recovery(each, of) - _recovery(each, reference)),
        means,
        samples,
        setting,
    )
    return value, *bounds


def _share(own: Sequence[Losses], found: Sequence[Losses], setting: Setting) -> NDArray[np.float64]:
    mine, theirs = (_mean([_recovery(each, setting) for each in side]) for side in (own, found))
    return np.asarray(theirs / np.where(mine > 0, mine, np.nan))


def _resample(losses: Mapping[str, Losses], seed: int) -> tuple[list[Losses], list[Losses]]:
    """Means (1,) and resampled means (resamples,) of every domain; none of a single target."""
    means: list[Losses] = []
    samples: list[Losses] = []
    for number, each in enumerate(losses.values()):
        size = len(next(iter(each.values()), []))
        if not size:  # nothing could run
            means.append({})
            samples.append({})
            continue
        picks = np.random.default_rng((seed, number)).integers(size, size=(RESAMPLES, size))
        means.append({setting: loss.mean(keepdims=True) for setting, loss in each.items()})
        unknown = np.nan if size < 2 else 0.0  # one target says nothing of others
        samples.append({setting: loss[picks].mean(1) + unknown for setting, loss in each.items()})
    return means, samples


def _groups(losses: Mapping[str, Losses]) -> list[tuple[str, list[int]]]:
    """Names and members of what is reported: every domain, and all of several."""
    groups = [(domain, [number]) for number, domain in enumerate(losses)]
    return groups if len(losses) == 1 else [*groups, (MEAN, list(range(len(losses))))]


def _record(
    domain: str,
    setting: Setting,
    means: Sequence[Losses],
    samples: Sequence[Losses],
    each: Sequence[NDArray[np.float64] | None],
    *,
    k: int,
    note: str,
) -> LmRecord:
    """One record from the means and resampled means of one or more domains."""
    found = [losses for losses in each if losses is not None]
    targets = np.concatenate(found).tolist() if len(found) == len(each) else []
    missing = np.full(1, np.nan)
    loss = _mean([mean.get(setting, missing) for mean in means])[0]
    recovery, bounds = _with_bounds(_recovery, means, samples, setting)
    versus, versus_bounds = _with_bounds(_versus_truncate, means, samples, setting)
    low, high = _percentiles(_mean([sample.get(setting, missing) for sample in samples]))
    return LmRecord(
        domain=domain,
        method=setting.method,
        k=k,
        context_tokens=setting.context_tokens,
        window=setting.window,
        num_targets=len(targets),
        loss_nats=_finite(loss),
        loss_low=low,
        loss_high=high,
        perplexity=_finite(np.exp(loss)),
        recovery=recovery,
        recovery_low=bounds[0],
        recovery_high=bounds[1],
        versus_truncate=versus,
        versus_low=versus_bounds[0],
        versus_high=versus_bounds[1],
        target_loss_nats=targets,
        note=note,
    )


def _with_bounds(
    figure: Figure, means: Sequence[Losses], samples: Sequence[Losses], setting: Setting
) -> tuple[float | None, tuple[float | None, float | None]]:
    """A figure, averaged over domains, and its interval."""
    value = _mean([figure(mean, setting) for mean in means])[0]
    return _finite(value), _percentiles(_mean([figure(sample, setting) for sample in samples]))


def _recovery(losses: Losses, setting: Setting) -> NDArray[np.float64]:
    none, raw, found = (losses.get(s) for s in (NONE, raw_of(setting), setting))
    if setting == NONE and none is not None:
        return np.zeros_like(none)
    if none is None or raw is None or found is None or setting.window is not None:
        return np.full(1, np.nan)
    gain = none - raw
    return np.asarray((none - found) / np.where(gain > 0, gain, np.nan))


def _versus_truncate(losses: Losses, setting: Setting) -> NDArray[np.float64]:
    reference, found = losses.get(truncate_of(setting)), losses.get(setting)
    if setting.window is None or reference is None or found is None:
        return np.full(1, np.nan)
    return np.asarray(np.exp(found - reference) - 1)


def _mean(parts: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Average over domains; not a number where a domain has none."""
    return np.asarray(np.mean(np.broadcast_arrays(*parts), axis=0))


def _percentiles(values: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """95 percent interval; none where too many resamples have no value."""
    defined = values[np.isfinite(values)]
    if len(defined) < max(2, _LEAST_DEFINED * len(values)):
        return None, None
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
