"""bAbI (arXiv 1502.05698): twenty kinds of reasoning over short stories, accuracy of one word."""

from __future__ import annotations

from .base import Filler, ParquetTask


class Babi(ParquetTask):
    """The right word must stand in the answer."""

    name = "babi"
    prompt = "Answer with one word. Question: {question}"
    max_new_tokens = 12
    scorers = ("contains_word", "exact_match")
    filler = Filler.BOOK
