"""Pieces: a text in parts that can be read by themselves, and the best ones that fit a room.

In: token ids, and later which pieces matter most. Out: where each piece begins and ends, which is
where a line or a sentence does wherever one does. Knows nothing of questions, rows and prompts.

Axes: n token.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from .reader import Reader

PIECE_TOKENS = 64
"""The most tokens of a piece."""
LEAST_TOKENS = 16
"""The fewest of one, but for the last of a text: what is shorter goes with what follows it."""
_CLOSERS = "[\"'\u2019\u201d)\\]\u300d\u300f\uff09]"
_CLOSED = re.compile(rf"{_CLOSERS}+\s*")
_SPACED_END = re.compile(rf"[.!?;]{_CLOSERS}*\s*$")
_UNSPACED_END = re.compile(rf"[\u3002\uff01\uff1f\uff61]{_CLOSERS}*\s*$")
"""Of scripts that set no blank after it."""


def cut(reader: Reader, token_ids: Tensor) -> list[tuple[int, int]]:
    """Where pieces of token ids (n,) begin and end.

    A piece ends after the last of its lines that fits into `PIECE_TOKENS`, else after the last
    sentence that does, else within one; it has `LEAST_TOKENS` or more unless it is the last.
    """
    if not (total := len(token_ids)):
        return []
    lines, sentences = _ends(reader, token_ids)
    start, pieces = 0, []
    while total - start > PIECE_TOKENS:
        places = range(start + PIECE_TOKENS, start + LEAST_TOKENS - 1, -1)
        found = (end for ends in (lines, sentences) for end in places if ends[end - 1])
        end = next(found, start + PIECE_TOKENS)
        pieces.append((start, end))
        start = end
    return [*pieces, (start, total)]


def _ends(reader: Reader, token_ids: Tensor) -> tuple[list[bool], list[bool]]:
    """After which tokens a line ends, and after which a sentence does."""
    kinds, which = token_ids.unique(return_inverse=True)
    texts = [*_texts(reader, kinds.tolist()), "\n"]  # as after the last token
    order = which.tolist()
    sentences, mark = [], ""
    for kind, after in zip(order, [*order[1:], -1], strict=True):
        text = texts[kind]
        mark = text if not _CLOSED.fullmatch(text) else mark + text
        sentences.append(_ends_sentence(mark, texts[after]))
    return ["\n" in texts[kind] for kind in order], sentences


def _ends_sentence(text: str, after: str) -> bool:
    """Whether a sentence ends between a token, with the mark that it closes, and the next one."""
    if _UNSPACED_END.search(text):
        return not _CLOSED.fullmatch(after)
    # Else "3." of "3.14" were one.
    return bool(_SPACED_END.search(text)) and (text[-1:].isspace() or after[:1].isspace())


def _texts(reader: Reader, kinds: Sequence[int]) -> list[str]:
    """What each token adds to a text; some tokenizers drop the blank that a text begins with."""
    before = reader.encode("a").tolist()
    length = len(reader.decode(before))
    return [reader.decode([*before, kind])[length:] for kind in kinds]


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
    chosen: set[int] = set()
    for number in ranked:
        for each in (number, number + 1):
            if each == number + 1 and (number in last or each == len(sizes)):
                continue
            if each not in chosen and sizes[each] <= room:
                chosen.add(each)
                room -= sizes[each]
        if room < LEAST_TOKENS:
            break
    return sorted(chosen)
