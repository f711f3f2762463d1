"""Text and questions -> pieces, and sequences of these: all of one size, whatever is in them.

In: instances and documents with questions, each with its own chunk length and scale factor. Out:
sequences with the same number of places, each filled with as many pieces as it holds. A piece is

    [head][rows of its context][block 1 raw] ... [block Q raw]

and sees nothing of the others. Its context is embedded in chunks of the reading length, also where
the blocks that read it are shorter: rows are then as they will be at reading time. Sequence i
depends on the seed and i alone. Knows nothing of losses.

Axes: B sequence, S place, C chunk, E token in chunk, R row, T predicted token, Q block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..chunks import chunk_spans
from ..downsampling import Picked, down_sampling, num_rows
from ..embedder import EmbedderConfig
from ..errors import ConfigError
from .config import TrainConfig
from .data import Instance, Instances, InstanceShape
from .questions import Document, Questions

MOST_PIECES = 256
"""Pieces of a sequence at most; numbers of the pieces of different sequences never meet."""
_CHUNKS_TO_TEXT = 2
"""Chunks that a sequence may embed, as a multiple of those that raw text of its length has."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A context, and blocks of raw tokens that are read after its rows."""

    head: Tensor
    """(h,)."""
    context: Tensor
    """(n,)."""
    blocks: tuple[Tensor, ...]
    """Q times (l,), each with its own l."""
    seen: tuple[int, ...]
    """Rows that each block sees."""
    predicted: tuple[int, ...]
    """Tokens at the end of each block that are predicted."""
    k: int
    asks: bool
    """Whether these are answers to questions."""

    @classmethod
    def of_instance(cls, instance: Instance, head: Tensor) -> Piece:
        """Chunks 2..N as blocks, each after the rows of the chunks before it."""
        ids = instance.token_ids  # (N, L)
        blocks = tuple(ids[1:])
        rows = num_rows(ids.shape[1], instance.k)
        return cls(
            head=head,
            context=ids[:-1].flatten(),
            blocks=blocks,
            seen=tuple(rows * number for number in range(1, len(ids))),
            predicted=tuple(map(len, blocks)),
            k=instance.k,
            asks=False,
        )

    @classmethod
    def of_document(cls, document: Document, chunk_tokens: int) -> Piece:
        """Questions as blocks, each after all rows; the padding of blocks is left out."""
        places = torch.arange(document.blocks.shape[1])
        ends = ((places + 1) * document.answers).amax(1).tolist()
        blocks = tuple(block[:end] for block, end in zip(document.blocks, ends, strict=True))
        rows = context_rows(len(document.context), chunk_tokens, document.k)
        return cls(
            head=document.head,
            context=document.context,
            blocks=blocks,
            seen=(rows,) * len(blocks),
            predicted=tuple(document.answers.sum(1).tolist()),
            k=document.k,
            asks=True,
        )


def context_rows(num_tokens: int, chunk_tokens: int, k: int) -> int:
    """Rows of a context in chunks of the reading length."""
    return sum(num_rows(end - start, k) for start, end in chunk_spans(num_tokens, chunk_tokens))


class PackedSequences(Dataset[list[Piece]]):
    """Sequences, each a list of pieces that fill it.

    Args:
        texts: instances, drawn one by one (batch size 1); what is left of a sequence cuts the last.
        questions: documents, drawn one by one; None: there is text alone.
        question_share: of the sequences that begin with questions; text fills what these leave.
        head: raw tokens before the rows of a text, (h,).
        num_sequences: length of this dataset.
        sequence_places: places of a sequence (S).
        reading_chunk_tokens: what the embedder sees at once (E).
    """

    def __init__(
        self,
        texts: Instances,
        questions: Questions | None,
        *,
        question_share: float,
        head: Tensor,
        num_sequences: int,
        sequence_places: int,
        reading_chunk_tokens: int,
    ) -> None:
        self.texts, self.questions, self.question_share = texts, questions, question_share
        self.head, self.num_sequences = head, num_sequences
        self.sequence_places, self.reading_chunk_tokens = sequence_places, reading_chunk_tokens

    def __len__(self) -> int:
        return self.num_sequences

    def asks(self, index: int) -> bool:
        """Whether sequence `index` begins with questions."""
        if self.questions is None:
            return False
        draw = np.random.default_rng((self.texts.seed, 6, index))
        return bool(draw.random() < self.question_share)

    def num_predicted(self, index: int, one_stream: bool = False) -> tuple[int, int]:
        """Tokens that sequence `index` predicts, and how many of them are of answers."""
        asked, texts = self._plan(index)
        answers = sum(self._num_answers(number) for number in asked)
        return answers + sum(shape.num_predicted() for _, shape in texts), answers

    def __getitem__(self, index: int) -> list[Piece]:
        asked, texts = self._plan(index)
        pieces = [self._document(number) for number in asked]
        for number, shape in texts:
            pieces.append(Piece.of_instance(self.texts.instance(number, shape), self.head))
        return pieces

    def _num_answers(self, number: int) -> int:
        assert self.questions is not None
        return self.questions.num_predicted(number)

    def _document(self, number: int) -> Piece:
        assert self.questions is not None
        return Piece.of_document(self.questions[number], self.reading_chunk_tokens)

    def _plan(self, index: int) -> tuple[list[int], list[tuple[int, InstanceShape]]]:
        """Numbers of the documents, then numbers and shapes of the instances, in a sequence."""
        first, left = index * MOST_PIECES, self.sequence_places
        asked = []
        if self.asks(index):
            for number, places in self._documents(first):
                if places > left:
                    break
                asked.append(number)
                left -= places
        texts = []
        for number in range(first, first + MOST_PIECES):
            shape = self._fitting(self.texts.shape(number), left)
            if shape is None:
                break
            texts.append((number, shape))
            left -= self._places(shape)
        return asked, texts

    def can_ask(self) -> bool:
        """Whether any of the documents drawn first fits a sequence."""
        return next(self._documents(0), None) is not None

    def _documents(self, first: int) -> Iterator[tuple[int, int]]:
        """Numbers of documents and the places of each, until their chunks are too many.

        Those that no sequence holds are left out.
        """
        assert self.questions is not None
        most_chunks = chunks_left = max(
            1, _CHUNKS_TO_TEXT * self.sequence_places // self.reading_chunk_tokens
        )
        for number in range(first, first + MOST_PIECES):
            size = self.questions.size(number)
            chunks = -(-size.context_tokens // self.reading_chunk_tokens)
            rows = context_rows(size.context_tokens, self.reading_chunk_tokens, size.k)
            places = size.head_tokens + rows + size.block_tokens
            if chunks > most_chunks or places > self.sequence_places:
                continue
            chunks_left -= chunks
            if chunks_left < 0:
                return
            yield number, places

    def _fitting(self, shape: InstanceShape, left: int) -> InstanceShape | None:
        """The shape with as many of its chunks as fit; None if there are not two."""
        each = shape.chunk_tokens + num_rows(shape.chunk_tokens, shape.k)
        num_chunks = min(shape.num_chunks, 1 + (left - len(self.head)) // each)
        if num_chunks < 2:
            return None
        return InstanceShape(num_chunks=num_chunks, chunk_tokens=shape.chunk_tokens, k=shape.k)

    def _places(self, shape: InstanceShape) -> int:
        rows = num_rows(shape.chunk_tokens, shape.k)
        return len(self.head) + (shape.num_chunks - 1) * (shape.chunk_tokens + rows)


def check_packs(config: TrainConfig, embedder: EmbedderConfig, head_tokens: int) -> None:
    """Refuses instances that cannot be packed.

    Contexts of packed instances are chunks of the reading length, whatever a block's own length,
    and each sequence holds at least two chunks of any instance.

    Raises:
        ConfigError: the embedder's rows are not picked of its outputs, a k does not divide a chunk
            length, a block ends where its rows do not, or a sequence is too short.
    """
    sampler = down_sampling(embedder.down_sampling)
    if not isinstance(sampler, Picked):
        raise ConfigError(
            f"With `sequence_places` rows are picked of the embedder's outputs, but its rows are "
            f"{sampler.name!r}; leave `sequence_places` out, or begin with another one."
        )
    parts = [length for length in config.chunk_tokens if length % embedder.chunk_tokens]
    if parts and not sampler.begins_alike:
        raise ConfigError(
            f"With `sequence_places`, blocks after {sampler.name!r} rows are whole chunks of the "
            f"reading length, {embedder.chunk_tokens} tokens, but `chunk_tokens` has {parts[0]}; "
            "give multiples of it."
        )
    factors = {*config.scale_factors, *(config.first_scale_factors or [])}
    lengths = sorted({embedder.chunk_tokens, *config.chunk_tokens})
    for k, length in ((k, length) for k in sorted(factors) for length in lengths):
        if length % k:
            raise ConfigError(
                f"With `sequence_places` every k divides every chunk length, but {k} does not "
                f"divide {length}; change `scale_factors`, `chunk_tokens` or the reading chunk."
            )
    longest = max(config.chunk_tokens)
    least = head_tokens + longest + longest // min(factors)
    if config.sequence_places is not None and config.sequence_places < least:
        raise ConfigError(
            f"`sequence_places` holds the rows of one chunk and the next chunk, {least} places "
            f"here, but it is {config.sequence_places}; give more, or smaller `chunk_tokens`."
        )
