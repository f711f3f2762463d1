"""Pieces: a text in parts that can be read by themselves, and the best ones that fit a room.

In: token ids, and later which pieces matter most. Out: where each piece begins and ends, which is
where a line or a sentence does wherever one does. Knows nothing of questions, rows and prompts.

Axes: n token.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from .reader import Reader

PIECE_TOKENS = 64
"""The most tokens of a piece."""
LEAST_TOKENS = 16
"""The fewest of one, but for the last of a text: what is shorter goes with what follows it."""
_CLOSERS = "[\"'\u2019\u201d)\\]\u300d\u300f\uff09]"
_CLOSED = re.compile(rf"{_CLOSERS}+\s*")
_SPACED = re.compile(rf"[.!?;\u2026\u061f\u0964]{_CLOSERS}*\s*$")
_UNSPACED = re.compile(rf"[\u3002\uff01\uff1f\uff61]{_CLOSERS}*\s*$")
"""Of scripts that set no blank after the end of a sentence."""
_PROSE = 1 / 5
"""Of sentences that end within lines to lines that end within sentences: in code it is less."""


def cut(reader: Reader, token_ids: Tensor) -> list[tuple[int, int]]:
    """Where pieces of token ids (n,) begin and end.

    A piece has `PIECE_TOKENS` at most, and `LEAST_TOKENS` or more unless it is the last. Between
    these it ends after a line, the last one that does, in code and lists; in prose after a line
    that ends a sentence or paragraph, else after a sentence, else after a line. Where there is no
    such place it ends anywhere. A mark that is spread over several tokens ends nothing.
    """
    if not (total := len(token_ids)):
        return []
    worth = _worth(reader, token_ids)
    start, pieces = 0, []
    while total - start > PIECE_TOKENS:
        places = range(start + PIECE_TOKENS, start + LEAST_TOKENS - 1, -1)
        end = max(places, key=lambda place: worth[place - 1])  # the last of the best
        pieces.append((start, end))
        start = end
    return [*pieces, (start, total)]


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """What a token adds to a text, as far as it tells where something ends."""

    text: str
    spaced: bool
    """A sentence ends with it, if a blank follows."""
    unspaced: bool
    """A sentence ends with it."""
    closes: bool
    """A quotation or bracket may end with it, and belongs to the sentence before."""

    @classmethod
    def of(cls, text: str) -> _Kind:
        return cls(
            text=text,
            spaced=bool(_SPACED.search(text)),
            unspaced=bool(_UNSPACED.search(text)),
            closes=bool(_CLOSED.fullmatch(text)),
        )

    @property
    def line(self) -> bool:
        return "\n" in self.text

    @property
    def blank(self) -> bool:
        return not self.text.strip()

    def parted_from(self, after: _Kind) -> bool:
        """Whether a blank or a special token, which has no text, stands between the two."""
        touching = (self.text[-1:], after.text[:1])
        return any(not each or each.isspace() for each in touching)


_AFTER_ALL = _Kind.of("\n")


class _End(NamedTuple):
    """What ends after a token."""

    line: bool
    sentence: bool
    paragraph: bool

    @property
    def whole_line(self) -> bool:
        return self.line and (self.sentence or self.paragraph)


def _worth(reader: Reader, token_ids: Tensor) -> list[int]:
    """How good it is to end a piece after each token: 0 is not at all."""
    ends = _ends(reader, token_ids)
    within_lines = sum(end.sentence and not end.line for end in ends)
    within_sentences = sum(end.line and not end.whole_line for end in ends)
    if within_lines > _PROSE * within_sentences:
        return [3 * end.whole_line or 2 * end.sentence or int(end.line) for end in ends]
    return [2 * end.line or int(end.sentence) for end in ends]


def _ends(reader: Reader, token_ids: Tensor) -> list[_End]:
    """What ends after each token."""
    numbers, which = token_ids.unique(return_inverse=True)
    every = [_Kind.of(text) for text in _texts(reader, numbers.tolist())]
    kinds = [every[number] for number in which.tolist()]
    ends, spaced, unspaced, breaks = [], False, False, 0
    for kind, after in zip(kinds, [*kinds[1:], _AFTER_ALL], strict=True):
        goes_on = kind.closes or kind.blank
        spaced = kind.spaced or goes_on and spaced
        unspaced = kind.unspaced or goes_on and unspaced
        breaks = kind.text.count("\n") + (breaks if kind.blank else 0)
        sentence = spaced and kind.parted_from(after) or unspaced and not after.closes
        end = _End(
            line=kind.line,
            sentence=sentence and (not after.blank or after is _AFTER_ALL),
            paragraph=kind.line and breaks > 1 and not after.line,
        )
        ends.append(end)
    return ends


def _texts(reader: Reader, numbers: Sequence[int]) -> list[str]:
    """What each token adds to a text; some tokenizers drop the blank that a text begins with."""
    before = reader.encode("a").tolist()
    length = len(reader.decode(before))
    return [reader.decode([*before, number])[length:] for number in numbers]


def best_fitting(
    ranked: Sequence[int], sizes: Sequence[int], room: int, last: Collection[int] = ()
) -> list[int]:
    """Numbers of the pieces to read, in their order: the best ones, each with the one after it.

    An answer often stands after what the question repeats. What does not fit is passed over.

    Args:
        ranked: numbers of pieces, best first.
        sizes: rows that each piece takes.
        room: rows for all of them.
        last: numbers of pieces after which another text begins.
    """
    least = min(sizes, default=0)
    chosen: set[int] = set()
    for number in ranked:
        if number not in chosen and sizes[number] <= room:
            chosen.add(number)
            room -= sizes[number]
        after = number + 1
        follows = number in chosen and number not in last and after < len(sizes)
        if follows and after not in chosen and sizes[after] <= room:
            chosen.add(after)
            room -= sizes[after]
        if room < least:
            break
    return sorted(chosen)
