"""Weights as int8, with one scale an output channel, and back.

In: weights by name. Out: what is kept of them, by name; a quarter of the bytes. Knows nothing of
embedders and files.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from .errors import CheckpointError


def quantize(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Matrices (out, in) as int8 with a float32 scale (out, 1); vectors as they are."""
    kept: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if weight.ndim != 2:
            kept[name] = weight
            continue
        scale = weight.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 127
        kept[f"{name}.int8"] = (weight / scale).round().to(torch.int8)
        kept[f"{name}.scale"] = scale
    return kept


def dequantize(kept: dict[str, Tensor]) -> dict[str, Tensor]:
    """The way back from `quantize`; float weights pass through.

    Raises:
        CheckpointError: a scale is missing.
    """
    weights: dict[str, Tensor] = {}
    for name, tensor in kept.items():
        if name.endswith(".int8"):
            stem = name.removesuffix(".int8")
            scale = kept.get(f"{stem}.scale")
            if not _is_quantized(tensor, scale):
                raise CheckpointError(
                    f"An int8 matrix has one scale an output channel, but {stem!r} has not; copy "
                    "or train the checkpoint again."
                )
            weights[stem] = tensor.float() * cast(Tensor, scale)
        elif not name.endswith(".scale") or f"{name.removesuffix('.scale')}.int8" not in kept:
            weights[name] = tensor
    return weights


def _is_quantized(matrix: Tensor, scale: Tensor | None) -> bool:
    if matrix.ndim != 2 or matrix.dtype is not torch.int8 or scale is None:
        return False
    return scale.shape == (len(matrix), 1) and scale.dtype is torch.float32
