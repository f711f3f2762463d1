"""`extensible bench ablations`: small equal trainings that differ in one thing, and one table."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import plain_table, progress_bar, quiet_libraries, stderr, stdout
from .measuring import (
    ContextTokensOption,
    DataOption,
    MoreFiles,
    NumTargetsOption,
    SeedOption,
    TargetTokensOption,
    parse_scale_factors,
    parts,
)
from .options import ConfigOption, at_least, check_writable

if TYPE_CHECKING:
    from ..bench.table import AblationRecord
    from ..bench.variants import Ablation
    from ..evals.lm import Yardstick
    from ..train.config import TrainConfig

RECORDS, TABLE = "ablations.json", "ablations.md"


def ablations(
    config: ConfigOption,
    data: DataOption,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder of all runs, records and table.")
    ],
    more: MoreFiles = None,
    variants: Annotated[
        str,
        typer.Option(
            "--variants",
            metavar="NAME,...|all",
            help="What is changed: `strided`, `mean`, `terminal`, `random` down-sampling; "
            "`layers-4`, `-8`, `-12`; `k-random`, `k-4`, `k-16` in training; `residual`, "
            "`plain`, `token-start`, `hidden-start`; `chunk-64`, `-128`, `-256`; `two-stream`, "
            "`one-stream`, `one-stream-same-steps`.",
        ),
    ] = "all",
    budget_tokens: Annotated[
        int,
        typer.Option(
            "--budget-tokens",
            metavar="N",
            help="Predicted tokens of each training.",
            callback=at_least(1, "--budget-tokens"),
        ),
    ] = 200_000,
    k: Annotated[
        str, typer.Option("--k", metavar="N,...", help="Scale factors that are measured.")
    ] = "4,16",
    context_tokens: ContextTokensOption = 1024,
    target_tokens: TargetTokensOption = 256,
    num_targets: NumTargetsOption = 8,
    seed: SeedOption = 0,
) -> None:
    """Train variants of a configuration on equal budgets and compare what they are worth.

    Every variant changes one thing of the configuration (the baseline), starts from the same seed,
    sees the same data and is measured on the same targets. DIR gets a folder for each run, the
    records (ablations.json, for `extensible eval report`) and one table (ablations.md), both new
    after every run. Stop it at any time: the same command goes on where it was.
    """
    from ..bench.variants import VARIANTS, choose
    from ..evals.lm import Yardstick
    from ..train.config import load_config

    chosen = VARIANTS if variants == "all" else choose(parts(variants))
    yardstick = Yardstick(
        data=[*data, *(more or [])],
        scale_factors=parse_scale_factors(k, may_choose=False),
        context_tokens=context_tokens,
        target_tokens=target_tokens,
        num_targets=num_targets,
        seed=seed,
    )
    base = load_config(config)
    check_writable("--out", out / RECORDS)
    _run(base, out, yardstick, chosen, budget_tokens)


@quiet_libraries()
def _run(
    base: TrainConfig,
    out: Path,
    yardstick: Yardstick,
    variants: Sequence[Ablation],
    budget_tokens: int,
) -> None:
    from ..bench.ablations import run_ablations
    from ..bench.table import table
    from .train import TrainingBar

    def write(records: Sequence[AblationRecord]) -> None:
        _write(records, base, out, yardstick, budget_tokens)

    # transformers prints its log lines to stdout, where only the table belongs.
    with redirect_stdout(io.StringIO()):
        records = run_ablations(
            base,
            out,
            yardstick,
            variants=variants,
            budget_tokens=budget_tokens,
            training=lambda name: TrainingBar(stderr(), name),
            measuring=lambda name: progress_bar(f"{name}: measuring", "targets"),
            finished=write,
        )
    names, rows = table(records)
    shown = plain_table(names[:2], names[2:])
    for row in rows:
        shown.add_row(*row)
    stdout().print(shown)


def _write(
    records: Sequence[AblationRecord],
    base: TrainConfig,
    out: Path,
    yardstick: Yardstick,
    budget_tokens: int,
) -> None:
    from ..bench.table import markdown
    from ..evals.records import write_records, write_text

    configuration = {
        **dataclasses.asdict(yardstick),
        "budget_tokens": budget_tokens,
        "baseline": dataclasses.asdict(base),
    }
    write_records(records, out / RECORDS, configuration=configuration)
    write_text(out / TABLE, markdown(records))
