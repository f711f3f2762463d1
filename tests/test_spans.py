"""Pieces are ranked by the words that they share with a question."""

from __future__ import annotations

import tracemalloc

from extensible_embedding.spans import SpanIndex, rank_spans

TEXTS = ["the fox sleeps", "a whale sings", "the fox hunts a whale", "nothing of the kind"]


def test_more_and_rarer_common_words_come_first() -> None:
    assert rank_spans(TEXTS, "Where does the fox meet a whale?")[0] == 2
    assert rank_spans(TEXTS, "who sings?")[0] == 1


def test_without_a_common_word_the_latest_comes_first() -> None:
    assert rank_spans(TEXTS, "zebra") == [3, 2, 1, 0]
    assert rank_spans(TEXTS, "") == [3, 2, 1, 0]
    assert rank_spans(["", "?"], "zebra") == [1, 0]


def test_words_of_one_character_count() -> None:
    texts = ["key 7 is red", "key 8 is blue", "key 9 is green"]
    assert rank_spans(texts, "What of key 7?")[0] == 0


def test_scripts_without_blanks_are_ranked_by_their_characters() -> None:
    texts = ["大门的密码是七三九一。", "今天的天气很好，我们去公园。", "他在图书馆看了一本书。"]
    assert rank_spans(texts, "密码是什么？")[0] == 0
    mixed = ["わたしは東京に住んでいます。", "ประตูสีแดง", "the tower of Osaka 大阪"]
    assert rank_spans(mixed, "東京はどこ?")[0] == 0
    assert rank_spans(mixed, "ประตู")[0] == 1
    assert rank_spans(mixed, "Osaka")[0] == 2
    assert rank_spans(["\U00020000\U00020001", "b"], "\U00020001")[0] == 0


def test_the_memory_of_an_index_is_told_about_right() -> None:
    texts = [" ".join(f"word{number * each}" for each in range(40)) for number in range(200)]
    tracemalloc.start()
    index = SpanIndex(texts)
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert index.num_bytes / 3 < taken < index.num_bytes * 3
    assert SpanIndex([]).num_bytes == 0
