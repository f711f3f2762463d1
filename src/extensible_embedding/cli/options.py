"""Options that several commands share, and how their values are read.

Imports no torch: unusable values are told at once.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from ..errors import InputError, StorageError
from .group import remember_json

AUTO = "auto"
RELEASED = "released"
BUILT_IN = "default"
_MAX_DIGITS = 9


class Dtype(str, Enum):
    """Types that weights are loaded in."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


def at_least(least: int, option: str) -> Callable[[int | None], int | None]:
    """Callback of an option whose value has a lower limit."""

    def check(value: int | None) -> int | None:
        if value is not None and value < least:
            raise InputError(
                f"{option} is a whole number of {least} or more, but it is {value}; give a larger "
                "one or leave it out."
            )
        return value

    return check


EmbedderOption = Annotated[
    str,
    typer.Option(
        "--embedder",
        metavar="EMBEDDER",
        help="The embedder that makes the rows: a folder, a hub id, or `released`, the one that "
        "ships with the package. It must have been trained for the reader.",
    ),
]
JsonOption = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print the result as JSON on stdout; an error too.",
        is_eager=True,
        callback=remember_json,
    ),
]
ReadingKOption = Annotated[
    str,
    typer.Option(
        "--k",
        metavar="N|auto",
        help="Scale factor: context tokens that one row stands for. 1 reads the raw text, `auto` "
        "takes the smallest at which all fits in the window.",
    ),
]
EachKOption = Annotated[
    str,
    typer.Option(
        "--k",
        metavar="N|auto|N,N,...",
        help="Scale factor: context tokens that one row stands for. 1 reads the raw text, `auto` "
        "takes the smallest at which all fits in the window. Several are one for each source, in "
        "order.",
    ),
]
MakingKOption = Annotated[
    str,
    typer.Option(
        "--k",
        metavar="N|auto",
        help="Scale factor: context tokens that one row stands for, 2 or more. `auto` takes the "
        "smallest at which the rows fit in the window beside a question and its answer.",
    ),
]
NewTokensOption = Annotated[
    int,
    typer.Option(
        "--max-new-tokens",
        metavar="N",
        help="Stop an answer after this many tokens.",
        callback=at_least(1, "--max-new-tokens"),
    ),
]
ConfigOption = Annotated[
    Path,
    typer.Option(
        "--config", metavar="FILE", help="YAML file with the settings, such as configs/*.yaml."
    ),
]


@dataclass(frozen=True, kw_only=True)
class Models:
    """The reader and the embedder that a command works with, and how to load them."""

    reader: Annotated[
        str,
        typer.Option(
            "--reader",
            metavar="READER",
            help="The frozen language model that answers: a hub id, a folder of transformers, a "
            ".gguf file, or `default`, the built-in SmolLM2-135M-Instruct.",
        ),
    ] = BUILT_IN
    embedder: EmbedderOption = RELEASED
    derivative: Annotated[
        bool,
        typer.Option(
            "--derivative",
            help="Accept a reader that is a fine-tune of the one that the embedder and the saved "
            "contexts were made for.",
        ),
    ] = False
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            metavar="DEVICE",
            help="Where the models run, such as `cpu` or `cuda:1`; by default the accelerator if "
            "there is one.",
        ),
    ] = None
    dtype: Annotated[
        Dtype | None,
        typer.Option(
            "--dtype",
            metavar="float32|bfloat16|float16",
            help="Type of the reader's weights; by default bfloat16 where the machine multiplies "
            "it fast, else float32.",
        ),
    ] = None
    window: Annotated[
        int | None,
        typer.Option(
            "--window",
            metavar="N",
            help="The most rows that the reader may hold; by default what its configuration says.",
            callback=at_least(2, "--window"),
        ),
    ] = None
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Run code that comes with the reader."),
    ] = False


def with_models(
    command: Callable[..., None], *, leave_out: Sequence[str] = ()
) -> Callable[..., None]:
    """Gives a command the options of `Models`, which it takes as one value named `models`.

    Args:
        command: with a parameter `models`.
        leave_out: fields of `Models` that the command has no option for.
    """
    own = inspect.signature(command, eval_str=True).parameters.values()
    hints = get_type_hints(Models, include_extras=True)
    options = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=hints[field.name],
        )
        for field in dataclasses.fields(Models)
        if field.name not in leave_out
    ]
    names = [option.name for option in options]

    @functools.wraps(command)
    def wrapped(**values: Any) -> None:
        models = Models(**{name: values.pop(name) for name in names})
        command(**values, models=models)

    parameters = [
        *(each.replace(kind=each.KEYWORD_ONLY) for each in own if each.name != "models"),
        *options,
    ]
    vars(wrapped)["__signature__"] = inspect.Signature(parameters)
    wrapped.__annotations__ = {each.name: each.annotation for each in parameters}
    return wrapped


def parse_k(text: str) -> int | str:
    """A scale factor or "auto".

    Raises:
        InputError: it is neither.
    """
    if text == AUTO:
        return AUTO
    if text.isdecimal() and len(text) <= _MAX_DIGITS and int(text) >= 1:
        return int(text)
    shown = text if len(text) <= 20 else f"{text[:20]}..."
    raise InputError(
        f"--k is a scale factor, a whole number of tokens per row from 1 to the length of a chunk, "
        f"or `auto`, but it is {shown!r}; give for example `--k 4`."
    )


def parse_each_k(text: str) -> int | str | tuple[int, ...]:
    """A scale factor, "auto", or one scale factor for each source.

    Raises:
        InputError: it is none of these.
    """
    parts = text.split(",")
    if len(parts) == 1:
        return parse_k(text)
    return tuple(parse_scale_factor(part.strip()) for part in parts)


def parse_rows_k(text: str) -> int | str:
    """A scale factor of 2 or more, or "auto".

    Raises:
        InputError: it is neither.
    """
    k = parse_k(text)
    if k == 1:
        raise InputError(
            "Rows stand for k tokens each, 2 or more, but --k is 1, which is the raw text; give "
            "the text itself to `extensible ask`, or compress it at `--k 2` or more."
        )
    return k


def parse_scale_factor(text: str) -> int:
    """A scale factor that may not be "auto".

    Raises:
        InputError: it is something else.
    """
    number = parse_k(text)
    if isinstance(number, str):
        raise InputError(
            f"Here --k is whole numbers with commas between, but it has {text!r}; give for example "
            "`--k 4,16`."
        )
    return number


def check_writable(option: str, place: Path, *, folder: bool = False) -> None:
    """Raises before hours of work unless a file or a folder can be made or replaced at a place.

    Args:
        option: that names it.
        place: of the file or folder.
        folder: whether it may be a folder; a file takes no folder's place.

    Raises:
        InputError: a file stands where its folder should be, or a folder where it should be.
        StorageError: its folder may not be written.
    """
    if not folder and place.is_dir():
        raise InputError(
            f"{option} names a file, but {str(place)!r} is a folder; give a file in it."
        )
    parent = Path(os.path.realpath(place)).parent
    while not os.path.lexists(parent):
        parent = parent.parent
    if not parent.is_dir():
        raise InputError(
            f"{option} is a place in a folder, but of {str(place)!r} the part {str(parent)!r} is a "
            f"file; choose another {option}."
        )
    if not os.access(parent, os.W_OK | os.X_OK):
        raise StorageError(
            f"{option} is a place that you may write, but in {str(parent)!r} you may not; change "
            f"its permissions or choose another {option}."
        )
