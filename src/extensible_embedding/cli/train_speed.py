"""`extensible bench train`: the speed of training, beside the machine's own rate."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ..errors import InputError
from .console import load_embedder, load_reader, plain_table, progress_bar, quiet_libraries, stdout
from .measuring import RecordsOption, parts
from .options import Models, at_least, check_writable, with_models

if TYPE_CHECKING:
    from ..bench.train_speed import InstanceShape, TrainSpeedRecord

_SHAPE = re.compile(r"(\d{1,6})x(\d{1,6})x(\d{1,6})")


@with_models
def train_speed(
    shapes: Annotated[
        str,
        typer.Option(
            "--shapes",
            metavar="NxLxK,...",
            help="Instances: chunks, tokens of a chunk, tokens per row.",
        ),
    ] = "16x64x4,8x128x4,4x256x8",
    ways: Annotated[
        str,
        typer.Option(
            "--ways",
            metavar="NAME,...",
            help="How the loss is made: `two-stream` as training does, `dense` in one pass over a "
            "dense mask, `per-chunk` in a pass for each chunk.",
        ),
    ] = "two-stream,dense,per-chunk",
    batch_size: Annotated[
        int,
        typer.Option(
            "--batch-size",
            metavar="N",
            help="Instances of a step.",
            callback=at_least(1, "--batch-size"),
        ),
    ] = 2,
    rounds: Annotated[
        int,
        typer.Option(
            "--rounds",
            metavar="N",
            help="Rounds in which all is timed in turn.",
            callback=at_least(1, "--rounds"),
        ),
    ] = 3,
    compile_parts: Annotated[
        bool,
        typer.Option(
            "--compile/--no-compile", help="Compile norms and MLPs, as `compile: true` in training."
        ),
    ] = True,
    out: RecordsOption = None,
    *,
    models: Models,
) -> None:
    """Measure how fast training is, and how much of the machine that is.

    A step is one forward and backward pass of random tokens; nothing is learnt. Its operations,
    counted, over its time are set beside the rate of plain matrix products of the reader's width,
    measured in the same run.
    """
    asked = parse_shapes(shapes)
    if out is not None:
        check_writable("--json", out)
    settings = {
        "ways": parts(ways),
        "batch_size": batch_size,
        "num_rounds": rounds,
        "compile_parts": compile_parts,
    }
    _measure(asked, settings, models, out)


def parse_shapes(text: str) -> list[InstanceShape]:
    """Shapes of instances.

    Raises:
        InputError: one is not of the form NxLxK.
    """
    from ..bench.train_speed import InstanceShape

    found = [(part, _SHAPE.fullmatch(part)) for part in parts(text)]
    for part, match in found:
        if match is None:
            raise InputError(
                "--shapes are chunks, tokens of a chunk and tokens per row, as `8x128x4`, but one "
                f"is {part!r}; give such numbers."
            )
    return [InstanceShape(*map(int, match.groups())) for _, match in found if match]


@quiet_libraries()
def _measure(
    shapes: Sequence[InstanceShape], settings: dict[str, object], models: Models, out: Path | None
) -> None:
    from ..bench.train_speed import measure_train_speed
    from ..evals.records import write_records
    from ..train.speed import check_compiler

    embedder = load_embedder(models, load_reader(models.reader, models))
    if settings["compile_parts"]:
        check_compiler(embedder.reader.device)
    with progress_bar("Measuring", "steps") as progress:
        records = measure_train_speed(embedder, shapes=shapes, progress=progress, **settings)  # type: ignore[arg-type]
    if out is not None:
        configuration = {
            "shapes": [dataclasses.asdict(shape) for shape in shapes],
            "reader": embedder.reader.name,
            **settings,
        }
        write_records(records, out, configuration=configuration)
    stdout().print(_table(records))


def _table(records: Sequence[TrainSpeedRecord]) -> Table:
    numbers = ["tokens/s", "GFLOP/s", "products", "share", "to dense", "to per-chunk"]
    table = plain_table(["loss", "chunks, tokens, k"], numbers)
    for each in records:
        table.add_row(
            each.way,
            f"{each.num_chunks} x {each.chunk_tokens}, {each.k}",
            f"{each.predicted_tokens_per_s:,.0f}",
            f"{each.flops_per_s / 1e9:,.0f}",
            f"{each.matmul_flops_per_s / 1e9:,.0f}",
            f"{each.share:.2f}",
            _times(each.versus_dense),
            _times(each.versus_per_chunk),
        )
    return table


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
