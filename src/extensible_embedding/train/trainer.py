"""The training run: transformers' Trainer around the two-stream loss.

In: a `TrainConfig`. Out: an embedder in `output_dir`, with checkpoints from which a killed run
goes on exactly. Entry point: `train`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from ..checkpoint import WEIGHTS, check_weights, own_weights, save_weights
from ..embedder import ExtensibleEmbedder
from ..errors import ConfigError
from ..folders import read_tensors, write_json
from ..loading import default_device, default_dtype
from ..prompt import language_head
from ..reader import Reader
from .attention import can_split
from .callbacks import Pace, TokenCounter
from .checkpoints import (
    SETTINGS,
    check_goes_on,
    damage_named,
    last_checkpoint,
    projection_start_of,
    shaping_settings,
    whole_checkpoint,
)
from .config import TrainConfig, check_files, make_output_dir
from .data import FirstFactors, Instances, Report, default_cache, tokenize_file
from .deadline import Deadline
from .optimizer import make_optimizer, make_schedule, set_rates
from .packed_batches import collate_packed
from .packing import MOST_PIECES, PackedSequences, check_packs
from .processes import agreed, load_reader, processes
from .question_cache import tokenize_questions
from .questions import Mixed, Questions, collate
from .sharded_trainer import ShardedTrainer
from .sharding import check_shards, launched_plain, put_weights, shard, sharding, whole_weights
from .speed import check_compiler, compiled, keep_freed_memory
from .two_stream import TwoStreamModel


class TwoStreamTrainer(Trainer):
    """Saves the embedder alone, and gives its projection a rate of its own."""

    def __init__(self, *args: Any, config: TrainConfig, deadline: Deadline, **kwargs: Any) -> None:
        self.config, self.deadline = config, deadline
        super().__init__(*args, **kwargs)
        self.shaping = shaping_settings(config, self.args.world_size)

    @property
    def two_stream(self) -> TwoStreamModel:
        """The model without the wrapper of several processes."""
        model: TwoStreamModel = self.accelerator.unwrap_model(self.model)
        return model

    @property
    def embedder(self) -> ExtensibleEmbedder:
        """What is trained."""
        return self.two_stream.embedder

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = make_optimizer(self.embedder, self.config)
            self.lr_scheduler = make_schedule(self.optimizer, self.config, self.deadline)
        return self.optimizer

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, None, None]:
        """The loss alone; transformers computes none for a batch without `labels`."""
        with torch.no_grad():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        assert isinstance(loss, Tensor)
        return loss.detach(), None, None

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        with whole_checkpoint(folder, owner=self.is_world_process_zero()):
            super()._save_checkpoint(model, trial)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        save_weights(state_dict or own_weights(self.embedder), self.embedder, folder / "embedder")
        write_json(folder / SETTINGS, self.shaping)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        weights = folder / "embedder" / WEIGHTS
        with damage_named(folder):
            tensors = read_tensors(weights, "an embedder")
            check_weights(self.embedder, tensors, str(weights))
            put_weights(self.embedder, tensors)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        with damage_named(Path(checkpoint)):
            super()._load_optimizer_and_scheduler(checkpoint)
        assert self.optimizer is not None
        assert self.lr_scheduler is not None
        set_rates(self.optimizer, self.lr_scheduler, self.embedder, self.config, self.deadline)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            with damage_named(Path(checkpoint)):
                super()._load_rng_state(checkpoint)


class ShardedTwoStreamTrainer(TwoStreamTrainer, ShardedTrainer):
    """The same with a model that is divided among the processes."""


ARCHITECTURE = {
    "num_layers": "num_layers",
    "reading_chunk_tokens": "chunk_tokens",
    "residual": "residual",
    "final_norm": "final_norm",
    "projection_start": "projection_start",
}
"""Settings that say what an embedder is made of, and its fields that they become.

`down_sampling` is another: weights trained with one are of use to begin with another.
"""


def build(config: TrainConfig, reader: Reader) -> ExtensibleEmbedder:
    """The embedder that the configuration begins with.

    Raises:
        ConfigError: the embedder in `init_from` is made otherwise than a setting says.
    """
    if config.init_from is None:
        values = {name: getattr(config, key) for key, name in ARCHITECTURE.items()}
        if config.down_sampling is not None:
            values["down_sampling"] = config.down_sampling
        return ExtensibleEmbedder.from_reader(reader, **values).train()
    embedder = ExtensibleEmbedder.from_pretrained(config.init_from, reader)
    defaults = {field.name: field.default for field in fields(TrainConfig)}
    for key, name in ARCHITECTURE.items():
        asked, has = getattr(config, key), getattr(embedder.config, name)
        if asked not in (has, defaults[key]):
            raise ConfigError(
                f"The architecture comes from init_from, and {config.init_from!r} has `{key}` "
                f"{has!r}, but the configuration says {asked!r}; leave `{key}` out."
            )
    if config.down_sampling is not None:
        embedder.config = replace(embedder.config, down_sampling=config.down_sampling)
    return embedder.train()


def instances(
    config: TrainConfig, reader: Reader, *, evaluation: bool = False, report: Report | None = None
) -> Instances:
    """Training or evaluation instances, tokenised once."""
    cache = Path(config.cache_dir) if config.cache_dir else default_cache()
    paths = (config.eval_data or []) if evaluation else config.data
    per_step = config.batch_size * config.gradient_accumulation_steps
    packing = None if evaluation else config.sequence_places
    state = processes(reader.device)
    training = config.max_steps * per_step * state.num_processes
    with state.local_main_process_first():  # it fills the cache, the others read it
        files = [tokenize_file(Path(path), reader, cache, report) for path in paths]
    return Instances(
        files,
        num_instances=config.eval_instances if evaluation else training,
        instance_tokens=config.instance_tokens,
        chunk_tokens=config.chunk_tokens,
        scale_factors=config.scale_factors,
        batch_size=config.batch_size if packing is None else 1,
        weights=None if evaluation else config.data_weights,
        seed=config.seed + (1_000_003 if evaluation else 0),
        first=None if evaluation else first_factors(config, state.num_processes),
    )


def first_factors(config: TrainConfig, num_processes: int) -> FirstFactors | None:
    """The scale factors that the configuration begins with, and how long."""
    if config.first_scale_factors is None:
        return None
    per_step = config.batch_size * config.gradient_accumulation_steps * num_processes
    pieces = 1 if config.sequence_places is None else MOST_PIECES
    return FirstFactors(
        scale_factors=config.first_scale_factors, until=config.first_steps * per_step * pieces
    )


def with_questions(
    config: TrainConfig, texts: Instances, reader: Reader, report: Report | None = None
) -> Mixed:
    """Training instances, mixed with the questions that the configuration has."""
    if config.questions is None:
        return Mixed(texts, None, 0.0)
    questions = question_documents(config, reader, report)
    return Mixed(texts, questions, config.question_share)


def packed_sequences(
    config: TrainConfig, texts: Instances, embedder: ExtensibleEmbedder, report: Report | None
) -> PackedSequences:
    """Training instances and questions, packed."""
    assert config.sequence_places is not None
    reader = embedder.reader
    if not can_split(reader):
        raise ConfigError(
            "Packed sequences need a reader whose layers all have plain causal attention, but "
            f"{reader.name!r} has other layers; leave `sequence_places` out."
        )
    head = language_head(reader)
    check_packs(config, embedder.config, len(head))
    asked = None if config.questions is None else question_documents(config, reader, report)
    packed = PackedSequences(
        texts,
        asked,
        question_share=config.question_share,
        head=head,
        num_sequences=len(texts),
        sequence_places=config.sequence_places,
        reading_chunk_tokens=embedder.config.chunk_tokens,
    )
    if asked is not None and not packed.can_ask():
        raise ConfigError(
            f"A sequence holds a context's rows and its questions, but of {MOST_PIECES} documents "
            f"drawn none fits {config.sequence_places} places; give more `sequence_places`, "
            "fewer `span_tokens`, or questions on shorter contexts."
        )
    return packed


def question_documents(
    config: TrainConfig, reader: Reader, report: Report | None = None
) -> Questions:
    """Documents with questions, tokenised once."""
    assert config.questions is not None
    cache = Path(config.cache_dir) if config.cache_dir else default_cache()
    with processes(reader.device).local_main_process_first():
        paths = [Path(path) for path in config.questions]
        files = [tokenize_questions(path, reader, cache, report) for path in paths]
    return Questions(
        files,
        scale_factors=config.scale_factors,
        span_tokens=config.span_tokens,
        batch_size=config.batch_size if config.sequence_places is None else 1,
        seed=config.seed,
        first=first_factors(config, processes(reader.device).num_processes),
    )


def arguments(config: TrainConfig, reader: Reader) -> TrainingArguments:
    """Transformers' arguments for the configuration."""
    bf16 = config.bf16
    if bf16 is None:
        bf16 = default_dtype(reader.device) is torch.bfloat16
    made = TrainingArguments(
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
        logging_nan_inf_filter=False,  # it waits for the device at each step
        eval_strategy="steps" if config.eval_data else "no",
        eval_steps=config.eval_steps,
        report_to=["tensorboard"],
        remove_unused_columns=False,
        label_names=[],
        prediction_loss_only=True,
        train_sampling_strategy="sequential",
        dataloader_num_workers=config.workers,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    made._n_gpu = min(made.n_gpu, 1)  # else one process would spread itself over all GPUs
    return made


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
        reader: loaded already; by default the one that the configuration names. With FSDP2 it stays
            divided among the processes.
        callbacks: transformers callbacks, such as a progress bar.
        report: called while text is tokenised with (file name, documents).

    Returns:
        The folder of the trained embedder.

    Raises:
        ExtensibleError: a configuration, data, a checkpoint or the disk is not usable.
    """
    check_files(config)
    make_output_dir(config)
    if config.compile:
        check_compiler(reader.device if reader else default_device())
    reader = reader or load_reader(config)
    torch.manual_seed(config.seed)
    checkpoint = last_checkpoint(config.output_dir)
    if checkpoint is not None and config.projection_start is None and config.residual:
        config = replace(config, projection_start=projection_start_of(checkpoint))
    embedder = build(config, reader)
    start = agreed(embedder.config.projection_start, reader.device)
    embedder.config = replace(embedder.config, projection_start=start)
    if checkpoint is not None:
        num_processes = processes(reader.device).num_processes
        check_goes_on(checkpoint, embedder, shaping_settings(config, num_processes))
    trainer = make_trainer(config, embedder, callbacks or [], report)
    keep_freed_memory()
    if checkpoint is not None:
        with damage_named(Path(checkpoint)):
            trainer.deadline.restore(Path(checkpoint))
    if checkpoint is not None and trainer.deadline.share >= 1:
        embedder = ExtensibleEmbedder.from_pretrained(f"{checkpoint}/embedder", reader)
    else:
        whole = config.sequence_places is not None and reader.device.type == "cuda"
        whole = whole and not isinstance(trainer, ShardedTrainer)  # hooks put their blocks together
        with compiled(trainer.two_stream, whole=whole) if config.compile else nullcontext():
            trainer.train(resume_from_checkpoint=checkpoint)
    folder = Path(config.output_dir) / "embedder"
    weights = whole_weights(embedder)
    if trainer.is_world_process_zero():
        save_weights(weights, embedder, folder)
    trainer.accelerator.wait_for_everyone()
    return folder


def make_trainer(
    config: TrainConfig,
    embedder: ExtensibleEmbedder,
    callbacks: list[TrainerCallback],
    report: Report | None,
) -> TwoStreamTrainer:
    """The trainer of a run, with its data tokenised."""
    reader = embedder.reader
    texts = instances(config, reader, report=report)
    collator: Any = collate
    if config.sequence_places is None:
        training: Mixed | PackedSequences = with_questions(config, texts, reader, report)
    else:
        training = packed_sequences(config, texts, embedder, report)
        collator = partial(
            collate_packed,
            sequence_places=config.sequence_places,
            chunk_tokens=embedder.config.chunk_tokens,
            question_share=config.question_share,
            sampling=embedder.config.down_sampling,
        )
    deadline = Deadline(config.max_minutes)
    state = processes(reader.device)
    counter = TokenCounter(embedder, training, config, state.num_processes)
    asked = sharding(state)
    if asked is not None:
        check_shards(config, embedder)
    model = TwoStreamModel(embedder, one_stream=config.one_stream)
    if asked is not None:
        shard(model, state, asked)
    with launched_plain():
        return (TwoStreamTrainer if asked is None else ShardedTwoStreamTrainer)(
            model=model,
            args=arguments(config, reader),
            config=config,
            train_dataset=training,
            eval_dataset=instances(config, reader, evaluation=True) if config.eval_data else None,
            data_collator=collator,
            callbacks=[deadline, counter, Pace(), *callbacks],
            deadline=deadline,
        )
