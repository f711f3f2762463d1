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
_WORDS = f"[{_UNSPACED}]|[^\\W{_UNSPACED}]+"
"""A word, be it of one character; where none can be told, each character is one."""


def rank_spans(texts: Sequence[str], question: str) -> list[int]:
    """Numbers of the texts, those first that share most and rarest words with the question.

    Equal ones, and all where there is no common word, come latest first. BM25: Robertson and
    Zaragoza 2009.
    """
    latest_first = list(range(len(texts)))[::-1]
    words = bm25s.tokenize(list(texts), token_pattern=_WORDS, show_progress=False)
    if not words.vocab:
        return latest_first
    index = bm25s.BM25()
    index.index(words, show_progress=False)
    asked = bm25s.tokenize(question, token_pattern=_WORDS, show_progress=False, return_ids=False)[0]
    scores = index.get_scores(asked) if asked else [0.0] * len(texts)
    return sorted(latest_first, key=lambda number: -scores[number])
