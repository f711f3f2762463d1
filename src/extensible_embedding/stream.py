"""Online reading: a context that grows, in a window that does not.

In: text as it comes. Out: at any time, a prompt that fits: [head][rows of older text][recent text
raw][tail]. When the window is full the oldest raw chunk becomes rows, as long as the text after it
keeps its share; then rows are read at twice the scale factor; at the largest allowed, the oldest
rows go. Memory does not grow with the text.

Paper: arXiv 2402.11577, online use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor

from .answer import Answer, AnswerStream, Plan
from .downsampling import check_scale_factor, down_sampling, num_rows
from .embedder import ExtensibleEmbedder, as_ids
from .errors import InputError, WindowError
from .prompt import Prompt, language_head, question_frame
from .reader import check_text

_BATCH_CHUNKS = 8
"""Chunks that are compressed at once, where as many are to follow."""
_HELD_CHARACTERS = 256
"""The most text that waits for the end of its word."""


class ContextStream:
    """Keeps recent text raw and the older text as rows.

    What is kept depends on the text and not on the pieces it comes in (but for rounding), as far as
    a tokenizer splits text at single blanks: the last, perhaps unfinished word is held back until
    more text, `flush`, `prompt` or `answer`. Asked in the middle of a word, the word is cut there.
    Text without single blanks between words (such as Chinese) and tokenizers that mark the start of
    every text (such as Llama 2's) may give a few other tokens where pieces meet. Token ids are kept
    as they are.

    Nothing appended is lost when compressing fails or is interrupted: the next call goes on.

    Attributes:
        k: scale factor of the rows now; it doubles when rows exceed their share of the window.
        num_tokens: tokens taken in so far, without what is held back.
        num_dropped_tokens: oldest tokens whose rows had to go.
        recent_tokens: how much of the newest text is always raw, once there is as much.
        room: rows and raw tokens of the context together, at most.
    """

    def __init__(
        self,
        embedder: ExtensibleEmbedder,
        *,
        k: int = 4,
        max_k: int | None = None,
        window: int | None = None,
        reserve_rows: int = 512,
        recent_tokens: int | None = None,
    ) -> None:
        """Starts empty.

        Args:
            embedder: makes the rows.
            k: scale factor to begin with.
            max_k: largest that it may grow to, by default the embedder's.
            window: rows in all, by default the reader's window, which it cannot exceed.
            reserve_rows: rows kept free for head, question and new tokens.
            recent_tokens: newest tokens that are never compressed, by default a quarter of the room
                that the reserve leaves.

        Raises:
            InputError: k is not usable, or the down-sampling does not nest.
            WindowError: the window is larger than the reader's, or too small for the reserve,
                the recent tokens and two chunks.
        """
        largest = embedder.reader.window
        self.embedder, self.reserve_rows = embedder, reserve_rows
        self.window = largest if window is None else window
        self.room = self.window - reserve_rows
        self.recent_tokens = self.room // 4 if recent_tokens is None else recent_tokens
        self.k = check_scale_factor(k)
        self.max_k = embedder.config.max_k if max_k is None else check_scale_factor(max_k)
        self._sampler = down_sampling(embedder.config.down_sampling)
        self._chunk = embedder.config.chunk_tokens
        self._check_scale_factors()
        self._check_room(largest)
        self._held = ""
        self._rows: list[Tensor] = []
        self._ahead: list[Tensor] = []  # rows of the oldest raw chunks, for when they are needed
        self._recent = self._waiting = torch.empty(0, dtype=torch.long)
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
        """Takes more text, or its token ids (n,), in pieces of any size.

        Raises:
            InputError: it is neither; nothing of it is taken then.
        """
        if isinstance(text, str):
            check_text(text)
            text, cut = self._held + text, _last_cut(self._held + text)
            self._take(self.embedder.reader.encode(text[:cut]), held=text[cut:])
            return
        ids = as_ids(text)
        if len(ids):
            self.embedder.reader.check_ids(ids)
            self._take(torch.cat([self.embedder.reader.encode(self._held), ids.cpu()]))

    def flush(self) -> None:
        """Takes in what was held back: the text has ended, or the next piece is another text."""
        self._take(self.embedder.reader.encode(self._held))

    def prompt(self) -> Prompt:
        """Head, rows and recent text: plain text to go on from."""
        self.flush()
        return Prompt(parts=(language_head(self.embedder.reader), *self._rows, self._recent))

    @overload
    def answer(
        self, question: str, *, stream: Literal[False] = False, **settings: Any
    ) -> Answer: ...

    @overload
    def answer(self, question: str, *, stream: Literal[True], **settings: Any) -> AnswerStream: ...

    def answer(
        self, question: str, *, max_new_tokens: int = 128, stream: bool = False, **generation: Any
    ) -> Answer | AnswerStream:
        """Answers from all that was read so far: rows and recent text, without other raw spans.

        Settings are those of `Reader.respond`.

        Raises:
            InputError: nothing was read, or the question is empty.
            WindowError: question and new tokens are more than the rows kept free.
        """
        self.flush()
        if self.num_tokens == 0:
            raise InputError("A stream answers after it has read, but it is empty; append text.")
        head, tail = question_frame(self.embedder.reader, question)
        prompt = Prompt(parts=(head, *self._rows, self._recent, tail))
        plan = Plan(
            prompt=prompt,
            k=self.k if self._rows else 1,
            prompt_rows=prompt.num_raw,
            num_context_tokens=self.num_tokens - self.num_dropped_tokens,
        )
        if plan.prompt_rows + max_new_tokens > self.window:
            raise WindowError(
                f"Head, question and new tokens must fit the rows that the text leaves of the "
                f"{self.window}, {self.window - self.num_rows - self.num_recent} now, but they "
                f"take {len(head) + len(tail) + max_new_tokens}; ask a shorter question, for fewer "
                f"new tokens, or begin with a larger reserve_rows than {self.reserve_rows}."
            )
        return self.embedder.reader.respond(
            plan, stream=stream, max_new_tokens=max_new_tokens, **generation
        )

    def _check_scale_factors(self) -> None:
        if not self._sampler.nests or self.k < 2:
            raise InputError(
                "A growing context is read with a down-sampling that nests and k of 2 or more, but "
                f"it is {self._sampler.name} at k={self.k}; use another embedder or a larger k."
            )
        if self.k > min(self._chunk, self.max_k):
            raise InputError(
                f"A growing context begins with a k of at most its chunk of {self._chunk} tokens "
                f"and its max_k of {self.max_k}, but k is {self.k}; give a smaller k."
            )

    def _check_room(self, largest: int) -> None:
        if self.window > largest:
            raise WindowError(
                f"A growing context fits the reader's window of {largest} rows, but window is "
                f"{self.window}; give a smaller one, or a reader with a larger window."
            )
        if self.reserve_rows < 1 or self.recent_tokens < 1:
            raise InputError(
                "A growing context keeps rows for the question and recent text raw, but "
                f"reserve_rows is {self.reserve_rows} and recent_tokens is {self.recent_tokens}; "
                "give 1 or more of each and a window that holds them."
            )
        if self.room < self.recent_tokens + 2 * self._chunk:
            raise WindowError(
                f"A growing context needs room for two chunks of {self._chunk} tokens and "
                f"{self.recent_tokens} recent ones beside the {self.reserve_rows} rows kept free "
                f"(reserve_rows), but only {self.room} are left; use a larger window."
            )

    def _take(self, ids: Tensor, held: str = "") -> None:
        """Takes ids in, and what stays held back; then makes room, however often it is cut off."""
        if len(ids):
            self.embedder.reader.check_ids(ids)
        total = self.num_tokens + len(ids)
        self._waiting, self.num_tokens, self._held = torch.cat([self._waiting, ids]), total, held
        self._shrink()
        while len(self._waiting):
            # One token more than fits: what is kept depends on the text, not on its pieces.
            some = self.room - self.num_rows - self.num_recent + 1
            recent = torch.cat([self._recent, self._waiting[:some]])
            self._recent, self._waiting = recent, self._waiting[some:]
            self._shrink()

    def _shrink(self) -> None:
        while self.num_rows + self.num_recent > self.room:
            if self.num_recent >= self.recent_tokens + self._chunk:
                self._compress_oldest()
            elif 2 * self.k <= min(self.max_k, self._chunk):
                self._coarsen()
            else:
                self._rows, self.num_dropped_tokens = (
                    self._rows[1:],
                    self.num_dropped_tokens + self._chunk,
                )

    def _compress_oldest(self) -> None:
        """Rows take the place of a chunk only when they are there."""
        if not self._ahead:
            self._ahead = self._compress_ahead()
        self._rows, self._ahead, self._recent = (
            [*self._rows, self._ahead[0]],
            self._ahead[1:],
            self._recent[self._chunk :].clone(),
        )

    def _compress_ahead(self) -> list[Tensor]:
        """Rows of the chunks that will have to go, as far as text is there, in one batch.

        Batches depend on the pieces that text comes in, and with them the rounding of rows.
        """
        known = self.num_recent + len(self._waiting) - self.recent_tokens
        length = min(known // self._chunk, _BATCH_CHUNKS) * self._chunk
        oldest = torch.cat([self._recent, self._waiting[:length]])[:length]
        rows = self.embedder.compress(oldest, k=self.k, batch_chunks=_BATCH_CHUNKS).rows
        return [part.clone() for part in rows.split(num_rows(self._chunk, self.k))]

    def _coarsen(self) -> None:
        self._rows, self._ahead, self.k = (
            [self._coarser(rows) for rows in self._rows],
            [self._coarser(rows) for rows in self._ahead],
            2 * self.k,
        )

    def _coarser(self, rows: Tensor) -> Tensor:
        return self._sampler.coarser(rows, self._chunk, self.k, 2).clone()


def _last_cut(text: str) -> int:
    """Where the text can be cut and its tokens stay the same: its last single blank in words.

    Without one near the end, all of the text is taken.
    """
    place = len(text) - 1
    while (place := text.rfind(" ", max(1, len(text) - _HELD_CHARACTERS), place)) > 0:
        if not text[place - 1].isspace() and not text[place + 1].isspace():
            return place
    return 0 if len(text) < _HELD_CHARACTERS else len(text)
