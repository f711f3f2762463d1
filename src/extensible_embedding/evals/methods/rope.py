"""Raw reading beyond the trained window, with rescaled rotary positions.

Position interpolation (Chen et al. 2023, arXiv 2306.15595), dynamic NTK scaling, and YaRN (Peng et
al. 2023, arXiv 2309.00071), as transformers computes them. They read every token raw, so that their
rows and their cost grow with the context: the window does not limit them, and their records say how
many rows they took.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...reader import Reader
from .base import CannotRunError, EmbedsReading, Method, Passage, Reading, raw_reading


@dataclass(frozen=True, kw_only=True)
class ScaledReading(EmbedsReading):
    """A raw reading with rescaled positions while it runs."""

    rope_type: str
    factor: float

    def nll(self, target_ids: Tensor) -> Tensor:
        """Loss in nats of each target token, (t,)."""
        with scaled_positions(self.reader, self.rope_type, self.factor):
            return super().nll(target_ids)

    def generate(self, max_new_tokens: int) -> str:
        """Greedy continuation."""
        with scaled_positions(self.reader, self.rope_type, self.factor):
            return super().generate(max_new_tokens)


class RopeScaling(Method):
    """Reads all of the context raw; positions are rescaled where they exceed the trained window.

    Args:
        reader: with rotary positions.
        new_tokens: rows that may follow the passage.
    """

    reads_every_token = True
    rope_type: str

    def __init__(self, reader: Reader, new_tokens: int = 512) -> None:
        super().__init__(reader)
        self.new_tokens = new_tokens

    def read(self, passage: Passage, room: int) -> Reading:
        """Head, the whole context, tail; `room` does not limit it."""
        plain = raw_reading(self.reader, passage, passage.context)
        factor = (plain.num_rows + self.new_tokens) / self.reader.window
        if factor <= 1:
            return plain
        rotary_of(self.reader)
        return ScaledReading(
            reader=self.reader, embeds=plain.embeds, rope_type=self.rope_type, factor=factor
        )


class PositionInterpolation(RopeScaling):
    """Positions divided by the factor by which the context exceeds the window."""

    name = "pi"
    rope_type = "linear"


class DynamicNtk(RopeScaling):
    """A larger rotary base, chosen by the length."""

    name = "ntk"
    rope_type = "dynamic"


class Yarn(RopeScaling):
    """Interpolation by frequency, with a temperature."""

    name = "yarn"
    rope_type = "yarn"


def rotary_of(reader: Reader) -> nn.Module:
    """The module that makes the reader's rotary positions.

    Raises:
        CannotRunError: the reader has none, or several kinds.
    """
    rotary = getattr(reader.model.get_decoder(), "rotary_emb", None)
    parameters = getattr(reader.model.config.get_text_config(), "rope_parameters", None)
    if rotary is None or parameters is None or "rope_type" not in parameters:
        raise CannotRunError(f"{reader.name} has no rotary positions of one kind to rescale")
    return rotary  # type: ignore[no-any-return]


@contextmanager
def scaled_positions(reader: Reader, rope_type: str, factor: float) -> Iterator[None]:
    """The reader's rotary positions, rescaled; undone on leaving."""
    before, decoder = rotary_of(reader), reader.model.get_decoder()
    config = copy.deepcopy(reader.model.config.get_text_config())
    config.rope_parameters = {
        **config.rope_parameters,
        "rope_type": rope_type,
        "factor": factor,
        "original_max_position_embeddings": reader.window,
    }
    decoder.rotary_emb = type(before)(config=config).to(reader.device, torch.float32)
    try:
        yield
    finally:
        decoder.rotary_emb = before
