"""The contract of a method: what a reader sees of a context that may not fit its window.

In: a passage (head, context, tail as token ids) and the rows that it may take. Out: a `Reading`,
which gives the loss of the tokens that follow or generates them. A method knows nothing of tasks,
scores and records.

Axes: n context token, t target token, S row of the prompt, H hidden size of the reader.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from ...errors import WindowError
from ...generation import last_logits
from ...reader import Reader


class CannotRunError(Exception):
    """The method cannot run here; the text says why, and goes into the record."""


@dataclass(frozen=True, kw_only=True)
class Passage:
    """What a task wants read: raw head, a context, raw tail; token ids each."""

    head: Tensor
    context: Tensor
    tail: Tensor
    num_next: int = 0
    """Tokens that are predicted after it, for which the window has places left."""
    question: str = ""
    """What the tail asks, without the words around it; empty: the whole tail asks."""

    @property
    def num_frame(self) -> int:
        """Rows of head and tail, which every method reads raw."""
        return len(self.head) + len(self.tail)


class Reading(Protocol):
    """A passage as a method reads it."""

    @property
    def num_rows(self) -> int:
        """Rows that the reader holds before anything new."""

    @property
    def k(self) -> int:
        """Tokens that a row of the compressed part stands for; 1: nothing is compressed."""

    def nll(self, target_ids: Tensor) -> Tensor:
        """Loss in nats of each target token, (t,)."""

    def generate(self, max_new_tokens: int) -> str:
        """Greedy continuation."""


@dataclass(frozen=True, kw_only=True)
class EmbedsReading:
    """A reading by input embeddings alone: no state of the reader is touched."""

    reader: Reader
    embeds: Tensor
    """(S, H)."""
    k: int = 1

    @property
    def num_rows(self) -> int:
        """Rows before anything new."""
        return len(self.embeds)

    def nll(self, target_ids: Tensor) -> Tensor:
        """Loss in nats of each target token, (t,)."""
        return self.reader.nll(self.embeds, target_ids)

    def generate(self, max_new_tokens: int) -> str:
        """Greedy continuation."""
        return greedy(self.reader, self.embeds, max_new_tokens)


class Method(ABC):
    """One way to read a context; stateless but for its reader and settings."""

    name: str
    version: ClassVar[int] = 1
    """Rises when the same name and settings read otherwise, so that old losses stand apart."""
    reads_every_token: ClassVar[bool] = False
    """Whether the reader itself runs on every token, so that the cost grows with the context."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    @classmethod
    def label(cls) -> str:
        """Name and version, as journals have them."""
        return cls.name if cls.version == 1 else f"{cls.name}/{cls.version}"

    @abstractmethod
    def read(self, passage: Passage, room: int) -> Reading:
        """The passage in at most `room` rows.

        Raises:
            WindowError: it does not fit by this method.
            CannotRunError: the method cannot run here.
        """


class SelectionMethod(Method):
    """A method that reads some of the context's tokens raw, in their order."""

    @abstractmethod
    def select(self, passage: Passage, room: int) -> Tensor:
        """Token ids of at most `room` tokens of the context."""

    def read(self, passage: Passage, room: int) -> Reading:
        """Head, the tokens selected, tail."""
        kept = self.select(passage, room_for_context(passage, room))
        return raw_reading(self.reader, passage, kept)


def room_for_context(passage: Passage, room: int) -> int:
    """Rows left for the context.

    Raises:
        WindowError: head and tail alone do not fit.
    """
    left = room - passage.num_frame
    if left < 0:
        raise WindowError(
            f"Head and tail must fit in {room} rows, but they take {passage.num_frame}; use a "
            "larger window or a shorter question."
        )
    return left


def raw_reading(reader: Reader, passage: Passage, token_ids: Tensor) -> EmbedsReading:
    """Head, some token ids in place of the context, tail: all raw."""
    ids = torch.cat([passage.head, token_ids, passage.tail])
    return EmbedsReading(reader=reader, embeds=reader.embed_tokens(ids))


def greedy(reader: Reader, embeds: Tensor, max_new_tokens: int) -> str:
    """Greedy continuation of input embeddings (S, H), as text."""
    return reader.decode(greedy_ids(reader, embeds, max_new_tokens))


@torch.inference_mode()
def greedy_ids(reader: Reader, embeds: Tensor, max_new_tokens: int) -> Tensor:
    """Greedy continuation of input embeddings (S, H): token ids, an end token included."""
    inputs = embeds[None].to(reader.device, reader.dtype)
    least = reader.model.generation_config.min_new_tokens or 0
    output: Tensor = reader.model.generate(
        inputs_embeds=inputs,
        attention_mask=torch.ones(inputs.shape[:2], dtype=torch.long, device=reader.device),
        max_new_tokens=max_new_tokens,
        min_new_tokens=min(least, max_new_tokens) or None,
        do_sample=False,
        pad_token_id=reader.tokenizer.eos_token_id,
        **last_logits(reader),
    )
    return output[0].cpu()
