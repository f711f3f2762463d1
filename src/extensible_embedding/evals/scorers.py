"""Scorers: (prediction, answers) -> a number from 0 to 1, as the authors of each task define it.

Pure functions of text. Where several answers are right, the best counts. An empty prediction
scores 0 unless an answer is empty as well.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

Scorer = Callable[[str, Sequence[str]], float]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Lower case, without ASCII punctuation and articles, single blanks: SQuAD's normalisation.

    Rajpurkar et al. 2016 (arXiv 1606.05250), evaluate-v2.0.py.
    """
    lowered = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", lowered).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction equals an answer after normalisation (SQuAD)."""
    return float(any(normalize(prediction) == normalize(answer) for answer in answers))


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of normalised words, best answer (SQuAD)."""
    return max((_f1(normalize(prediction), normalize(answer)) for answer in answers), default=0.0)


def _f1(prediction: str, answer: str) -> float:
    found, wanted = prediction.split(), answer.split()
    if not found or not wanted:
        return float(found == wanted)
    common = sum((Counter(found) & Counter(wanted)).values())
    return 2 * common / (len(found) + len(wanted))


def contains(prediction: str, answers: Sequence[str]) -> float:
    """1 if a normalised answer stands in the normalised prediction.

    "Best subspan exact match" of Lost in the Middle (Liu et al. 2023, arXiv 2307.03172) for
    NQ-open, its accuracy for key-value retrieval, and RULER's string match.
    """
    found = normalize(prediction)
    return float(any(wanted and wanted in found for wanted in map(normalize, answers)))


def contains_word(prediction: str, answers: Sequence[str]) -> float:
    """1 if a normalised answer stands in the normalised prediction as whole words (bAbI)."""
    found = f" {normalize(prediction)} "
    return float(any(wanted and f" {wanted} " in found for wanted in map(normalize, answers)))


def last_number(prediction: str, answers: Sequence[str]) -> float:
    """1 if the last run of digits in the prediction is the number asked for.

    LongEval's line retrieval (Li et al. 2023, LongChat).
    """
    numbers = re.findall(r"\d+", prediction)
    return float(bool(numbers) and int(numbers[-1]) in {int(answer) for answer in answers})


def rouge_l(prediction: str, answers: Sequence[str]) -> float:
    """F-measure of the longest common subsequence of stemmed words, best answer (rouge_score).

    Lin 2004; FairytaleQA (arXiv 2203.13947) and QMSum (arXiv 2104.05938) report it.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return max(
        (float(scorer.score(answer, prediction)["rougeL"].fmeasure) for answer in answers),
        default=0.0,
    )


SCORERS: dict[str, Scorer] = {
    "exact_match": exact_match,
    "f1": token_f1,
    "contains": contains,
    "contains_word": contains_word,
    "last_number": last_number,
    "rouge_l": rouge_l,
}
"""Every scorer by the name that records use."""
