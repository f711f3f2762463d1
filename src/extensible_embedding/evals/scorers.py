"""Scorers: (prediction, answers) -> a number from 0 to 1, as the authors of each task define it.

Pure functions of text. Where several answers are right, the best counts. An empty prediction
scores 0 unless an answer is empty as well.
"""

from __future__ import annotations

import importlib.util
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher

from ..errors import MissingExtraError

Scorer = Callable[[str, Sequence[str]], float]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_CHINESE_PUNCTUATION = (
    "\u2013\u2014\u2018\u2019\u201b-\u201f\u2026\u2027\u3001-\u3003\u300b-\u3011\u3014-\u301f"
    "\u3030\u303e\u303f\ufe4f\uff01-\uff0d\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff64"
)
_ALL_PUNCTUATION = re.compile(f"[{re.escape(string.punctuation)}{_CHINESE_PUNCTUATION}]")
_PARAGRAPH = re.compile("(?:Paragraph |\u6bb5\u843d)(\\d+)")
_NO_CODE = ("`", "#", "//")


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
    return float(found == wanted) if not found or not wanted else _words_f1(found, wanted)


def _words_f1(found: Sequence[str], wanted: Sequence[str]) -> float:
    common = sum((Counter(found) & Counter(wanted)).values())
    return 2 * common / (len(found) + len(wanted)) if common else 0.0


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


def longbench_f1(prediction: str, answers: Sequence[str]) -> float:
    """LongBench's `qa_f1_score`: SQuAD's F1, but two texts without words have nothing in common."""
    found = normalize(prediction).split()
    return max((_words_f1(found, normalize(answer).split()) for answer in answers), default=0.0)


def longbench_f1_zh(prediction: str, answers: Sequence[str]) -> float:
    """LongBench's `qa_f1_zh_score`: F1 of the words that jieba cuts, without punctuation."""
    found = _chinese_words(prediction)
    return max((_words_f1(found, _chinese_words(answer)) for answer in answers), default=0.0)


def _chinese_words(text: str) -> list[str]:
    words = ["".join(word.lower().split()) for word in _cut(text)]
    return [kept for word in words if (kept := _ALL_PUNCTUATION.sub("", word))]


def _cut(text: str) -> list[str]:
    require("jieba")
    import jieba

    return [str(word) for word in jieba.cut(text, cut_all=False)]


def longbench_rouge(prediction: str, answers: Sequence[str]) -> float:
    """LongBench's `rouge_score`: ROUGE-L of the package rouge, on sentences and without stemming.

    What the package refuses, such as a text without words, or is too long for it, scores 0.
    """
    require("rouge")
    from rouge import Rouge

    def score(answer: str) -> float:
        """F-measure against one answer."""
        try:
            found = Rouge(metrics=["rouge-l"]).get_scores([prediction], [answer])
        except (ValueError, RecursionError):
            return 0.0
        return float(found[0]["rouge-l"]["f"])

    return max(map(score, answers), default=0.0)


def longbench_rouge_zh(prediction: str, answers: Sequence[str]) -> float:
    """LongBench's `rouge_zh_score`: the same on the Chinese words that jieba cuts."""
    return longbench_rouge(" ".join(_cut(prediction)), [" ".join(_cut(each)) for each in answers])


def longbench_classes(prediction: str, answers: Sequence[str], classes: Sequence[str]) -> float:
    """LongBench's `classification_score`: 1 / classes named, if the right one is among them."""
    return max((_class_score(prediction, answer, classes) for answer in answers), default=0.0)


def _class_score(prediction: str, answer: str, classes: Sequence[str]) -> float:
    named = [name for name in classes if name in prediction]
    place = 0
    while place < len(named):
        # A class whose name is part of the right one's does not count. The authors take it out of
        # the list that they go through, so that the one after it is passed over.
        if named[place] in answer and named[place] != answer:
            named.remove(named[place])
        place += 1
    return 1 / len(named) if answer in named else 0.0


def longbench_count(prediction: str, answers: Sequence[str]) -> float:
    """LongBench's `count_score`: the share of the prediction's numbers that are the answer."""
    return max((_share_of_numbers(prediction, answer) for answer in answers), default=0.0)


def longbench_retrieval(prediction: str, answers: Sequence[str]) -> float:
    """LongBench's `retrieval_score` (`_zh`): the same for the number of a paragraph."""
    numbers = [number for answer in answers for number in _PARAGRAPH.findall(answer)[:1]]
    return longbench_count(prediction, numbers)


def _share_of_numbers(prediction: str, answer: str) -> float:
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(answer) / len(numbers) if numbers else 0.0


def longbench_code(prediction: str, answers: Sequence[str]) -> float:
    """LongBench's `code_sim_score`: likeness of the first line that is code, in whole percent.

    The authors' `fuzz.ratio` of fuzzywuzzy, which is difflib's.
    """
    lines = prediction.lstrip("\n").split("\n")
    code = next((line for line in lines if not any(sign in line for sign in _NO_CODE)), "")
    return max((_likeness(code, answer) for answer in answers), default=0.0)


def _likeness(one: str, other: str) -> float:
    if one == other:
        return 1.0
    if not one or not other:
        return 0.0
    return round(100 * SequenceMatcher(None, one, other).ratio()) / 100


def ruler_all(prediction: str, answers: Sequence[str]) -> float:
    """RULER's `string_match_all`: the share of answers that stand in the prediction."""
    matches = _ruler_matches(prediction, answers)
    return sum(matches) / len(matches) if matches else 0.0


def ruler_part(prediction: str, answers: Sequence[str]) -> float:
    """RULER's `string_match_part`: 1 if one of the answers stands in the prediction."""
    return float(any(_ruler_matches(prediction, answers)))


def _ruler_matches(prediction: str, answers: Sequence[str]) -> list[bool]:
    """Whether each answer is there, in any case; what cannot be printed is a line break."""
    found = re.sub(r"[\x00-\x1f]", "\n", prediction.strip()).strip().lower()
    return [answer.lower() in found for answer in answers]


def require(package: str) -> None:
    """Raises MissingExtraError unless a package of LongBench's scorers is installed."""
    if importlib.util.find_spec(package) is None:
        raise MissingExtraError(
            f"LongBench scores some of its tasks with the package {package}, which is not "
            "installed; run `pip install 'extensible-embedding[longbench]'`."
        )


SCORERS: dict[str, Scorer] = {
    "exact_match": exact_match,
    "f1": token_f1,
    "contains": contains,
    "contains_word": contains_word,
    "last_number": last_number,
    "rouge_l": rouge_l,
    "longbench_f1": longbench_f1,
    "longbench_f1_zh": longbench_f1_zh,
    "longbench_rouge": longbench_rouge,
    "longbench_rouge_zh": longbench_rouge_zh,
    "longbench_count": longbench_count,
    "longbench_retrieval": longbench_retrieval,
    "longbench_code": longbench_code,
    "ruler_all": ruler_all,
    "ruler_part": ruler_part,
}
"""Every scorer by the name that records use."""
