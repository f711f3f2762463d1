"""Embedder outputs -> rows: which outputs of a chunk stand for its tokens.

In: the outputs of one chunk, (L, H), and the scale factor k (tokens per row). Out: its rows,
(R, H), with R = ceil(L / k), and which tokens each stands for: all of the chunk's are some row's.
Knows nothing of the embedder. A new way of down-sampling is one class with one method.

Paper: arXiv 2402.11577 (strided); arXiv 2401.07793, ablation (random, terminal).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from .chunks import chunk_spans
from .errors import InputError


def check_scale_factor(k: object) -> int:
    """Returns k if it is an integer of 1 or more, else raises InputError."""
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise InputError(
            f"A scale factor k is a whole number of tokens per row, 1 or more, but k is {k!r}; "
            'give for example k=4, or k="auto" where the reader chooses.'
        )
    return k


def num_rows(num_tokens: int, k: int) -> int:
    """Rows that stand for one chunk of `num_tokens` at scale factor k."""
    return -(-num_tokens // k)


def row_ends(num_tokens: int, k: int) -> Tensor:
    """Token offset after the last token of each row of a chunk, shape (R,)."""
    return torch.arange(1, num_rows(num_tokens, k) + 1).mul_(k).clamp_(max=num_tokens)


class DownSampling(ABC):
    """One obligatory method: the rows of one chunk."""

    name: ClassVar[str]
    nests: ClassVar[bool]
    """Whether rows at a multiple of k follow from rows at k."""
    begins_alike: ClassVar[bool] = False
    """Whether the first rows of a chunk are the rows of its first tokens, whatever follows them."""

    @abstractmethod
    def rows(self, outputs: Tensor, k: int) -> Tensor:
        """Rows (R, H) of one chunk's outputs (L, H), R = ceil(L / k)."""

    def row_ends(self, num_tokens: int, k: int) -> Tensor:
        """Token offset after the last token that each row of a chunk stands for, (R,)."""
        return row_ends(num_tokens, k)

    def context_row_ends(self, num_tokens: int, chunk_tokens: int, k: int) -> Tensor:
        """The same of a context in chunks, (R,)."""
        whole, rest = divmod(num_tokens, chunk_tokens)
        each, last = self.row_ends(chunk_tokens, k), self.row_ends(rest, k)
        return _in_each_chunk(each, last, whole, chunk_tokens)

    def places(self, num_tokens: int, k: int) -> Tensor | None:
        """Which outputs (R,) of a chunk of `num_tokens` its rows are; None: a row is of several."""
        return None

    def coarser(self, rows: Tensor, num_tokens: int, k: int, factor: int) -> Tensor:
        """Rows at k * factor from the rows (R, H) at k of a chunk of `num_tokens`.

        Raises:
            InputError: this down-sampling does not nest.
        """
        raise self._does_not_nest(k, factor)

    def context_coarser(
        self, rows: Tensor, num_tokens: int, chunk_tokens: int, k: int, factor: int
    ) -> Tensor:
        """The same of a context in chunks."""
        lengths = [end - start for start, end in chunk_spans(num_tokens, chunk_tokens)]
        parts = rows.split([num_rows(length, k) for length in lengths])
        coarser = [
            self.coarser(part, length, k, factor)
            for part, length in zip(parts, lengths, strict=True)
        ]
        return torch.cat(coarser)

    def _does_not_nest(self, k: int, factor: int) -> InputError:
        return InputError(
            f"Rows made by {self.name!r} down-sampling cannot be read at another scale factor "
            f"(asked: {k * factor}, made: {k}); compress the text again at k={k * factor}."
        )


class Picked(DownSampling):
    """A down-sampling whose rows are some of the outputs: no other needs to be computed whole."""

    @abstractmethod
    def places(self, num_tokens: int, k: int) -> Tensor:
        """Which outputs (R,) of a chunk of `num_tokens` its rows are, in order."""

    def rows(self, outputs: Tensor, k: int) -> Tensor:
        return outputs[self.places(len(outputs), k).to(outputs.device)]

    def row_ends(self, num_tokens: int, k: int) -> Tensor:
        ends = self.places(num_tokens, k) + 1
        ends[-1:] = num_tokens  # what follows the last row's output is its own too
        return ends

    def kept(self, num_tokens: int, k: int, factor: int) -> Tensor:
        """Which of the rows at k of a chunk of `num_tokens` are its rows at k * factor, in order.

        Raises:
            InputError: this down-sampling does not nest.
        """
        if not self.nests:
            raise self._does_not_nest(k, factor)
        fine, coarse = self.places(num_tokens, k), self.places(num_tokens, k * factor)
        return torch.searchsorted(fine, coarse)

    def context_kept(self, num_tokens: int, chunk_tokens: int, k: int, factor: int) -> Tensor:
        """The same of a context in chunks."""
        whole, rest = divmod(num_tokens, chunk_tokens)
        each, last = self.kept(chunk_tokens, k, factor), self.kept(rest, k, factor)
        return _in_each_chunk(each, last, whole, num_rows(chunk_tokens, k))

    def coarser(self, rows: Tensor, num_tokens: int, k: int, factor: int) -> Tensor:
        return rows[self.kept(num_tokens, k, factor).to(rows.device)]

    def context_coarser(
        self, rows: Tensor, num_tokens: int, chunk_tokens: int, k: int, factor: int
    ) -> Tensor:
        return rows[self.context_kept(num_tokens, chunk_tokens, k, factor).to(rows.device)]


class Strided(Picked):
    """The last output of every k (the paper's choice)."""

    name = "strided"
    nests = begins_alike = True

    def places(self, num_tokens: int, k: int) -> Tensor:
        return row_ends(num_tokens, k) - 1


class Mean(DownSampling):
    """The mean of every k outputs."""

    name = "mean"
    nests = begins_alike = True

    def rows(self, outputs: Tensor, k: int) -> Tensor:
        return self._pool(outputs, outputs.new_ones(len(outputs)), k)

    def coarser(self, rows: Tensor, num_tokens: int, k: int, factor: int) -> Tensor:
        weights = rows.new_full((len(rows),), k)
        weights[-1] = num_tokens - k * (len(rows) - 1)
        return self._pool(rows, weights, factor)

    @staticmethod
    def _pool(outputs: Tensor, weights: Tensor, k: int) -> Tensor:
        """Weighted mean of every k outputs (L, H); float32 inside."""
        row_of = torch.arange(len(outputs), device=outputs.device) // k
        shape = (num_rows(len(outputs), k), outputs.shape[-1])
        weighted = outputs.float() * weights.float()[:, None]
        sums = torch.zeros(shape, device=outputs.device).index_add(0, row_of, weighted)
        totals = torch.zeros(shape[0], device=outputs.device).index_add(0, row_of, weights.float())
        return (sums / totals[:, None]).to(outputs.dtype)


class Terminal(Picked):
    """The last R outputs of the chunk."""

    name = "terminal"
    nests = True

    def places(self, num_tokens: int, k: int) -> Tensor:
        return torch.arange(num_tokens - num_rows(num_tokens, k), num_tokens)


class Random(Picked):
    """R outputs drawn without replacement, in order; the same draw for the same L and k."""

    name = "random"
    nests = False

    def places(self, num_tokens: int, k: int) -> Tensor:
        generator = torch.Generator().manual_seed(num_tokens * 1_000_003 + k)
        order = torch.randperm(num_tokens, generator=generator)
        return order[: num_rows(num_tokens, k)].sort().values


def _in_each_chunk(each: Tensor, last: Tensor, whole: int, size: int) -> Tensor:
    """Numbers in each of the whole chunks and in a shorter last one, as numbers in all."""
    firsts = size * torch.arange(whole)
    return torch.cat([(firsts[:, None] + each).flatten(), size * whole + last])


DOWN_SAMPLINGS: dict[str, type[DownSampling]] = {
    cls.name: cls for cls in (Strided, Mean, Terminal, Random)
}


def down_sampling(name: str) -> DownSampling:
    """The down-sampling of that name.

    Raises:
        InputError: there is none.
    """
    if name not in DOWN_SAMPLINGS:
        raise InputError(
            f"There is no down-sampling {name!r}; choose one of {', '.join(DOWN_SAMPLINGS)}."
        )
    return DOWN_SAMPLINGS[name]()
