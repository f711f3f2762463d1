"""A reader's first layers -> the decoder that an embedder is made of.

In: a reader, and how many layers. Out: a decoder of its own, with next to no vocabulary, and the
reader's weights in it. Knows nothing of chunks and rows.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from .errors import InputError
from .reader import Reader

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f")


def first_layers(model: PreTrainedModel, num_layers: int) -> nn.Module:
    """The decoder with its first layers and final norm alone, in float32, with random weights.

    Raises:
        InputError: the model has fewer layers, or none with attention.
    """
    config = model.config.get_text_config()
    if getattr(config, "num_attention_heads", None) is None:
        raise InputError(
            f"An embedder is made of attention layers of its reader, but {type(model).__name__!r} "
            "has none; use a reader with attention."
        )
    total = int(config.num_hidden_layers)
    if num_layers > total:
        raise InputError(
            f"The embedder takes its layers from the reader, which has {total}, but num_layers is "
            f"{num_layers}; give at most {total}."
        )
    shortened = AutoModelForCausalLM.from_config(
        _shortened(model.config, num_layers), dtype=torch.float32
    )
    decoder: nn.Module = shortened.get_decoder()
    return decoder


def copy_layers(reader: Reader, decoder: nn.Module) -> None:
    """Fills the decoder with the reader's weights, but for token embeddings.

    Raises:
        InputError: the reader has some of them not as floats.
    """
    wanted = decoder.state_dict()
    source = {
        name: weight
        for name, weight in reader.model.get_decoder().state_dict().items()
        if name in wanted and weight.shape == wanted[name].shape and weight.dtype in _FLOATS
    }
    missing = sorted(set(wanted) - set(source) - _embedding_names(decoder))
    if missing:
        raise InputError(
            f"A new embedder is a copy of the reader's first layers as floats, but those of "
            f"{reader.name!r} are not (first: {missing[0]!r}); make the embedder from the model "
            "before it was quantised, save it, and load it with from_pretrained() for this one."
        )
    decoder.load_state_dict(source, strict=False)


def _embedding_names(decoder: nn.Module) -> set[str]:
    table = decoder.get_input_embeddings()  # type: ignore[operator]
    return {
        name
        for name, weight in decoder.state_dict(keep_vars=True).items()
        if weight is table.weight
    }


def _shortened(config: PretrainedConfig, num_layers: int) -> PretrainedConfig:
    """The reader's configuration with fewer layers, next to no vocabulary and no dropout.

    The rows of a frozen reader's own layers have no noise, and so few training steps need none.
    """
    short = copy.deepcopy(config.get_text_config())
    short.num_hidden_layers = num_layers
    for name in ("layer_types", "attention_layers", "no_rope_layers"):
        per_layer = getattr(short, name, None)
        if per_layer is not None:
            setattr(short, name, per_layer[:num_layers])
    for name, value in vars(short).items():
        if "drop" in name and isinstance(value, float):
            setattr(short, name, 0.0)
    short.pad_token_id = None
    short.vocab_size = 2
    if hasattr(short, "quantization_config"):
        del short.quantization_config
    return short


def final_norm_name(decoder: nn.Module) -> str:
    """What the decoder calls its final norm.

    Raises:
        InputError: it has none under a known name.
    """
    for name in _FINAL_NORMS:
        if isinstance(getattr(decoder, name, None), nn.Module):
            return name
    raise InputError(
        f"{type(decoder).__name__} has no final norm under the names {', '.join(_FINAL_NORMS)}; "
        "use final_norm=True."
    )
