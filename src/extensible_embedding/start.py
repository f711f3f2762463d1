"""A reader and its first layers -> where a new embedder's rows begin.

In: a reader, and layers copied from it. Out: the factor that makes their outputs rows which stand
in the reader as hidden states of the last layer taken. Knows nothing of chunks and training.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .errors import InputError
from .picked import blocks
from .reader import Reader

LENGTHS = 4.0
"""How many times as long as a hidden state a row begins.

What the reader's first layers add to it then counts little, so that its later layers meet the state
of a text that has been read.
"""
LARGEST_START = 1e6


@torch.inference_mode()
def measured_start(reader: Reader, layers: nn.Module, num_layers: int) -> float:
    """The factor c with which c f(text) is `LENGTHS` times as long as hidden states, 2 digits.

    Lengths are root mean squares, the medians over the tokens of a short text: first tokens have
    states many times as long. Where a reader scales what it takes in, c is divided by it.

    Args:
        reader: that the rows are for.
        layers: copied from it, with or without a final norm.
        num_layers: how many these are.

    Raises:
        InputError: the reader's states, or the outputs, are not of any length.
    """
    tokens = reader.embed_tokens(reader.encode(_TEXT)[: reader.window])[None]
    taken_in, states = _first_and_last(reader, tokens, num_layers)
    nothing, _ = _first_and_last(reader, torch.zeros_like(tokens), num_layers)
    with _evaluating(layers):
        outputs = layers(inputs_embeds=tokens.float(), use_cache=False).last_hidden_state
    scale = _length(taken_in - nothing) / max(_length(tokens), 1e-9)
    start = LENGTHS * _length(states) / max(_length(outputs) * scale, 1e-9)
    if not 0 < start <= LARGEST_START:
        raise InputError(
            f"Rows begin as long as hidden states, but those of {reader.name!r} after layer "
            f"{num_layers} have the length {_length(states)} and the outputs {_length(outputs)}; "
            "give a projection_start, or look whether the reader computes as it should."
        )
    return float(f"{start:.2g}")


def _first_and_last(reader: Reader, embeds: Tensor, num_layers: int) -> tuple[Tensor, Tensor]:
    """What a reader's first block takes in, and what the last of some first ones gives out."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor | tuple[Tensor, ...]) -> None:
        seen.append(output if isinstance(output, Tensor) else output[0])

    decoder = reader.model.get_decoder()
    handle = blocks(decoder)[num_layers - 1].register_forward_hook(keep)
    try:
        read = decoder(inputs_embeds=embeds, use_cache=False, output_hidden_states=True)
    finally:
        handle.remove()
    return read.hidden_states[0].float(), seen[0].float()


@contextmanager
def _evaluating(layers: nn.Module) -> Iterator[None]:
    training = layers.training
    layers.eval()
    try:
        yield
    finally:
        layers.train(training)


def _length(states: Tensor) -> float:
    return float(states.float().pow(2).mean(-1).sqrt().median())


_TEXT = """The ferry left at seven, and by noon the island was a grey line behind them. "You never
told her," said Martin, who had not spoken since the harbour. She looked at the water. "No. There
was a letter, in March of 1921; I burned it."

# Returns the mean of the values, or None if there are none.
def mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None

To install the package, run `pip install numbers` in a terminal. Version 3.2 reads both formats; see
the section on settings for what each of them means.
"""
