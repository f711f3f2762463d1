"""The training configuration: one commented YAML file.

In: a YAML file. Out: a `TrainConfig`, checked. Knows nothing of models and data.
"""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError, InputError


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Every setting of a training run."""

    output_dir: str
    """Folder of checkpoints, logs and the final embedder."""
    data: list[str]
    """Training files: parquet or JSONL with a field `text`, or UTF-8 text."""
    data_weights: list[float] | None = None
    """Share of instances from each file; by default equal."""
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
    down_sampling: str = "strided"
    """strided, mean, terminal or random."""
    residual: bool = True
    """Identity residual; false: the paper's plain form."""
    final_norm: bool = True
    """Apply the reader's final norm to the embedder's outputs."""

    scale_factors: list[int] = field(default_factory=lambda: [2, 4, 8, 16, 32])
    """k is drawn from these, once an instance."""
    instance_tokens: list[int] = field(default_factory=lambda: [512, 1024])
    """Tokens of an instance are drawn from these."""
    chunk_tokens: list[int] = field(default_factory=lambda: [64, 128, 256])
    """Chunk length is drawn from these, once an instance."""

    max_steps: int = 1000
    """Optimizer steps in all."""
    batch_size: int = 1
    """Instances at once on each device; they share chunk length and k."""
    gradient_accumulation_steps: int = 2
    """Batches of one optimizer step."""
    learning_rate: float = 4e-4
    """Of the layers."""
    projection_learning_rate: float = 1e-3
    """Of the projection, which starts at zero."""
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
        for name in ("max_steps", "batch_size", "gradient_accumulation_steps", "save_steps"):
            self._require(getattr(self, name) >= 1, name, "1 or more")
        for name in ("scale_factors", "instance_tokens", "chunk_tokens"):
            values = getattr(self, name)
            whole = all(type(value) is int and value >= 1 for value in values)
            self._require(bool(values) and whole, name, "a list of whole numbers, 1 or more")
        self._require(bool(self.data), "data", "a list of files")
        self._require(self.learning_rate > 0, "learning_rate", "above 0")
        least = 2 * min(self.chunk_tokens)
        self._require(
            min(self.instance_tokens) >= least, "instance_tokens", f"{least} or more (two chunks)"
        )

    def _require(self, holds: bool, name: str, rule: str) -> None:
        if not holds:
            raise ConfigError(f"`{name}` is {rule}, but it is {getattr(self, name)!r}.")


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
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
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
