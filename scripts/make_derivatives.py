"""Makes derivatives of a reader as people make them: fine-tuned, adapted, quantised.

    python scripts/make_derivatives.py base BASE
    python scripts/make_derivatives.py full BASE OUT --data code.parquet
    python scripts/make_derivatives.py lora BASE OUT --merged MERGED --data code.parquet
    python scripts/make_derivatives.py instruct BASE OUT --data questions.parquet
    python scripts/make_derivatives.py quantise BASE OUT --bits 8

Each result is a folder with its tokenizer, which `extensible check` takes. The libraries are in the
extra `derivatives`. Nothing here knows of embedders.
"""

from __future__ import annotations

import copy
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import typer
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from extensible_embedding import Reader
from extensible_embedding.cli.group import ExtensibleCommand, ExtensibleGroup
from extensible_embedding.errors import InputError, MissingExtraError
from extensible_embedding.evals.targets import draw_targets, read_domains
from extensible_embedding.folders import whole_folder
from extensible_embedding.loading import default_dtype

app = typer.Typer(
    cls=ExtensibleGroup, no_args_is_help=True, add_completion=False, rich_markup_mode=None
)

_CHARS_PER_TOKEN = 3

Base = Annotated[Path, typer.Argument(metavar="BASE", help="The folder that `base` wrote.")]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the derivative.")]
Texts = Annotated[
    Path, typer.Option("--data", help="A .parquet file with a column `text`, such as code.")
]
Questions = Annotated[
    Path,
    typer.Option(
        "--data",
        help="A .parquet file with columns `context`, `question` and `answers`; of `gold_context`, "
        "if there is one, instead of the context.",
    ),
]
Steps = Annotated[int, typer.Option("--steps", min=1, help="Optimizer steps.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Texts in a step.")]
Tokens = Annotated[int, typer.Option("--tokens", min=2, help="The most tokens of a text.")]
LearningRate = Annotated[float, typer.Option("--learning-rate", help="Falls to 0 at the end.")]
Seed = Annotated[int, typer.Option("--seed", help="Of texts and their order.")]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much a derivative learns."""

    steps: int
    batch_size: int
    tokens: int
    learning_rate: float
    seed: int

    @property
    def num_texts(self) -> int:
        """Texts that the steps take."""
        return self.steps * self.batch_size

    def arguments(self, folder: str, reader: Reader) -> dict[str, Any]:
        """What transformers' trainer and its descendants call these, and no checkpoints."""
        return {
            "output_dir": folder,
            "max_steps": self.steps,
            "per_device_train_batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
            "warmup_steps": self.steps // 10,
            "seed": self.seed,
            "bf16": default_dtype(reader.device) is torch.bfloat16,
            "use_cpu": reader.device.type == "cpu",
            "gradient_checkpointing": False,
            "dataloader_pin_memory": False,
            "save_strategy": "no",
            "logging_steps": max(1, self.steps // 10),
            "report_to": [],
            "disable_tqdm": True,
        }


@app.command(cls=ExtensibleCommand)
def base(
    out: Out,
    reader: Annotated[
        str, typer.Option("--reader", help="As for `extensible`; `default` is the built-in one.")
    ] = "default",
) -> None:
    """Write a reader as a plain folder, which the other commands begin with.

    A model out of a GGUF file will not be saved or trained while its configuration says that it is
    quantised: its weights go into a model that was never told so.
    """
    found = Reader.from_pretrained(reader)
    _save(_plain_copy(found), found, out)


def _plain_copy(reader: Reader) -> PreTrainedModel:
    config = copy.deepcopy(reader.model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=reader.dtype)
    model.load_state_dict(reader.model.state_dict())
    if reader.model.generation_config is not None:
        model.generation_config = reader.model.generation_config
    return model


@app.command(cls=ExtensibleCommand)
def full(
    base: Base,
    out: Out,
    data: Texts,
    steps: Steps = 100,
    batch_size: BatchSize = 2,
    tokens: Tokens = 512,
    learning_rate: LearningRate = 2e-5,
    seed: Seed = 0,
) -> None:
    """Fine-tune every weight on text (transformers' Trainer)."""
    budget = Budget(
        steps=steps, batch_size=batch_size, tokens=tokens, learning_rate=learning_rate, seed=seed
    )
    reader = _trainable(base)
    _train_on_text(reader.model, reader, data, budget)
    _save(reader.model.to(torch.bfloat16), reader, out)


@app.command(cls=ExtensibleCommand)
def lora(
    base: Base,
    out: Out,
    data: Texts,
    merged: Annotated[
        Path | None, typer.Option("--merged", help="Also a folder with the adapter merged in.")
    ] = None,
    rank: Annotated[int, typer.Option("--rank", min=1, help="Of the adapter's matrices.")] = 16,
    steps: Steps = 100,
    batch_size: BatchSize = 2,
    tokens: Tokens = 512,
    learning_rate: LearningRate = 2e-4,
    seed: Seed = 0,
) -> None:
    """Train a LoRA adapter of all linear layers on text (peft)."""
    peft = _extra("peft")
    budget = Budget(
        steps=steps, batch_size=batch_size, tokens=tokens, learning_rate=learning_rate, seed=seed
    )
    reader = _trainable(base.resolve())  # the adapter's folder names the base's
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules="all-linear"
    )
    torch.manual_seed(seed)
    model = peft.get_peft_model(reader.model, config)
    _train_on_text(model, reader, data, budget)
    _save(model, reader, out)
    if merged is not None:
        _save(model.merge_and_unload().to(torch.bfloat16), reader, merged)


@app.command(cls=ExtensibleCommand)
def instruct(
    base: Base,
    out: Out,
    data: Questions,
    steps: Steps = 100,
    batch_size: BatchSize = 2,
    tokens: Tokens = 512,
    learning_rate: LearningRate = 2e-5,
    seed: Seed = 0,
) -> None:
    """Tune on questions and answers in the chat template (trl's SFTTrainer)."""
    trl, datasets = _extra("trl"), _extra("datasets")
    budget = Budget(
        steps=steps, batch_size=batch_size, tokens=tokens, learning_rate=learning_rate, seed=seed
    )
    reader = _trainable(base)
    if not reader.tokenizer.chat_template:
        raise InputError(
            f"An instruct tune needs a chat template, but the tokenizer in {str(base)!r} has none; "
            "begin with a reader that has one."
        )
    with tempfile.TemporaryDirectory() as folder:
        trainer = trl.SFTTrainer(
            model=reader.model,
            args=trl.SFTConfig(max_length=tokens, **budget.arguments(folder, reader)),
            train_dataset=datasets.Dataset.from_list(_dialogues(data, budget)),
            processing_class=reader.tokenizer,
        )
        trainer.train()
    _save(reader.model.to(torch.bfloat16), reader, out)


@app.command(cls=ExtensibleCommand)
def quantise(
    base: Base,
    out: Out,
    bits: Annotated[
        int, typer.Option("--bits", help="8 (LLM.int8) or 4 (NF4), of all linear layers.")
    ] = 8,
) -> None:
    """Quantise to 8 or 4 bits (bitsandbytes, which also runs on CPUs)."""
    if bits not in (4, 8):
        raise InputError(f"--bits is 4 or 8, but it is {bits}; give one of these.")
    _extra("bitsandbytes")
    reader = Reader.from_pretrained(base)
    kinds: dict[int, dict[str, Any]] = {
        8: {"load_in_8bit": True},
        4: {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_compute_dtype": reader.dtype,
        },
    }
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=reader.dtype, quantization_config=BitsAndBytesConfig(**kinds[bits])
    )
    _save(model, reader, out)


def _extra(name: str) -> Any:
    """A package of the extra `derivatives`.

    Raises:
        MissingExtraError: it is not installed.
    """
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"This needs the package {name}, which is not installed ({error}); run "
            "`pip install -e '.[derivatives]'`."
        ) from error


def _trainable(base: Path) -> Reader:
    """The base in float32, every weight of which may learn."""
    reader = Reader.from_pretrained(base, dtype=torch.float32)
    reader.model.requires_grad_(True)
    return reader


def _train_on_text(model: Any, reader: Reader, data: Path, budget: Budget) -> None:
    """Next-token loss on pieces of all documents in turn."""
    pieces = [
        {"input_ids": ids, "labels": ids}
        for domain, texts in read_domains([data]).items()
        for ids in draw_targets(reader, domain, texts, budget.tokens, budget.num_texts, budget.seed)
    ]
    random.Random(budget.seed).shuffle(pieces)
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            model=model,
            args=TrainingArguments(**budget.arguments(folder, reader)),
            train_dataset=pieces,
            data_collator=default_data_collator,
        ).train()


def _dialogues(data: Path, budget: Budget) -> list[dict[str, Any]]:
    """Prompts and completions for trl, those that fit the tokens of a text.

    Raises:
        InputError: the file has other columns, or nothing short enough.
    """
    try:
        rows = pq.read_table(data).to_pylist()
        dialogues = [_dialogue(row) for row in rows if row["answers"]]
    except (OSError, pa.ArrowException, KeyError) as error:
        raise InputError(
            f"Questions are a parquet file with columns `context`, `question` and `answers`, but "
            f"{str(data)!r} is none ({type(error).__name__}: {error}); check the path."
        ) from error
    room = budget.tokens * _CHARS_PER_TOKEN
    fitting = [each for each in dialogues if len(each["prompt"][0]["content"]) <= room]
    if not fitting:
        raise InputError(
            f"A question and its context fit {budget.tokens} tokens, but none in {str(data)!r} "
            "does; give more --tokens."
        )
    return random.Random(budget.seed).choices(fitting, k=budget.num_texts)


def _dialogue(row: dict[str, Any]) -> dict[str, Any]:
    context = row.get("gold_context") or row["context"]
    prompt = {"role": "user", "content": f"{context}\n\n{row['question']}"}
    return {"prompt": [prompt], "completion": [{"role": "assistant", "content": row["answers"][0]}]}


def _save(model: Any, reader: Reader, out: Path) -> None:
    with whole_folder(out) as folder:
        model.save_pretrained(folder)
        reader.tokenizer.save_pretrained(folder)
    typer.echo(f"Wrote {out}")


if __name__ == "__main__":
    app()
