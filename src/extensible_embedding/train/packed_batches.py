"""Sequences of pieces -> packed batches, for a GPU: tensors whose shape hardly changes.

In: lists of pieces, each list for one sequence. Out: a batch: the chunks of all contexts, where
their rows stand, raw tokens, and what each place sees, predicts and weighs. Knows nothing of how
pieces are drawn.

Axes: B sequence, S place, C chunk, E token in chunk, R row, T predicted token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..chunks import chunk_spans
from ..downsampling import Picked, down_sampling
from .data import Instance
from .packing import Piece, context_rows
from .questions import collate


class Packed(TypedDict):
    """A batch of packed sequences."""

    chunks: Tensor
    """(C, E) token ids of all contexts, padded on the right."""
    row_outputs: Tensor
    """(R,) which output of the embedder, of C * E, each row is."""
    row_places: Tensor
    """(R,) where it stands, of B * S places."""
    token_ids: Tensor
    """(B, S) raw tokens; anything where there are rows."""
    positions: Tensor
    """(B, S)."""
    start: Tensor
    """(B, S) the first place of the head that a place sees, in its sequence."""
    seen: Tensor
    """(B, S) the place after the last of head and rows that a place sees."""
    own: Tensor
    """(B, S) the first place of the block that a place belongs to; of head and rows, itself."""
    predicted_at: Tensor
    """(T,) which place, of B * S, predicts each label."""
    labels: Tensor
    """(T,)."""
    weights: Tensor
    """(T,) of each label's loss, 1 in all."""


def collate_packed(
    sequences: Sequence[list[Piece] | Instance],
    *,
    sequence_places: int,
    chunk_tokens: int,
    question_share: float,
    sampling: str,
) -> dict[str, Any]:
    """A batch as `{"packed": Packed}`; instances, drawn to evaluate, as `collate` has it.

    Args:
        sequences: B lists of pieces.
        sequence_places: S.
        chunk_tokens: what the embedder sees at once (E).
        question_share: weight of the mean loss of all answers beside that of all text; where there
            is but one of them, its weight is 1.
        sampling: name of the embedder's down-sampling, one that picks.
    """
    drawn = [each for each in sequences if isinstance(each, Instance)]
    if drawn:
        return collate(drawn)
    packer = _Packer(len(sequences), sequence_places, chunk_tokens, sampling)
    for number, pieces in enumerate(sequences):
        packer.open(number)
        for piece in pieces:  # type: ignore[union-attr]
            packer.add(piece)
    return {"packed": packer.batch(question_share)}


class _Packer:
    """Fills a batch, place by place."""

    def __init__(
        self, num_sequences: int, sequence_places: int, chunk_tokens: int, sampling: str
    ) -> None:
        size, sampler = num_sequences * sequence_places, down_sampling(sampling)
        assert isinstance(sampler, Picked)
        self.sampler = sampler
        self.shape, self.chunk_tokens = (num_sequences, sequence_places), chunk_tokens
        self.token_ids, self.positions = np.zeros(size, np.int64), np.zeros(size, np.int64)
        # A place that is left over sees nothing but itself.
        self.own = np.tile(np.arange(sequence_places, dtype=np.int32), num_sequences)
        self.start, self.seen = np.zeros(size, np.int32), np.zeros(size, np.int32)
        self.chunks: list[NDArray[np.int64]] = []
        self.row_outputs: list[NDArray[np.int64]] = []
        self.row_places: list[NDArray[np.int64]] = []
        self.predicted_at: list[NDArray[np.int64]] = []
        self.labels: list[NDArray[np.int64]] = []
        self.asks: list[NDArray[np.bool_]] = []
        self.place = self.base = 0

    def open(self, number: int) -> None:
        """Goes to the first place of a sequence."""
        self.place = self.base = number * self.shape[1]

    def add(self, piece: Piece) -> None:
        """Puts a piece at the next places."""
        start, num_head = self.place, len(piece.head)
        num_all_rows = context_rows(len(piece.context), self.chunk_tokens, piece.k)
        self._embed(piece.context.numpy(), piece.k, start + num_head)
        end = start + num_head + num_all_rows
        self.token_ids[start : start + num_head] = piece.head.numpy()
        self.positions[start:end] = np.arange(end - start)
        self.start[start:end] = start - self.base
        self.seen[start:end] = np.arange(start, end) - self.base + 1
        self.place = end
        for block, seen, predicted in zip(piece.blocks, piece.seen, piece.predicted, strict=True):
            self._add_block(block.numpy(), start, start + num_head + seen, predicted, piece.asks)

    def _embed(self, context: NDArray[np.int64], k: int, place: int) -> None:
        """Adds a context's chunks, and its rows from a place on."""
        for start, end in chunk_spans(len(context), self.chunk_tokens):
            chunk = np.zeros(self.chunk_tokens, np.int64)
            chunk[: end - start] = context[start:end]
            picked = self.sampler.places(end - start, k).numpy()
            self.row_outputs.append(len(self.chunks) * self.chunk_tokens + picked)
            self.row_places.append(np.arange(place, place + len(picked)))
            self.chunks.append(chunk)
            place += len(picked)

    def _add_block(
        self, block: NDArray[np.int64], start: int, seen: int, predicted: int, asks: bool
    ) -> None:
        """Puts a block at the next places; it goes on after the last row that it sees."""
        first, end = self.place, self.place + len(block)
        self.token_ids[first:end] = block
        self.positions[first:end] = seen - start + np.arange(len(block))
        self.own[first:end] = first - self.base
        self.start[first:end], self.seen[first:end] = start - self.base, seen - self.base
        before = np.concatenate([[seen - 1], np.arange(first, end - 1)])
        self.predicted_at.append(before[len(block) - predicted :])
        self.labels.append(block[len(block) - predicted :])
        self.asks.append(np.full(predicted, asks))
        self.place = end

    def batch(self, question_share: float) -> Packed:
        """What has been put there."""
        asks = np.concatenate(self.asks)
        arrays = {
            "chunks": np.stack(self.chunks),
            "row_outputs": np.concatenate(self.row_outputs),
            "row_places": np.concatenate(self.row_places),
            "predicted_at": np.concatenate(self.predicted_at),
            "labels": np.concatenate(self.labels),
            "weights": _weights(asks, question_share),
        }
        for name in ("token_ids", "positions", "start", "seen", "own"):
            arrays[name] = getattr(self, name).reshape(self.shape)
        made = {name: torch.from_numpy(each) for name, each in arrays.items()}
        return cast(Packed, made)


def _weights(asks: NDArray[np.bool_], question_share: float) -> NDArray[np.float32]:
    """Weights (T,) of the labels, of which some are of answers (T,)."""
    num_answers = int(asks.sum())
    if num_answers in (0, len(asks)):
        return np.full(len(asks), 1 / len(asks), np.float32)
    shares = question_share / num_answers, (1 - question_share) / (len(asks) - num_answers)
    return np.where(asks, *shares).astype(np.float32)
