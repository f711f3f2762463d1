"""`extensible check`: whether an embedder serves a reader; a table, a verdict, an exit code."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError
from .console import load_embedder, load_reader, plain_table, progress_bar, quiet_libraries, stdout
from .measuring import (
    ContextTokensOption,
    DataOption,
    MoreFiles,
    NumTargetsOption,
    RecordsOption,
    SeedOption,
    TargetTokensOption,
    check_data,
    interval,
    parse_scale_factors,
)
from .options import BUILT_IN, RELEASED, Models, check_writable, with_models

if TYPE_CHECKING:
    from ..evals.compatibility import Compatibility
    from ..evals.kinship import Kinship
    from ..reader import Reader

EXIT_CODES = {"keep": 0, "re-train": 8, "incompatible": 5}


@partial(with_models, leave_out=("reader", "derivative"))
def check(
    reader: Annotated[
        str,
        typer.Argument(
            metavar="READER",
            help="The reader to check: a hub id, a folder of transformers or of an adapter, or a "
            ".gguf file. It stands before --data.",
        ),
    ],
    data: DataOption,
    more: MoreFiles = None,
    own: Annotated[
        str | None,
        typer.Option(
            "--own",
            metavar="READER",
            help="The reader that the embedder was trained with; by default the one that the "
            "embedder names.",
        ),
    ] = None,
    k: Annotated[
        str, typer.Option("--k", metavar="N,...", help="Scale factors of the rows.")
    ] = "4,16",
    context_tokens: ContextTokensOption = 1024,
    target_tokens: TargetTokensOption = 256,
    num_targets: NumTargetsOption = 16,
    seed: SeedOption = 0,
    out: RecordsOption = None,
    *,
    models: Models,
) -> None:
    """Tell whether an embedder serves a reader that it was not trained with.

    Says what READER is to the embedder's own reader, measures recovery on both over the same
    targets, and gives a verdict. keep (exit code 0): at every scale factor, mean recovery is at
    least 0.9 of that on its own reader. re-train (8): it runs, but below that. incompatible (5):
    the rows do not fit. With --json FILE every loss is kept beside it as it is measured: the same
    command goes on after a stop, and the next check does not measure the own reader again.
    """
    asked = Check(
        reader=reader,
        own=own,
        data=[*data, *(more or [])],
        scale_factors=parse_scale_factors(k, may_choose=False),
        context_tokens=context_tokens,
        target_tokens=target_tokens,
        num_targets=num_targets,
        seed=seed,
        out=out,
    )
    asked.check()
    raise typer.Exit(_check(asked, models))


@dataclass(frozen=True, kw_only=True)
class Check:
    """What is to be checked, and the file of the result."""

    reader: str
    own: str | None
    data: list[Path]
    scale_factors: list[int]
    context_tokens: int
    target_tokens: int
    num_targets: int
    seed: int
    out: Path | None

    def check(self) -> None:
        """Raises InputError or StorageError before a model is loaded for nothing."""
        if self.reader.endswith(".parquet"):
            raise InputError(
                f"READER stands before --data and its files, but the first name is "
                f"{self.reader!r}; give `extensible check READER --data FILE...`."
            )
        check_data(self.data)
        if not self.scale_factors or min(self.scale_factors) < 2:
            raise InputError("--k needs scale factors of rows, each 2 or more; give 4,16.")
        if self.out is not None:
            check_writable("--json", self.out)


@quiet_libraries()
def _check(asked: Check, models: Models) -> int:
    from ..evals.compatibility import Plan, check_compatibility
    from ..evals.records import write_records

    name = asked.own or _trained_for(models.embedder)
    own = _own_reader(name, asked, models)
    embedder = load_embedder(models, own)
    reader = own if asked.reader == name else load_reader(asked.reader, models)
    plan = Plan(
        data=asked.data,
        scale_factors=asked.scale_factors,
        context_tokens=asked.context_tokens,
        target_tokens=asked.target_tokens,
        num_targets=asked.num_targets,
        seed=asked.seed,
        journals=asked.out and asked.out.parent,
    )
    with progress_bar("Checking", "targets") as progress:
        found = check_compatibility(embedder, reader, plan, progress=progress)
    if asked.out is not None:
        configuration = {
            "embedder": models.embedder,
            "data": [file.name for file in asked.data],
            "scale_factors": asked.scale_factors,
            "context_tokens": asked.context_tokens,
            "target_tokens": asked.target_tokens,
            "num_targets": asked.num_targets,
            "seed": asked.seed,
        }
        write_records([found], asked.out, configuration=configuration)
    _show(found)
    return EXIT_CODES[found.verdict]


def _trained_for(embedder: str) -> str:
    from ..checkpoint import trained_for
    from ..released import RELEASED_FOLDER, has_released_embedder

    if embedder == RELEASED and not has_released_embedder():
        return BUILT_IN  # the embedder is asked for next, and then missed
    return trained_for(RELEASED_FOLDER if embedder == RELEASED else embedder)


def _own_reader(name: str, asked: Check, models: Models) -> Reader:
    """The reader that the embedder was trained with.

    Raises:
        InputError: it cannot be loaded by that name.
    """
    try:
        return load_reader(name, models)
    except InputError as error:
        if asked.own is not None:
            raise
        raise InputError(
            f"The embedder {models.embedder!r} is compared with the reader that it was trained "
            f"with, {name!r}, but that cannot be loaded ({str(error).split(' (')[0]}); name it "
            "with --own."
        ) from error


def _show(found: Compatibility) -> None:
    console = stdout()
    console.print(f"{found.reader} is {_relation(found.kinship, found.own_reader)}.", markup=False)
    if found.kept:
        table = plain_table(["domain"], ["k", "n", "own reader", "this reader", "kept"])
        for each in found.kept:
            table.add_row(
                each.domain,
                str(each.k),
                str(each.num_targets),
                interval(each.own_recovery, each.own_low, each.own_high),
                interval(each.recovery, each.low, each.high),
                interval(each.share, each.share_low, each.share_high),
            )
        console.print(table)
    console.print(f"{found.verdict}: {found.reason}", markup=False)


def _relation(kinship: Kinship, own: str) -> str:
    """What the reader is to the embedder's own, and by what one sees it."""
    kind = {
        "own": f"the embedder's own reader {own}",
        "derivative": f"a derivative of the embedder's own reader {own}",
        "another": f"another reader than the embedder's own {own}",
    }[kinship.relation]
    same = [
        f"{'the same' if alike else 'other'} {what}"
        for what, alike in (
            ("sizes", kinship.same_sizes),
            ("tokenizer", kinship.same_tokenizer),
            ("weights", kinship.same_weights),
        )
    ]
    if not kinship.same_settings:
        same.append("other settings")
    if kinship.embedding_cosine is not None:
        same.append(f"token embeddings at a cosine of {kinship.embedding_cosine:.3f}")
    return f"{kind} ({', '.join(same)})"
