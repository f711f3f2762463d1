"""Ablations: small trainings that differ in one thing, measured on the same targets.

In: a training configuration, variants of it, a budget of predicted tokens and evaluation texts.
Out: for each variant its recovery and, paired by target, its difference from the baseline. All
variants begin with the same seed and see the same data. Finished variants are kept, a training
goes on from its checkpoint and a measurement from its journal: a killed run goes on where it was.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback

from ..embedder import ExtensibleEmbedder
from ..errors import InputError
from ..evals.journal import Journal
from ..evals.lm import Progress, Yardstick, evaluate_lm
from ..evals.records import MEAN, LmRecord
from ..evals.scoring import Bounded, Losses, Setting, compare_recovery
from ..evals.targets import data_identity
from ..reader import Reader
from ..train.config import TrainConfig, check_files
from ..train.trainer import build, instances, train
from .table import AblationRecord
from .variants import (
    BASELINE,
    VARIANTS,
    VERSION,
    Ablation,
    baseline_config,
    check_variant,
    run_name,
    steps_for,
    variant_config,
    with_budget,
)

JOURNAL = "ablations.journal"
_NOT_SHAPING = (
    "output_dir",
    "cache_dir",
    "compile",
    "save_steps",
    "save_total_limit",
    "logging_steps",
    "eval_data",
    "eval_steps",
    "eval_instances",
)


class Unwatched(TrainerCallback):
    """Sees a training and shows nothing."""

    def tokenised(self, name: str, documents: int) -> None:
        """Called while a file is tokenised."""


Watch = Callable[[str], AbstractContextManager[Any]]
"""Given a variant's name; shows one training (as `Unwatched` does) or one measurement."""


@contextmanager
def unwatched(name: str) -> Iterator[Unwatched]:
    """Shows nothing of a training."""
    yield Unwatched()


@contextmanager
def unmeasured(name: str) -> Iterator[None]:
    """Shows nothing of a measurement."""
    yield None


def run_ablations(
    base: TrainConfig,
    out: Path,
    yardstick: Yardstick,
    *,
    variants: Sequence[Ablation] = VARIANTS,
    budget_tokens: int = 200_000,
    reader: Reader | None = None,
    training: Watch = unwatched,
    measuring: Watch = unmeasured,
    finished: Callable[[list[AblationRecord]], None] | None = None,
) -> list[AblationRecord]:
    """Trains and measures the baseline and every variant.

    Args:
        base: the baseline; `max_steps` says only over which share of a run its rate falls.
        out: folder of all runs; an earlier, stopped call on it is gone on with.
        yardstick: what is measured.
        variants: what is changed.
        budget_tokens: predicted tokens of each training.
        reader: loaded already; by default the one that the configuration names.
        training: shows a training.
        measuring: shows a measurement; yields what `evaluate_lm` takes as `progress`.
        finished: called with all records so far after every run.

    Returns:
        Records of the baseline, then of every variant that is finished in the folder, in an earlier
        call too; beside each stands the baseline's choice of its group.

    Raises:
        ExtensibleError: a configuration, data, a variant or the disk is not usable.
    """
    base = baseline_config(base)
    check_files(base)
    for file in yardstick.data:
        if not Path(file).is_file():
            raise InputError(f"Evaluation data are files, but {str(file)!r} is none; check it.")
    reader = reader or Reader.from_pretrained(base.reader)
    runs = {BASELINE: Ablation(name=BASELINE, group="")}
    runs |= {run_name(base, each): each for each in variants if run_name(base, each) != BASELINE}
    for name, each in runs.items():
        check_variant(name, variant_config(base, each), reader, yardstick.scale_factors)
    journal = Journal(out / JOURNAL, _belongs_to(base, reader, yardstick, budget_tokens))
    bench = _Bench(base, out, yardstick, reader, journal, budget_tokens)
    bench.try_out()
    for each in runs.values():
        bench.run(each, training, measuring)
        if finished is not None:
            finished(bench.records(variants))
    return bench.records(variants)


def _belongs_to(
    base: TrainConfig, reader: Reader, yardstick: Yardstick, budget_tokens: int
) -> dict[str, object]:
    """What every figure depends on, by the names of the settings."""
    settings = dataclasses.asdict(base)
    measured = dataclasses.asdict(yardstick)
    measured["data"] = data_identity(yardstick.data)
    return {
        **{name: value for name, value in settings.items() if name not in _NOT_SHAPING},
        "reader": reader.fingerprint,
        "budget_tokens": budget_tokens,
        "version of the variants": VERSION,
        **{f"evaluation {name}": value for name, value in measured.items()},
    }


@dataclass
class _Bench:
    """Runs variants one by one and keeps their figures in the journal."""

    base: TrainConfig
    out: Path
    yardstick: Yardstick
    reader: Reader
    journal: Journal
    budget_tokens: int

    def try_out(self) -> None:
        """Measures one target of each domain: what cannot be measured is told before training."""
        if (BASELINE, "measured") not in self.journal:
            one = dataclasses.replace(self.yardstick, num_targets=1)
            measure(build(self.base, self.reader), one)

    def run(self, variant: Ablation, training: Watch, measuring: Watch) -> None:
        """Whatever of a variant is not done yet."""
        trained, measured = (variant.name, "trained"), (variant.name, "measured")
        folder = self.out / variant.name
        if trained not in self.journal:
            with training(variant.name) as watch:
                self.journal.put(trained, self._train(variant, watch))
        _remove_checkpoints(folder)  # only now is it certain that none is needed
        if measured not in self.journal:
            with measuring(variant.name) as progress:
                embedder = ExtensibleEmbedder.from_pretrained(folder / "embedder", self.reader)
                records = measure(embedder, self.yardstick, folder / "lm.journal", progress)
            self.journal.put(measured, [dataclasses.asdict(record) for record in records])

    def _train(self, variant: Ablation, watch: Any) -> dict[str, float | int | None]:
        """Trains a variant, from its checkpoint if there is one; what the training was."""
        config = variant_config(self.base, variant)
        counted = self.base if variant.same_steps else config
        drawn = instances(counted, self.reader, report=watch.tokenised)
        steps = steps_for(counted, drawn, self.budget_tokens)
        speed = _Speed()
        folder = train(
            with_budget(config, steps, self.out / variant.name),
            reader=self.reader,
            callbacks=[speed, watch],
            report=watch.tokenised,
        )
        record = ExtensibleEmbedder.from_pretrained(folder, self.reader).training_record
        kept = {name: int(str(record[name])) for name in ("tokens", "steps")}
        return {**kept, "tokens_per_s": speed.tokens_per_s}

    def records(self, variants: Sequence[Ablation]) -> list[AblationRecord]:
        """Of the baseline and of every group that is asked for or begun; nothing is run."""
        known = {each.name: each for each in (*VARIANTS, *variants)}.values()
        asked = {each.group for each in variants}
        begun = {each.group for each in known if (each.name, "measured") in self.journal}
        return [
            record
            for each in (Ablation(name=BASELINE, group=""), *known)
            if each.group in ("", *asked, *begun)
            and (run_name(self.base, each), "measured") in self.journal
            for record in self._variant_records(each)
        ]

    def _variant_records(self, variant: Ablation) -> list[AblationRecord]:
        name = run_name(self.base, variant)
        found, before = self._measured(name), self._measured(BASELINE)
        trained = self.journal[name, "trained"]
        return [
            _record(variant, each, compared(found, before, each, self.yardstick.seed), trained)
            for each in found
            if each.method == "extensible"
        ]

    def _measured(self, name: str) -> list[LmRecord]:
        return [LmRecord(**row) for row in self.journal[name, "measured"]]


def measure(
    embedder: ExtensibleEmbedder,
    yardstick: Yardstick,
    journal: Path | None = None,
    progress: Progress | None = None,
) -> list[LmRecord]:
    """Losses without context, after raw context and after rows."""
    return evaluate_lm(
        embedder,
        yardstick.data,
        methods=("none", "raw", "extensible"),
        scale_factors=yardstick.scale_factors,
        context_tokens=[yardstick.context_tokens],
        target_tokens=yardstick.target_tokens,
        num_targets=yardstick.num_targets,
        seed=yardstick.seed,
        journal=journal,
        progress=progress,
    )


def compared(
    found: Sequence[LmRecord], before: Sequence[LmRecord], record: LmRecord, seed: int
) -> Bounded:
    """Recovery of a record minus the baseline's, paired by target.

    Args:
        found: of the variant, all domains and methods.
        before: of the baseline.
        record: one of `found`.
        seed: of the resamples.
    """
    losses: dict[str, Losses] = {}
    for records, rename in ((before, {"extensible": BASELINE}), (found, {})):
        for each in records:
            if each.domain != MEAN and record.domain in (MEAN, each.domain):
                method = rename.get(each.method, each.method)
                setting = Setting(method, each.k, each.context_tokens)
                losses.setdefault(each.domain, {})[setting] = np.array(each.target_loss_nats)
    mine = Setting(record.method, record.k, record.context_tokens)
    return compare_recovery(losses, mine, dataclasses.replace(mine, method=BASELINE), seed)


def _record(
    variant: Ablation, found: LmRecord, versus: Bounded, trained: Mapping[str, Any]
) -> AblationRecord:
    return AblationRecord(
        group=variant.group,
        variant=variant.name,
        overrides=dict(variant.overrides),
        domain=found.domain,
        k=found.k,
        context_tokens=found.context_tokens,
        num_targets=found.num_targets,
        training_tokens=trained["tokens"],
        training_steps=trained["steps"],
        tokens_per_s=trained["tokens_per_s"],
        loss_nats=found.loss_nats,
        recovery=found.recovery,
        recovery_low=found.recovery_low,
        recovery_high=found.recovery_high,
        versus_baseline=versus[0],
        versus_low=versus[1],
        versus_high=versus[2],
    )


class _Speed(TrainerCallback):
    """Keeps the rate of a training's last log line."""

    tokens_per_s: float | None = None

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.tokens_per_s = (logs or {}).get("tokens_per_s", self.tokens_per_s)


def _remove_checkpoints(folder: Path) -> None:
    """They are three times as large as the embedder, and a finished run needs none."""
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path, ignore_errors=True)
