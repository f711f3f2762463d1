"""Whether an embedder serves a reader that it was not trained with.

In: an embedder with its own reader, and a reader to check. Out: recovery on both over the same
targets, and a verdict by this rule:

    incompatible    the rows do not fit: other sizes, another tokenizer or other layers
    keep            at every scale factor asked, the mean recovery on this reader is at least
                    KEEP_SHARE of that on the embedder's own
    re-train        it runs, but below that

It measures with `lm`, scores with `scoring` and changes no weight.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint import check_reader, describe_reader, load_weights, own_weights
from ..embedder import ExtensibleEmbedder
from ..errors import CheckpointError, InputError, MismatchError
from ..reader import Reader
from .kinship import OWN, Kinship, compare_readers, reader_digest
from .lm import Progress, Yardstick, evaluate_lm
from .records import MEAN, LmRecord
from .scoring import Bounded, Losses, Setting, kept_share
from .targets import data_identity

KEEP, RETRAIN, INCOMPATIBLE = "keep", "re-train", "incompatible"
KEEP_SHARE = 0.9
"""Of the recovery on the embedder's own reader, what another must reach."""

ROWS = "extensible"
METHODS = ("none", "raw", ROWS)


@dataclass(frozen=True, kw_only=True)
class KeptRecovery:
    """Recovery on both readers in one domain at one scale factor; intervals are 95 percent."""

    domain: str
    k: int
    num_targets: int
    own_recovery: float | None
    own_low: float | None
    own_high: float | None
    recovery: float | None
    low: float | None
    high: float | None
    share: float | None
    """recovery / own_recovery; None where there is none, or nothing to keep."""
    share_low: float | None
    share_high: float | None


@dataclass(frozen=True, kw_only=True)
class Compatibility:
    """A verdict and what it rests on."""

    reader: str
    own_reader: str
    embedder_fingerprint: str
    kinship: Kinship
    verdict: str
    """keep, re-train or incompatible."""
    certain: bool
    """Whether the intervals leave no other verdict."""
    reason: str
    kept: Sequence[KeptRecovery] = ()
    own_records: Sequence[LmRecord] = ()
    records: Sequence[LmRecord] = ()


@dataclass(frozen=True, kw_only=True)
class Plan(Yardstick):
    """What is measured on each reader, and where it is kept."""

    journals: Path | None = None
    """Folder that keeps every loss, a file for each reader and setting: a check that was stopped
    goes on, and another one with the same embedder does not measure its own reader again."""


def check_compatibility(
    embedder: ExtensibleEmbedder, reader: Reader, plan: Plan, *, progress: Progress | None = None
) -> Compatibility:
    """Measures what part of an embedder's recovery is kept on another reader.

    Args:
        embedder: with its own reader.
        reader: the one to check.
        plan: texts and amounts.
        progress: called after every target.

    Raises:
        InputError: a setting or a file is not usable, or there is no recovery to compare.
    """
    check_factors(plan.scale_factors)
    kinship = compare_readers(embedder.reader, reader)
    facts: dict[str, Any] = {
        "reader": reader.name,
        "own_reader": embedder.reader.name,
        "embedder_fingerprint": embedder.fingerprint,
        "kinship": kinship,
    }
    try:
        served = serve(embedder, reader, kinship)
    except MismatchError as error:
        return Compatibility(verdict=INCOMPATIBLE, certain=True, reason=str(error), **facts)
    own = _measure(embedder, plan, _part(progress, 0))
    found = own if kinship.relation == OWN else _measure(served, plan, _part(progress, 1))
    assert served.fingerprint == facts["embedder_fingerprint"]
    kept = compare_recovery(own, found, plan.seed)
    verdict, certain, reason = judge(kept)
    return Compatibility(
        verdict=verdict,
        certain=certain,
        reason=reason,
        kept=kept,
        own_records=own,
        records=found,
        **facts,
    )


def check_factors(scale_factors: Sequence[int]) -> None:
    """Raises InputError unless rows are asked for: raw text reads alike with any embedder."""
    if not scale_factors or min(scale_factors) < 2:
        found = min(scale_factors) if scale_factors else "none is given"
        raise InputError(
            f"A check is of rows, so k is 2 or more, but it is {found}; give for example 4,16."
        )


def serve(embedder: ExtensibleEmbedder, reader: Reader, kinship: Kinship) -> ExtensibleEmbedder:
    """The same embedder for another reader.

    Raises:
        MismatchError: its rows do not fit there.
    """
    check_reader(describe_reader(embedder.reader), reader, derivative=True, name="this embedder")
    if not kinship.same_tokenizer:
        raise MismatchError(
            f"An embedder serves readers with its own reader's tokenizer, but {reader.name!r} has "
            f"another than {embedder.reader.name!r}; train an embedder for it."
        )
    try:
        served = ExtensibleEmbedder(embedder.config, reader, copy_weights=False)
        load_weights(served, own_weights(embedder), reader.name)
    except (InputError, CheckpointError) as error:
        raise MismatchError(
            f"An embedder serves readers whose layers are shaped like its own, but those of "
            f"{reader.name!r} are not; train an embedder for it."
        ) from error
    return served.eval()


def compare_recovery(
    own: Sequence[LmRecord], found: Sequence[LmRecord], seed: int
) -> list[KeptRecovery]:
    """Recovery on both readers, by domain and scale factor, and the share that is kept.

    Args:
        own: records on the embedder's own reader.
        found: records on another one, of the same targets in the same order.
        seed: of the resamples, which are the same for both.
    """
    mine, theirs = _losses(own), _losses(found)
    return [
        _kept(one, other, kept_share(mine, theirs, _setting(one), seed)[one.domain])
        for one, other in zip(own, found, strict=True)
        if one.method == ROWS
    ]


def _kept(own: LmRecord, found: LmRecord, share: Bounded) -> KeptRecovery:
    return KeptRecovery(
        domain=own.domain,
        k=own.k,
        num_targets=own.num_targets,
        own_recovery=own.recovery,
        own_low=own.recovery_low,
        own_high=own.recovery_high,
        recovery=found.recovery,
        low=found.recovery_low,
        high=found.recovery_high,
        share=share[0],
        share_low=share[1],
        share_high=share[2],
    )


def judge(kept: Sequence[KeptRecovery]) -> tuple[str, bool, str]:
    """Verdict, whether the intervals leave no other, and the reason in a sentence.

    Raises:
        InputError: there is no recovery to compare.
    """
    deciding = [each for each in kept if each.domain == kept[-1].domain]  # the mean, if several
    for each in deciding:
        if each.share is None:
            raise InputError(
                f"What is kept is a share of a recovery above 0, but at k={each.k} recovery is "
                f"{_shown(each.own_recovery)} on the embedder's own reader and "
                f"{_shown(each.recovery)} on this one; give more targets, more context or texts "
                "where context helps."
            )
    worst = min(deciding, key=lambda each: each.share or 0.0)
    keep = (worst.share or 0.0) >= KEEP_SHARE
    if keep:
        certain = all((each.share_low or 0.0) >= KEEP_SHARE for each in deciding)
    else:
        certain = any(_below(each.share_high) for each in deciding)
    doubt = "" if certain else "; the interval allows the other verdict, more targets would tell"
    reason = (
        f"at k={worst.k} the recovery on this reader is {_shown(worst.share)} of that on the "
        f"embedder's own, and to keep the embedder it must be {KEEP_SHARE} at every k{doubt}"
    )
    return KEEP if keep else RETRAIN, certain, reason


def _below(high: float | None) -> bool:
    return high is not None and high < KEEP_SHARE


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"


def _losses(records: Sequence[LmRecord]) -> dict[str, Losses]:
    """What was measured, by domain, as `scoring` takes it."""
    domains: dict[str, Losses] = {}
    for record in records:
        if record.domain != MEAN:
            losses = domains.setdefault(record.domain, {})
            losses[_setting(record)] = np.array(record.target_loss_nats)
    return domains


def _setting(record: LmRecord) -> Setting:
    return Setting(record.method, record.k, record.context_tokens, record.window)


def _measure(embedder: ExtensibleEmbedder, plan: Plan, progress: Progress | None) -> list[LmRecord]:
    return evaluate_lm(
        embedder,
        plan.data,
        methods=METHODS,
        scale_factors=plan.scale_factors,
        context_tokens=[plan.context_tokens],
        target_tokens=plan.target_tokens,
        num_targets=plan.num_targets,
        seed=plan.seed,
        journal=plan.journals and plan.journals / _journal_name(embedder, plan),
        progress=progress,
    )


def _journal_name(embedder: ExtensibleEmbedder, plan: Plan) -> str:
    """Tells apart whatever losses depend on, all weights of the reader among it."""
    reader = embedder.reader
    models = embedder.fingerprint, reader_digest(reader), str(reader.dtype), reader.window
    asked = repr((*models, data_identity(plan.data), plan.context_tokens, plan.seed))
    return f"check-{hashlib.sha256(asked.encode()).hexdigest()[:12]}.journal"


def _part(progress: Progress | None, number: int) -> Progress | None:
    """Progress of one of two measurements, as a half of both."""
    if progress is None:
        return None
    return lambda done, total: progress(number * total + done, 2 * total)
