"""Spans: which parts of a text share most words with what is asked about it.

In: the texts of pieces and a question. Out: the pieces, best first. Words alone decide (BM25); it
knows nothing of tokens, rows and windows.
"""

from __future__ import annotations

from collections.abc import Sequence

import bm25s

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
_UNSPACED += "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
"""Characters of scripts without blanks between words: Thai, Lao, Burmese, Khmer, kana, Han."""
_WORD_BYTES = 120
"""Of a word in the vocabulary of an index, with what finds it; about."""
_WORDS = f"[{_UNSPACED}]|[^\\W{_UNSPACED}]+"
"""A word, be it of one character; where none can be told, each character is one."""


class SpanIndex:
    """Texts that are ranked again and again, by one question after another.

    Args:
        texts: of the pieces.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._latest_first = list(range(len(texts)))[::-1]
        words = bm25s.tokenize(list(texts), token_pattern=_WORDS, show_progress=False)
        self._index = bm25s.BM25() if words.vocab else None
        if self._index is not None:
            self._index.index(words, show_progress=False)

    @property
    def num_bytes(self) -> int:
        """Of memory, about."""
        if self._index is None:
            return 0
        arrays = (self._index.scores[name].nbytes for name in ("data", "indices", "indptr"))
        return int(sum(arrays)) + _WORD_BYTES * len(self._index.vocab_dict)

    def rank(self, question: str) -> list[int]:
        """Numbers of the texts, those first that share most and rarest words with the question.

        Equal ones, and all where there is no common word, come latest first. BM25: Robertson and
        Zaragoza 2009.
        """
        asked = bm25s.tokenize(
            question, token_pattern=_WORDS, show_progress=False, return_ids=False
        )[0]
        if self._index is None or not asked:
            return self._latest_first
        scores = self._index.get_scores(asked)
        return sorted(self._latest_first, key=lambda number: -scores[number])


def rank_spans(texts: Sequence[str], question: str) -> list[int]:
    """The same, for one question."""
    return SpanIndex(texts).rank(question)
