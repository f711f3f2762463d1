"""A conversation: its latest turns are read raw, all before them as rows of one more context.

In: questions and answers as they come. Out: what the next prompt reads of them, the same after a
restart. Each turn is plain text, "Question: ...", a line "Answer: ..." and an empty line, at the
end of a context of a store, and costs its own length. Knows nothing of prompts and windows.
"""

from __future__ import annotations

import dataclasses
import re
from functools import cached_property
from itertools import accumulate, takewhile
from typing import TYPE_CHECKING

from torch import Tensor

from ..chunks import chunk_spans
from ..context import Context
from ..downsampling import down_sampling
from ..embedder import ExtensibleEmbedder
from ..errors import InputError
from .manifest import check_made_by
from .store import ContextStore

if TYPE_CHECKING:
    from ..prompt import Turn
    from ..reader import Reader

TITLE = "The earlier part of this conversation"
KIND = {"kind": "conversation"}
"""Metadata of such contexts."""
_TURN = re.compile(r"Question: (.*)\nAnswer: ((?:.|\n)*)")
_END = "\n\n"


class Conversation:
    """Turns, kept as long as the program runs.

    Args:
        reader: measures them in tokens.

    Attributes:
        turns: (question, answer) that can be read raw, oldest first.
        raw_share: the most of the window that they should take.
    """

    raw_share = 1.0

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.turns: list[Turn] = []

    def keep(self, question: str, answer: str) -> None:
        """Adds a turn."""
        self.turns.append((question, answer))

    def reload(self) -> None:
        """Looks again at what is kept, after `keep` was broken off."""

    def forget(self) -> None:
        """Removes all of it."""
        self.turns.clear()

    def num_recent(self, num_tokens: int) -> int:
        """How many of the latest turns take at most so many tokens, as they are written."""
        sizes = (len(self.reader.encode(written(*turn))) for turn in reversed(self.turns))
        return sum(1 for _ in takewhile(lambda size: size <= num_tokens, accumulate(sizes)))

    def earlier(self, num_raw: int, part: float = 1.0) -> Context | None:
        """What is before the latest `num_raw` turns; of its chunks the latest `part`.

        Here nothing: only what is kept in a store can be read as rows.
        """
        return None


class KeptConversation(Conversation):
    """Turns, kept in a store.

    Args:
        store: that has it, or is to have it.
        name: of its context, which the first turn makes.
        embedder: makes its rows.
        k: tokens per row, if it is new.

    Raises:
        InputError: the store has a context of that name that is no conversation.
        CheckpointError: it is damaged.
        MismatchError: its rows are another embedder's.
    """

    raw_share = 0.25

    def __init__(
        self, store: ContextStore, name: str, embedder: ExtensibleEmbedder, *, k: int = 4
    ) -> None:
        super().__init__(embedder.reader)
        self.store, self.name, self.embedder, self.k = store, name, embedder, k
        self._load()

    def keep(self, question: str, answer: str) -> None:
        """Adds a turn; it is in the store when this returns. Raises as `ContextStore.append`."""
        text = written(question, answer)
        if self.name in self.store:
            self.store.append(self.name, text, self.embedder)
        else:
            self.store.add(self.name, text, self.embedder, k=self.k, title=self.name, metadata=KIND)
        self._load()

    def reload(self) -> None:
        self._load()

    def forget(self) -> None:
        """Deletes its context."""
        if self.name in self.store:
            self.store.delete(self.name)
        self._load()

    def earlier(self, num_raw: int, part: float = 1.0) -> Context | None:
        num_bytes = self._starts[-num_raw] if num_raw else self._num_bytes
        if num_bytes == 0 or part == 0:
            return None
        whole, ends = self._whole
        length = whole.chunk_tokens
        num_rows = int((ends < num_bytes).sum()) + 1  # the last may hold a few raw words too
        num_tokens = int(whole.row_ends()[num_rows - 1])
        if not down_sampling(whole.down_sampling).begins_alike:  # a part of a chunk has other rows
            num_tokens = min(whole.num_tokens, -(-num_tokens // length) * length)
            num_rows = int((whole.row_ends() <= num_tokens).sum())
        chunks = chunk_spans(num_tokens, length)
        first = chunks[-max(1, int(len(chunks) * part))][0]
        first_row = int((whole.row_ends() <= first).sum())
        return dataclasses.replace(
            whole,
            rows=whole.rows[first_row:num_rows],
            token_ids=whole.token_ids[first:num_tokens],
            title=TITLE,
            source=None,  # these are tokens of a part of it
        )

    def _load(self) -> None:
        """Reads the turns from the store; rows are read when they are asked for."""
        vars(self).pop("_whole", None)
        self.stored = self.store.open(self.name) if self.name in self.store else None
        text = ""
        if self.stored is not None:
            _check_kind(self.name, self.stored.metadata)
            check_made_by(self.stored.manifest, self.embedder, self.store.place.name)
            text = self.stored.text()
        self.turns, self._starts = _turns_at_the_end(text)
        self._num_bytes = len(text.encode())

    @cached_property
    def _whole(self) -> tuple[Context, Tensor]:
        """All rows, and the offset in the text after each, (R,)."""
        assert self.stored is not None
        return self.stored.context(), self.stored.row_spans()[:, 1]


def _check_kind(name: str, metadata: dict[str, object]) -> None:
    if metadata.get("kind") != KIND["kind"]:
        raise InputError(
            f"A conversation goes on in a context of its own, but {name!r} is a text; choose "
            "another name."
        )


def written(question: str, answer: str) -> str:
    """A turn as it is kept: an empty line ends it, so that those inside of it hold a blank."""
    asked = " ".join(question.splitlines())
    said = re.sub(r"\n(?=\n)", "\n ", answer.strip())
    return f"Question: {asked}\nAnswer: {said}{_END}"


def _turns_at_the_end(text: str) -> tuple[list[Turn], list[int]]:
    """The turns that a text ends with, and where each begins in its bytes.

    What was appended by other means, and all before it, is no turn; it is read as rows.
    """
    turns: list[Turn] = []
    starts: list[int] = []
    *blocks, rest = text.split(_END)
    end = len(text.encode())
    for block in reversed(blocks):
        found = _TURN.fullmatch(block)
        if found is None or rest:
            break
        end -= len(f"{block}{_END}".encode())
        turns.append((found[1], re.sub(r"\n (?=\n)", "\n", found[2])))
        starts.append(end)
    return turns[::-1], starts[::-1]
