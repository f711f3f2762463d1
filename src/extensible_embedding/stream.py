"""Online reading: a context that grows, in a window that does not.

In: text as it comes. Out: at any time, a prompt that fits: [head][rows of older text][recent text
raw][tail]. When the window is full the oldest raw chunk becomes rows; when rows fill their share
they are read at twice the scale factor; at the largest allowed, the oldest rows go. Memory does not
grow with the text.

Paper: arXiv 2402.11577, online use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .answer import Answer, AnswerStream
from .downsampling import check_scale_factor, down_sampling
from .embedder import ExtensibleEmbedder
from .errors import InputError, WindowError
from .prompt import Prompt, language_head, question_frame


class ContextStream:
    """Keeps recent text raw and the older text as rows.

    Attributes:
        k: scale factor of the rows now; it doubles when rows fill their share of the window.
        num_tokens: tokens appended so far.
        num_dropped_tokens: oldest tokens whose rows had to go.
    """

    def __init__(
        self,
        embedder: ExtensibleEmbedder,
        *,
        k: int = 4,
        max_k: int | None = None,
        window: int | None = None,
        reserve_rows: int = 512,
    ) -> None:
        """Starts empty.

        Args:
            embedder: makes the rows.
            k: scale factor to begin with.
            max_k: largest that it may grow to, by default the embedder's.
            window: rows in all, by default the reader's window.
            reserve_rows: rows kept free for head, question and new tokens.

        Raises:
            InputError: k is not usable, or the down-sampling does not nest.
            WindowError: the window does not hold the reserve and two chunks.
        """
        self.embedder, self.k = embedder, check_scale_factor(k)
        self.max_k = max_k or embedder.config.max_k
        self.room = (window or embedder.reader.window) - reserve_rows
        self._sampler = down_sampling(embedder.config.down_sampling)
        self._chunk = embedder.config.chunk_tokens
        if not self._sampler.nests or k < 2:
            raise InputError(
                "A growing context is read with a down-sampling that nests and k of 2 or more, but "
                f"it is {self._sampler.name} at k={k}; use strided or mean."
            )
        if self.room < 2 * self._chunk:
            raise WindowError(
                f"A growing context needs room for two chunks of {self._chunk} tokens beside the "
                f"{reserve_rows} rows kept free, but only {self.room} are left; use a larger one."
            )
        self._rows: list[Tensor] = []
        self._recent = torch.empty(0, dtype=torch.long)
        self.num_tokens = self.num_dropped_tokens = 0

    @property
    def num_rows(self) -> int:
        """Rows of the older text."""
        return sum(len(rows) for rows in self._rows)

    @property
    def num_recent(self) -> int:
        """Tokens that are still raw."""
        return len(self._recent)

    def append(self, text: str | Sequence[int] | Tensor) -> None:
        """Takes more text, or its token ids (n,), in pieces of any size."""
        reader = self.embedder.reader
        ids = reader.encode(text) if isinstance(text, str) else torch.as_tensor(text).long()
        if len(ids) == 0:
            return
        reader.check_ids(ids)
        while len(ids):
            # One token more than fits: what is kept depends on the text, not on its pieces.
            fitting = self.room - self.num_rows - self.num_recent
            piece, ids = ids[: fitting + 1], ids[fitting + 1 :]
            self._recent = torch.cat([self._recent, piece])
            self.num_tokens += len(piece)
            self._shrink()

    def prompt(self) -> Prompt:
        """Head, rows and recent text: plain text to go on from."""
        return Prompt(parts=(language_head(self.embedder.reader), *self._rows, self._recent))

    def answer(
        self, question: str, *, max_new_tokens: int = 128, stream: bool = False, **generation: Any
    ) -> Answer | AnswerStream:
        """Answers from all that was read so far; settings as `Reader.answer`.

        Raises:
            InputError: nothing was read, or the question is empty.
            WindowError: question and new tokens are more than the rows kept free.
        """
        if self.num_tokens == 0:
            raise InputError("A stream answers after it has read, but it is empty; append text.")
        head, tail = question_frame(self.embedder.reader, question)
        prompt = Prompt(parts=(head, *self._rows, self._recent, tail))
        reader = self.embedder.reader
        return reader.reply(prompt, k=1, stream=stream, max_new_tokens=max_new_tokens, **generation)

    def _shrink(self) -> None:
        while self.num_rows + len(self._recent) > self.room:
            if len(self._recent) > self._chunk:
                self._compress_oldest()
            elif 2 * self.k <= min(self.max_k, self._chunk):
                self._coarsen()
            else:
                self._rows.pop(0)
                self.num_dropped_tokens += self._chunk

    def _compress_oldest(self) -> None:
        oldest, self._recent = self._recent[: self._chunk], self._recent[self._chunk :].clone()
        self._rows.append(self.embedder.compress(oldest, k=self.k).rows)

    def _coarsen(self) -> None:
        self._rows = [
            self._sampler.coarser(rows, self._chunk, self.k, 2).clone() for rows in self._rows
        ]
        self.k *= 2
