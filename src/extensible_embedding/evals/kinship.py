"""What one reader is to another: the same, a derivative, or another model.

In: two readers. Out: what they have in common. It looks at what they are, not at how they read.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..reader import Reader

OWN, DERIVATIVE, ANOTHER = "own", "derivative", "another"
KIN_COSINE = 0.9
"""Cosine of the tables of token embeddings from which a reader is taken for a derivative."""

_PROBE = (
    "def f(x1):\n\treturn  x1 + 2024.5  # na\u00efve \u03bb, 'quoted'\r\n\nThe End... \U0001f642"
)
_USE_OF_WEIGHTS = (
    "rope", "eps", "window", "head", "hidden_act", "softcap", "scal", "multiplier", "layer_types",
    "attn", "expert", "norm",
)  # fmt: skip
"""Parts of the names of settings that change what weights compute."""
_SAMPLED_VALUES, _SAMPLED_TOKENS = 256, 4096


@dataclass(frozen=True, kw_only=True)
class Kinship:
    """What a reader is to the one that an embedder was trained with."""

    relation: str
    """own: the same in all below; derivative: the same sizes and tokenizer, and token embeddings
    that agree; another: neither."""
    same_sizes: bool
    """Hidden size, vocabulary and number of layers."""
    same_tokenizer: bool
    """Every token of the one has the same id, and a text is split alike."""
    embedding_cosine: float | None
    """Between the tables of token embeddings, as vectors; None where their sizes differ."""
    same_weights: bool
    """The same names, and the same values as far as bfloat16 tells them apart."""
    same_settings: bool
    """What the configuration says of how weights are used, such as rotary positions."""


def compare_readers(own: Reader, reader: Reader) -> Kinship:
    """What a reader is to `own`."""
    sizes = [(each.hidden_size, each.vocab_size, each.num_layers) for each in (own, reader)]
    tokenizer = _same_tokenizer(own, reader)
    cosine = _embedding_cosine(own, reader) if sizes[0][:2] == sizes[1][:2] else None
    weights = sizes[0] == sizes[1] and _same_weights(own, reader)
    settings = _settings(own) == _settings(reader)
    kin = sizes[0] == sizes[1] and tokenizer and cosine is not None and cosine >= KIN_COSINE
    return Kinship(
        relation=(OWN if weights and settings else DERIVATIVE) if kin else ANOTHER,
        same_sizes=sizes[0] == sizes[1],
        same_tokenizer=tokenizer,
        embedding_cosine=cosine,
        same_weights=weights,
        same_settings=settings,
    )


def reader_digest(reader: Reader) -> str:
    """Tells readers apart by all that they compute with: samples of all weights, and settings.

    A fingerprint sees token embeddings alone. What was measured of one reader belongs to this.
    """
    digest = hashlib.sha256(json.dumps(_settings(reader), sort_keys=True).encode())
    for name, sample in weight_samples(reader).items():
        digest.update(name.encode() + sample.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def belongs_to_reader(reader: Reader) -> dict[str, object]:
    """What a journal of this reader's measurements says of it."""
    return {
        "reader": reader.fingerprint,
        "reader weights": reader_digest(reader),
        "dtype": str(reader.dtype),
        "window": reader.window,
    }


def _settings(reader: Reader) -> dict[str, Any]:
    """What a configuration says of how weights are used; what is off counts as not said."""
    said = reader.model.config.get_text_config().to_dict()
    return {
        name: _rounded(value)
        for name, value in said.items()
        if value not in (None, False) and any(word in name for word in _USE_OF_WEIGHTS)
    }


def _rounded(value: Any) -> Any:
    """Numbers to four digits: formats of models keep more or fewer of them."""
    if isinstance(value, dict):
        return {str(name): _rounded(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def weight_samples(reader: Reader) -> dict[str, Tensor]:
    """Some values of every weight, as bfloat16: the same in whatever dtype it was loaded.

    A fingerprint sees token embeddings alone, which adapters and quantised layers leave alone.
    """
    return {
        name: weight.detach()
        .reshape(-1)[:: max(1, weight.numel() // _SAMPLED_VALUES)]
        .to("cpu", torch.bfloat16)
        for name, weight in reader.model.state_dict().items()
    }


def _same_weights(own: Reader, reader: Reader) -> bool:
    one, other = weight_samples(own), weight_samples(reader)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _same_tokenizer(own: Reader, reader: Reader) -> bool:
    mine, theirs = own.tokenizer.get_vocab(), reader.tokenizer.get_vocab()
    if not mine.items() <= theirs.items():
        return False
    return own.encode(_PROBE).tolist() == reader.encode(_PROBE).tolist()


def _embedding_cosine(own: Reader, reader: Reader) -> float:
    ids = torch.arange(0, own.vocab_size, max(1, own.vocab_size // _SAMPLED_TOKENS))
    one, other = (each.embed_tokens(ids).float().cpu().flatten() for each in (own, reader))
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0))
