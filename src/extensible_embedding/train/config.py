"""The training configuration: one commented YAML file.

In: a YAML file. Out: a `TrainConfig`, checked. Knows nothing of models and data.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..downsampling import DOWN_SAMPLINGS
from ..errors import ConfigError, InputError, StorageError
from ..start import LARGEST_START


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Every setting of a training run."""

    output_dir: str
    """Folder of checkpoints, logs and the final embedder."""
    data: list[str]
    """Training files: parquet or JSONL with a field `text`, or UTF-8 text."""
    data_weights: list[float] | None = None
    """Share of instances from each file; by default equal."""
    questions: list[str] | None = None
    """Files of questions for the second stage: parquet or JSONL with the fields `context`,
    `question` and `answers`; a context is at most as long as the reader's window."""
    question_share: float = 0.5
    """Share of batches that are questions, if there are any; the others are text."""
    span_tokens: list[int] = field(default_factory=lambda: [0])
    """The most tokens of raw spans before a question, as `expand` reads them, are drawn from these,
    once a context; 0: rows alone."""
    cache_dir: str | None = None
    """Folder of token caches; by default in the user's cache folder."""
    reader: str = "default"
    """Hub id, folder or .gguf file of the reader; `default` is the embedded one."""
    init_from: str | None = None
    """Embedder to begin with (folder or hub id); by default the reader's first layers."""

    num_layers: int = 8
    """Layers that the embedder takes from the reader."""
    reading_chunk_tokens: int = 256
    """Chunk length at reading time, kept with the embedder."""
    down_sampling: str | None = None
    """strided, mean, terminal or random; by default that of `init_from`, or strided."""
    residual: bool = True
    """Identity residual; false: the paper's plain form."""
    final_norm: bool = True
    """Apply the reader's final norm to the embedder's outputs."""
    projection_start: float | None = None
    """The projection begins as so many times the identity; by default as many as make rows begin as
    the reader's hidden states, which learn faster. 0: they begin as token embeddings."""

    scale_factors: list[int] = field(default_factory=lambda: [2, 4, 8, 16, 32])
    """k is drawn from these, once an instance."""
    instance_tokens: list[int] = field(default_factory=lambda: [512, 1024])
    """Tokens of an instance are drawn from these."""
    chunk_tokens: list[int] = field(default_factory=lambda: [64, 128, 256])
    """Chunk length is drawn from these, once an instance."""
    one_stream: bool = False
    """Predict the last chunk of an instance alone: the ablation of two-stream training."""

    first_scale_factors: list[int] | None = None
    """k is drawn from these in the first steps instead: small ones are learned first."""
    first_steps: int = 0
    """How many steps these are."""
    sequence_places: int | None = None
    """For GPUs: fill sequences of this many places with instances and questions, each with its own
    chunk length and k; `question_share` is then the share of sequences that begin with questions,
    and in a batch that has any the weight of the answers' mean loss beside that of text."""

    max_steps: int = 1000
    """Optimizer steps in all."""
    max_minutes: float | None = None
    """End by the clock, if that is before the last step; the rate falls as if it were."""
    batch_size: int = 1
    """Instances at once on each device, which share chunk length and k; or packed sequences."""
    gradient_accumulation_steps: int = 2
    """Batches of one optimizer step."""
    learning_rate: float = 4e-4
    """Of the layers."""
    projection_learning_rate: float = 1e-3
    """Of the projection."""
    weight_decay: float = 0.0
    """Decoupled, on matrices."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    warmup_steps: int = 20
    """Steps of linear warm-up."""
    decay_steps: int = 0
    """Last steps, in which the rate falls linearly to zero; before, it is constant."""
    bf16: bool | None = None
    """Products in bfloat16; by default where the machine multiplies it fast."""
    compile: bool = False
    """Compile norms and MLPs; on a CPU this needs a C++ compiler."""
    workers: int = 0
    """Processes that make batches beside the training; 0: it makes its own."""
    seed: int = 0
    """Of the draws and of the order."""

    save_steps: int = 50
    """Steps between checkpoints."""
    save_total_limit: int = 2
    """Checkpoints kept."""
    logging_steps: int = 5
    """Steps between log lines."""
    eval_data: list[str] | None = None
    """Files to evaluate on during training."""
    eval_steps: int = 200
    """Steps between evaluations."""
    eval_instances: int = 8
    """Instances of each evaluation."""

    def __post_init__(self) -> None:
        for name, (rule, holds) in RANGES.items():
            self._require(holds(getattr(self, name)), name, rule)
        least = 2 * min(self.chunk_tokens)
        self._require(
            min(self.instance_tokens) >= least, "instance_tokens", f"{least} or more (two chunks)"
        )
        self._check_factors()
        shares = f"one share for each of the {len(self.data)} files of `data`"
        if (self.first_scale_factors is None) != (self.first_steps == 0):
            raise ConfigError(
                "`first_scale_factors` and `first_steps` come together, but they are "
                f"{self.first_scale_factors!r} and {self.first_steps!r}; give both or neither."
            )
        if not self.residual:
            self._require(not self.projection_start, "projection_start", "0 without `residual`")
        if self.sequence_places is not None:
            self._check_packing()
        if self.questions is None:
            self._require(not any(self.span_tokens), "span_tokens", "[0] without `questions`")
        as_many = self.data_weights is None or len(self.data_weights) == len(self.data)
        self._require(as_many, "data_weights", shares)

    def _check_factors(self) -> None:
        """A row stands for tokens of one chunk; a larger k would become a smaller one unseen."""
        asked = [] if self.questions is None else [self.reading_chunk_tokens]
        longest = max(*self.chunk_tokens, *asked, 1)
        for name in ("scale_factors", "first_scale_factors"):
            rule = f"at most {longest}, the tokens of the longest chunk"
            self._require(max(getattr(self, name) or [1]) <= longest, name, rule)

    def _check_packing(self) -> None:
        """What packing cannot do, whatever embedder the run begins with."""
        self._require(self.question_share < 1, "question_share", "below 1 with `sequence_places`")
        self._require(not self.one_stream, "one_stream", "false with `sequence_places`")

    def _require(self, holds: bool, name: str, rule: str) -> None:
        if not holds:
            raise ConfigError(
                f"`{name}` is {rule}, but it is {getattr(self, name)!r}; correct the configuration."
            )


Range = tuple[str, Callable[[Any], bool]]
"""A rule in words, and whether a value keeps it."""


def _whole(least: int, most: float = math.inf) -> Range:
    rule = f"a whole number, {least} or more" + (f", {most} at most" if most < math.inf else "")
    return rule, lambda value: type(value) is int and least <= value <= most


def _number(rule: str, holds: Callable[[float], bool]) -> Range:
    return rule, lambda value: type(value) in (int, float) and math.isfinite(value) and holds(value)


def _list(rule: str, item: Range) -> Range:
    return (
        rule,
        lambda values: isinstance(values, list) and bool(values) and all(map(item[1], values)),
    )


def _or_null(given: Range) -> Range:
    return f"{given[0]}, or null", lambda value: value is None or given[1](value)


_TEXT: Range = ("a text that is not empty", lambda value: isinstance(value, str) and bool(value))
_FLAG: Range = ("true or false", lambda value: isinstance(value, bool))
_FILES = _list("a list of files", _TEXT)
_COUNTS = _list("a list of whole numbers, 1 or more", _whole(1))
_RATE = _number("a number above 0", lambda value: value > 0)
_SHARES = _list("a list of numbers, 0 or more and not all 0", _number("", lambda value: value >= 0))

RANGES: dict[str, Range] = {
    "output_dir": _TEXT,
    "data": _FILES,
    "data_weights": _or_null((_SHARES[0], lambda value: _SHARES[1](value) and sum(value) > 0)),
    "questions": _or_null(_FILES),
    "question_share": _number("a number above 0, 1 at most", lambda value: 0 < value <= 1),
    "span_tokens": _list("a list of whole numbers, 0 or more", _whole(0)),
    "cache_dir": _or_null(_TEXT),
    "reader": _TEXT,
    "init_from": _or_null(_TEXT),
    "num_layers": _whole(1),
    "reading_chunk_tokens": _whole(1),
    "down_sampling": _or_null(
        ("one of " + ", ".join(DOWN_SAMPLINGS), lambda value: value in DOWN_SAMPLINGS)
    ),
    "residual": _FLAG,
    "final_norm": _FLAG,
    "projection_start": _or_null(
        _number("a number, 0 or more and 1e6 at most", lambda value: 0 <= value <= LARGEST_START)
    ),
    "scale_factors": _COUNTS,
    "instance_tokens": _COUNTS,
    "chunk_tokens": _COUNTS,
    "one_stream": _FLAG,
    "first_scale_factors": _or_null(_COUNTS),
    "first_steps": _whole(0),
    "sequence_places": _or_null(_whole(1)),
    "workers": _whole(0),
    "max_steps": _whole(1, 2**31 - 1),
    "max_minutes": _or_null(_RATE),
    "batch_size": _whole(1),
    "gradient_accumulation_steps": _whole(1),
    "learning_rate": _RATE,
    "projection_learning_rate": _RATE,
    "weight_decay": _number("a number, 0 or more", lambda value: value >= 0),
    "max_grad_norm": _number("a number, 0 (no clipping) or more", lambda value: value >= 0),
    "warmup_steps": _whole(0),
    "decay_steps": _whole(0),
    "bf16": _or_null(_FLAG),
    "compile": _FLAG,
    "seed": _whole(0, 2**32 - 1),
    "save_steps": _whole(1),
    "save_total_limit": _whole(1),
    "logging_steps": _whole(1),
    "eval_data": _or_null(_FILES),
    "eval_steps": _whole(1),
    "eval_instances": _whole(1),
}
"""What each setting may be, one entry a field."""


def check_files(config: TrainConfig) -> None:
    """Refuses, before anything is loaded, data that are not there and a file as output folder.

    Raises:
        InputError: a file of `data` or `eval_data` is missing.
        ConfigError: `output_dir`, or a folder above it, is a file.
    """
    for name in ("data", "questions", "eval_data"):
        for path in getattr(config, name) or []:
            if not Path(path).is_file():
                raise InputError(f"Training data are files, but {path!r} is none; check `{name}`.")
    folder = Path(config.output_dir)
    for part in (folder, *folder.parents):
        if part.exists() and not part.is_dir():
            raise ConfigError(
                f"`output_dir` is a folder, but {str(part)!r} is a file; give another output_dir."
            )


def make_output_dir(config: TrainConfig) -> None:
    """Makes the output folder, before anything is loaded for nothing.

    Raises:
        StorageError: it cannot be made or written.
    """
    folder = Path(config.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b" ")
    except OSError as error:
        raise StorageError(
            f"`output_dir` is a folder with room that you may write, but {str(folder)!r} is none "
            f"({error}); free some space or give another output_dir."
        ) from error


class _Loader(yaml.SafeLoader):
    """YAML in which no key comes twice: the later would win unseen."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping of the file; raises ConfigError where a key comes again."""
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise ConfigError(
                    f"A setting is given once, but `{key.value}` comes again in line "
                    f"{key.start_mark.line + 1}; delete one."
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def load_config(path: str | Path) -> TrainConfig:
    """Reads a YAML configuration; paths in it are relative to the working directory.

    Raises:
        InputError: there is no such file.
        ConfigError: a key is unknown or missing, or a value has the wrong type or range.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"A configuration is a YAML file, but {str(path)!r} is none; check it.")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{str(path)!r} is not YAML ({' '.join(str(error).split())}).") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{str(path)!r} holds keys and values, but found {values!r}.")
    return config_from(values)


def config_from(values: dict[str, Any]) -> TrainConfig:
    """A configuration from keys and values; see `load_config` for what is raised."""
    fields = {spec.name: spec for spec in dataclasses.fields(TrainConfig)}
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1, cutoff=0)
            raise ConfigError(f"There is no setting `{key}`; the nearest is `{near[0]}`.")
    for name in ("output_dir", "data"):
        if name not in values:
            raise ConfigError(f"A configuration has `{name}`, but it is missing; add it.")
    return TrainConfig(
        **{key: _typed(key, value, str(fields[key].type)) for key, value in values.items()}
    )


def _typed(key: str, value: Any, kind: str) -> Any:
    """The value if it has the field's type; YAML reads 4e-4 as text, so numbers are parsed."""
    if value is None and "None" in kind:
        return None
    base = kind.split(" |")[0]
    try:
        if base.startswith("list"):
            item = base.removeprefix("list[").removesuffix("]")
            if not isinstance(value, list):
                raise TypeError
            return [_typed(key, each, item) for each in value]
        if base == "float" and not isinstance(value, bool):
            return float(value)
        expected = {"int": int, "str": str, "bool": bool, "float": float}[base]
        if type(value) is not expected:
            raise TypeError
    except (TypeError, ValueError):
        raise ConfigError(f"`{key}` is of type {base}, but it is {value!r}; correct it.") from None
    return value
