"""The training run: transformers' Trainer around the two-stream loss.

In: a `TrainConfig`. Out: an embedder in `output_dir`, with checkpoints from which a killed run
goes on exactly. Entry point: `train`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from ..checkpoint import load_weights, own_weights
from ..embedder import EmbedderConfig, ExtensibleEmbedder
from ..folders import read_tensors
from ..reader import Reader, default_dtype
from .config import TrainConfig
from .data import Instances, Report, collate, default_cache, tokenize_file
from .speed import compiled, keep_freed_memory
from .two_stream import TwoStreamModel

RECORD_KEYS = ("tokens", "steps")


class TwoStreamTrainer(Trainer):
    """Saves the embedder alone, and gives its projection a rate of its own."""

    def __init__(self, *args: Any, config: TrainConfig, **kwargs: Any) -> None:
        self.config = config
        super().__init__(*args, **kwargs)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            embedder = self.accelerator.unwrap_model(self.model).embedder
            self.optimizer = make_optimizer(embedder, self.config)
        return self.optimizer

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, None, None]:
        """The loss alone; transformers computes none for a batch without `labels`."""
        with torch.no_grad():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        assert isinstance(loss, Tensor)
        return loss.detach(), None, None

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        embedder = self.accelerator.unwrap_model(self.model).embedder
        embedder.save_pretrained(Path(output_dir or str(self.args.output_dir)) / "embedder")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        weights = Path(resume_from_checkpoint) / "embedder" / "model.safetensors"
        embedder = self.accelerator.unwrap_model(self.model).embedder
        load_weights(embedder, read_tensors(weights, "an embedder"), str(weights))


class TokenCounter(TrainerCallback):
    """Keeps what the embedder was trained on: predicted tokens and steps."""

    def __init__(self, embedder: ExtensibleEmbedder, instances: Instances, config: TrainConfig):
        self.embedder, self.instances, self.config = embedder, instances, config
        self.before = {key: embedder.training_record.get(key, 0) for key in RECORD_KEYS}
        self.start = self.since = 0.0
        self.tokens = self.counted = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start = time.monotonic()
        self.counted = 0
        self.tokens = 0
        self._count(state.global_step)
        self.first = self.tokens

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._count(state.global_step)
        record: dict[str, Any] = dict(self.embedder.training_record)
        record["tokens"] = int(self.before["tokens"]) + self.tokens  # type: ignore[call-overload]
        record["steps"] = int(self.before["steps"]) + state.global_step  # type: ignore[call-overload]
        self.embedder.training_record = record

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs is not None and "loss" in logs:
            seconds = max(time.monotonic() - self.start, 1e-9)
            logs["tokens"] = self.embedder.training_record.get("tokens", 0)
            logs["tokens_per_s"] = round((self.tokens - self.first) / seconds, 1)

    def _count(self, steps: int) -> None:
        """Adds the predicted tokens of the instances up to this step; drawn again, not stored."""
        per_step = self.config.batch_size * self.config.gradient_accumulation_steps
        while self.counted < steps * per_step:
            shape = self.instances.shape(self.counted)
            self.tokens += (shape.num_chunks - 1) * shape.chunk_tokens
            self.counted += 1


def make_optimizer(embedder: ExtensibleEmbedder, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW over the embedder's weights; vectors are not decayed."""
    weights = {name: w for name, w in own_weights(embedder).items() if w.requires_grad}
    groups = [
        {
            "params": [w for name, w in weights.items() if select(name, w)],
            "lr": rate,
            "weight_decay": decay,
        }
        for select, rate, decay in (
            (_is_projection, config.projection_learning_rate, config.weight_decay),
            (_is_matrix, config.learning_rate, config.weight_decay),
            (_is_vector, config.learning_rate, 0.0),
        )
    ]
    filled = [group for group in groups if group["params"]]
    return torch.optim.AdamW(filled, betas=(0.9, 0.98), fused=True)


def _is_projection(name: str, weight: Tensor) -> bool:
    return name.startswith("projection")


def _is_matrix(name: str, weight: Tensor) -> bool:
    return weight.ndim > 1 and not _is_projection(name, weight)


def _is_vector(name: str, weight: Tensor) -> bool:
    return weight.ndim <= 1 and not _is_projection(name, weight)


def rate_at(step: int, config: TrainConfig) -> float:
    """Share of the learning rate: linear warm-up, constant, linear decay at the end."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    left = (config.max_steps - step) / max(1, config.decay_steps)
    return warm * min(1.0, max(0.0, left)) if config.decay_steps else warm


def build(config: TrainConfig, reader: Reader | None = None) -> ExtensibleEmbedder:
    """The embedder that the configuration begins with."""
    reader = reader or Reader.from_pretrained(config.reader)
    if config.init_from is not None:
        return ExtensibleEmbedder.from_pretrained(config.init_from, reader).train()
    architecture = EmbedderConfig(
        num_layers=config.num_layers,
        chunk_tokens=config.reading_chunk_tokens,
        down_sampling=config.down_sampling,
        residual=config.residual,
        final_norm=config.final_norm,
    )
    return ExtensibleEmbedder(architecture, reader).train()


def instances(
    config: TrainConfig, reader: Reader, *, evaluation: bool = False, report: Report | None = None
) -> Instances:
    """Training or evaluation instances, tokenised once."""
    cache = Path(config.cache_dir) if config.cache_dir else default_cache()
    paths = (config.eval_data or []) if evaluation else config.data
    per_step = config.batch_size * config.gradient_accumulation_steps
    training = config.max_steps * per_step * PartialState().num_processes
    return Instances(
        [tokenize_file(Path(path), reader, cache, report) for path in paths],
        num_instances=config.eval_instances if evaluation else training,
        instance_tokens=config.instance_tokens,
        chunk_tokens=config.chunk_tokens,
        scale_factors=config.scale_factors,
        batch_size=config.batch_size,
        weights=None if evaluation else config.data_weights,
        seed=config.seed + (1_000_003 if evaluation else 0),
    )


def arguments(config: TrainConfig, reader: Reader) -> TrainingArguments:
    """Transformers' arguments for the configuration."""
    bf16 = config.bf16
    if bf16 is None:
        bf16 = default_dtype(reader.device) is torch.bfloat16
    return TrainingArguments(
        output_dir=config.output_dir,
        max_steps=config.max_steps,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        max_grad_norm=config.max_grad_norm,
        bf16=bf16,
        use_cpu=reader.device.type == "cpu",
        seed=config.seed,
        save_steps=config.save_steps,
        save_total_limit=config.save_total_limit,
        logging_steps=config.logging_steps,
        eval_strategy="steps" if config.eval_data else "no",
        eval_steps=config.eval_steps,
        report_to=["tensorboard"],
        remove_unused_columns=False,
        label_names=[],
        prediction_loss_only=True,
        train_sampling_strategy="sequential",
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )


def train(
    config: TrainConfig,
    *,
    reader: Reader | None = None,
    callbacks: list[TrainerCallback] | None = None,
    report: Callable[[str, int], None] | None = None,
) -> Path:
    """Runs the training, from the last checkpoint in `output_dir` if there is one.

    Args:
        config: the settings.
        reader: loaded already; by default the one that the configuration names.
        callbacks: transformers callbacks, such as a progress bar.
        report: called while text is tokenised with (file name, documents).

    Returns:
        The folder of the trained embedder.
    """
    reader = reader or Reader.from_pretrained(config.reader)
    torch.manual_seed(config.seed)
    embedder = build(config, reader)
    training = instances(config, reader, report=report)
    counter = TokenCounter(embedder, training, config)
    model = TwoStreamModel(embedder)
    trainer = TwoStreamTrainer(
        model=model,
        args=arguments(config, reader),
        config=config,
        train_dataset=training,
        eval_dataset=instances(config, reader, evaluation=True) if config.eval_data else None,
        data_collator=collate,
        callbacks=[counter, *(callbacks or [])],
    )
    optimizer = trainer.create_optimizer()
    trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: rate_at(s, config)
    )
    keep_freed_memory()
    with compiled(model) if config.compile else nullcontext():
        trainer.train(resume_from_checkpoint=last_checkpoint(config.output_dir))
    folder = Path(config.output_dir) / "embedder"
    embedder.save_pretrained(folder)
    return folder


def last_checkpoint(output_dir: str) -> str | None:
    """The newest checkpoint folder that is whole, or None; a killed run may leave half of one."""
    found = {int(path.name.rpartition("-")[2]): path for path in _checkpoints(output_dir)}
    whole = [step for step, path in found.items() if _is_whole(path)]
    return str(found[max(whole)]) if whole else None


def _checkpoints(output_dir: str) -> list[Path]:
    folders = Path(output_dir).glob("checkpoint-*")
    return [path for path in folders if path.name.removeprefix("checkpoint-").isdecimal()]


def _is_whole(checkpoint: Path) -> bool:
    """Whether its last file, trainer_state.json, was written to the end."""
    try:
        return isinstance(json.loads((checkpoint / "trainer_state.json").read_text("utf-8")), dict)
    except (OSError, ValueError):
        return False
