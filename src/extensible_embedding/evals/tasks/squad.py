"""SQuAD 2.0 articles, XQuAD English and COVID-QA: a short span of a long article."""

from __future__ import annotations

from .base import Filler, ParquetTask


class Squad(ParquetTask):
    """Answerable SQuAD 2.0 questions on whole articles (arXiv 1806.03822): exact match and F1."""

    name = "squad2"
    prompt = "Answer in a few words taken from the text. Question: {question}"
    filler = Filler.DOCUMENTS


class Xquad(Squad):
    """XQuAD, English part (arXiv 1910.11856): five paragraphs an article."""

    name = "xquad"


class CovidQa(Squad):
    """COVID-QA (Moller et al. 2020): biomedical questions on whole research articles."""

    name = "covidqa"
    max_new_tokens = 64
    scorers = ("f1", "exact_match")
