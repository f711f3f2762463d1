"""Pieces: a text in parts that can be read by themselves, and the best ones that fit a room.

In: token ids, and later which pieces matter most. Out: where each piece begins and ends, which is
where a line or a sentence does wherever one does. Knows nothing of questions, rows and prompts.

Axes: n token.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from .reader import Reader

_Counts: TypeAlias = NDArray[np.int64]
_Flags: TypeAlias = NDArray[np.bool_]

PIECE_TOKENS = 64
"""The most tokens of a piece."""
LEAST_TOKENS = 16
"""The fewest of one, but for the last of a text: what is shorter goes with what follows it."""
_CLOSERS = "[\"'\u2019\u201d)\\]\u300d\u300f\uff09]"
_CLOSED = re.compile(rf"{_CLOSERS}+\s*")
_SPACED = re.compile(rf"[.!?;\u2026\u061f\u0964]{_CLOSERS}*\s*$")
_UNSPACED = re.compile(rf"[\u3002\uff01\uff1f\uff61]{_CLOSERS}*\s*$")
"""Of scripts that set no blank after the end of a sentence."""
_KNOWN: WeakKeyDictionary[Reader, dict[int, str]] = WeakKeyDictionary()
"""What tokens add to a text, of those that a reader has met."""
_PROSE = 1 / 5
"""Of sentences that end within lines to lines that end within sentences: in code it is less."""


def cut(reader: Reader, token_ids: Tensor) -> list[tuple[int, int]]:
    """Where pieces of token ids (n,) begin and end.

    A piece has `PIECE_TOKENS` at most, and `LEAST_TOKENS` or more unless it is the last. Between
    these it ends after a line, the last one that does, in code and lists; in prose after a line
    that ends a sentence or paragraph, else after a sentence, else after a line. Where there is no
    such place it ends anywhere. A mark that is spread over several tokens ends nothing.
    """
    worth, total = _worth(reader, token_ids), len(token_ids)
    start, pieces = 0, []
    while total - start > PIECE_TOKENS:
        backwards = worth[start + LEAST_TOKENS - 1 : start + PIECE_TOKENS][::-1]
        end = start + PIECE_TOKENS - int(backwards.argmax())  # the last of the best
        pieces.append((start, end))
        start = end
    return [*pieces, (start, total)] if total else []


class _Tokens:
    """What each token of a text adds to it, as far as it tells where something ends: arrays (n,).

    Attributes:
        newlines: line feeds in it.
        spaced: a sentence ends with it, if a blank follows.
        unspaced: a sentence ends with it.
        closes: a quotation or bracket may end with it, and belongs to the sentence before.
        blank: nothing is to be seen of it: blanks, or a special token.
        begins_blank: a blank begins it, or it is a special token.
        ends_blank: the same of its end.
    """

    def __init__(self, reader: Reader, token_ids: Tensor) -> None:
        numbers, which = token_ids.cpu().unique(return_inverse=True)
        texts, places = _texts(reader, numbers.tolist()), which.numpy()

        def is_so(told: Callable[[str], object]) -> _Flags:
            of_kinds = np.array([bool(told(text)) for text in texts], dtype=np.bool_)
            of_tokens: _Flags = of_kinds[places]
            return of_tokens

        newlines = np.array([text.count("\n") for text in texts], dtype=np.int64)
        self.newlines: _Counts = newlines[places]
        self.spaced, self.unspaced = is_so(_SPACED.search), is_so(_UNSPACED.search)
        self.closes = is_so(_CLOSED.fullmatch)
        self.blank = is_so(lambda text: not text.strip())
        self.begins_blank = is_so(lambda text: not text or text[0].isspace())
        self.ends_blank = is_so(lambda text: not text or text[-1].isspace())


def _worth(reader: Reader, token_ids: Tensor) -> _Counts:
    """How good it is to end a piece after each token, (n,): 0 is not at all."""
    tokens = _Tokens(reader, token_ids)
    line = tokens.newlines > 0
    sentence = _ends_sentence(tokens)
    whole_line = line & (sentence | _ends_paragraph(tokens))
    if (sentence & ~line).sum() > _PROSE * (line & ~whole_line).sum():
        return np.select([whole_line, sentence, line], [3, 2, 1])
    return np.select([line, sentence], [2, 1])


def _ends_sentence(tokens: _Tokens) -> _Flags:
    """After which tokens (n,) a sentence ends, with the marks that close it and blanks."""
    goes_on = tokens.closes | tokens.blank
    spaced = tokens.spaced[_latest(~goes_on | tokens.spaced)]
    unspaced = tokens.unspaced[_latest(~goes_on | tokens.unspaced)]
    parted = tokens.ends_blank | _next(tokens.begins_blank, at_end=True)
    ends = spaced & parted | unspaced & ~_next(tokens.closes, at_end=False)
    return ends & ~_next(tokens.blank, at_end=False)


def _ends_paragraph(tokens: _Tokens) -> _Flags:
    """After which tokens (n,) an empty line ends."""
    so_far: _Counts = tokens.newlines.cumsum()
    begins = _latest(~tokens.blank)
    in_blanks = so_far - so_far[begins] + tokens.newlines[begins]
    line = tokens.newlines > 0
    return line & (in_blanks > 1) & ~_next(line, at_end=False)


def _latest(marked: _Flags) -> _Counts:
    """The latest marked place up to each one (n,), or the first place of all."""
    places: _Counts = np.maximum.accumulate(np.where(marked, np.arange(len(marked)), 0))
    return places


def _next(told: _Flags, *, at_end: bool) -> _Flags:
    """What is told (n,) of the next token."""
    return np.append(told[1:], at_end)[: len(told)]


def _texts(reader: Reader, numbers: Sequence[int]) -> list[str]:
    """What each token adds to a text; some tokenizers drop the blank that a text begins with."""
    known = _KNOWN.setdefault(reader, {})
    before = reader.encode("a").tolist()
    length = len(reader.decode(before))
    for number in numbers:
        if number not in known:
            known[number] = reader.decode([*before, number])[length:]
    return [known[number] for number in numbers]


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


def joined(pieces: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Pieces (start, end) in the order of the text as spans, neighbours together."""
    spans: list[tuple[int, int]] = []
    for start, end in pieces:
        if spans and spans[-1][1] == start:
            start = spans.pop()[0]
        spans.append((start, end))
    return spans
