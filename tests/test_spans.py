"""Pieces are ranked by the words that they share with a question."""

from __future__ import annotations

from extensible_embedding.spans import rank_spans

TEXTS = ["the fox sleeps", "a whale sings", "the fox hunts a whale", "nothing of the kind"]


def test_more_and_rarer_common_words_come_first() -> None:
    assert rank_spans(TEXTS, "Where does the fox meet a whale?")[0] == 2
    assert rank_spans(TEXTS, "who sings?")[0] == 1


def test_without_a_common_word_the_latest_comes_first() -> None:
    assert rank_spans(TEXTS, "zebra") == [3, 2, 1, 0]
    assert rank_spans(TEXTS, "") == [3, 2, 1, 0]
    assert rank_spans(["", "?"], "zebra") == [1, 0]
