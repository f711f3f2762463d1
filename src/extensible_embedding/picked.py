"""Outputs at some places only, without computing the others to the end.

In: a decoder and the places (R,) whose outputs are wanted. Out: the same decoder, whose last MLP
runs on those places alone while the context lasts. Attention needs every token in every layer, the
last MLP does not: nothing comes after it in which tokens see each other. Knows nothing of rows.

Axes: C chunk, L token in chunk, R row, H hidden size.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def computes_only(decoder: nn.Module, places: Tensor | None) -> Iterator[None]:
    """Makes outputs elsewhere than at `places` meaningless, and cheap; undone on leaving.

    Without places, and in decoders whose last block has no MLP of its own, all are computed. Other
    threads that run the same decoder meanwhile are left alone.
    """
    mlp = getattr(last_block(decoder), "mlp", None)
    if places is None or mlp is None:
        yield
        return
    picked = _Picked(places)
    handles = [
        mlp.register_forward_pre_hook(picked.before),
        mlp.register_forward_hook(picked.after),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def blocks(decoder: nn.Module) -> nn.ModuleList:
    """The decoder's blocks, its longest list of modules."""
    lists = [module for module in decoder.children() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len)


def last_block(decoder: nn.Module) -> nn.Module:
    """The last of the decoder's blocks."""
    return blocks(decoder)[-1]


class _Picked:
    """Hooks of a module that acts on every token alone: it gets some tokens, and gives back all."""

    def __init__(self, places: Tensor) -> None:
        self.places, self.num_tokens = places, 0
        self.thread = threading.get_ident()

    def before(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Of every input (C, L, H), the tokens at the places: (C, R, H)."""
        if threading.get_ident() != self.thread:
            return None
        self.num_tokens = inputs[0].shape[1]
        return tuple(part[:, self.places] if isinstance(part, Tensor) else part for part in inputs)

    def after(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        """The output (C, R, H) at its places in zeros (C, L, H)."""
        if threading.get_ident() != self.thread:
            return None
        if isinstance(output, tuple):  # some mixtures of experts give their routing with it
            return self.after(module, inputs, output[0]), *output[1:]
        whole = output.new_zeros(len(output), self.num_tokens, output.shape[-1])
        whole[:, self.places] = output
        return whole
