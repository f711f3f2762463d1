"""Scorers against values worked out by hand from the definitions of the tasks' authors."""

from __future__ import annotations

import pytest

from extensible_embedding.errors import MissingExtraError
from extensible_embedding.evals.scorers import (
    SCORERS,
    Scorer,
    contains,
    contains_word,
    exact_match,
    last_number,
    longbench_classes,
    longbench_code,
    longbench_count,
    longbench_f1,
    longbench_retrieval,
    normalize,
    require,
    rouge_l,
    ruler_all,
    ruler_part,
    token_f1,
)


def scorer(name: str) -> Scorer:
    """A scorer; the test is skipped where its package is not installed."""
    for package in ("jieba", "rouge") if name.endswith("_zh") else ("rouge",):
        if name in ("longbench_f1_zh", "longbench_rouge", "longbench_rouge_zh"):
            pytest.importorskip(package)
    return SCORERS[name]


OF_TEXT = [
    name
    for name in SCORERS
    if name not in ("last_number", "longbench_count", "longbench_retrieval")
]


@pytest.mark.filterwarnings("ignore:::jieba", "ignore:pkg_resources")
@pytest.mark.parametrize("name", OF_TEXT)
def test_an_empty_prediction_is_worth_nothing_and_the_answer_itself_all(name: str) -> None:
    score = scorer(name)
    assert score("", ["golden hair"]) == 0
    assert score("golden hair", ["golden hair"]) == pytest.approx(1)
    best = {"ruler_all": 0.5}.get(name, 1)  # it wants every answer, the others want one
    assert score("golden hair", ["silver", "golden hair"]) == pytest.approx(best)
    assert score("golden hair", []) == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat's   hat.", "cats hat"),
        ("An apple, a day!", "apple day"),
        ("theatre another", "theatre another"),
        ("308", "308"),
        ("Wilhelm Conrad R\u00f6ntgen", "wilhelm conrad r\u00f6ntgen"),
        ("\u00abquoted\u00bb", "\u00abquoted\u00bb"),  # SQuAD takes ASCII punctuation off alone
        ("a", ""),
    ],
)
def test_normalisation_is_squads(text: str, expected: str) -> None:
    assert normalize(text) == expected


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("the FRANCE.", ["France"], 1),
        ("in France", ["France"], 0),
        ("France", ["Germany", "france"], 1),
        ("", [""], 1),
        ("the", ["a"], 1),
    ],
)
def test_exact_match(prediction: str, answers: list[str], expected: float) -> None:
    assert exact_match(prediction, answers) == expected


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("golden hair", ["long golden hair"], 0.8),  # P = 1, R = 2/3
        ("in the country of France", ["France"], 0.4),  # "the" is gone: P = 1/4, R = 1
        ("hair hair hair", ["hair"], 0.5),  # a word counts as often as both have it
        ("red", ["blue"], 0.0),
        ("red", ["blue", "dark red"], 2 / 3),
        ("", [""], 1.0),
        ("the", ["France"], 0.0),
    ],
)
def test_token_f1(prediction: str, answers: list[str], expected: float) -> None:
    assert token_f1(prediction, answers) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("It was Wilhelm Conrad R\u00f6ntgen, in 1901.", ["Wilhelm Conrad R\u00f6ntgen"], 1),
        ("wilhelm r\u00f6ntgen", ["Wilhelm Conrad R\u00f6ntgen"], 0),
        ("BB3BA2A5-7DE8", ["bb3ba2a5-7de8"], 1),
        ("anything", ["the"], 0),  # an answer without words is in nothing
    ],
)
def test_contains(prediction: str, answers: list[str], expected: float) -> None:
    assert contains(prediction, answers) == expected


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("She is in the garden.", ["garden"], 1),
        ("no", ["no"], 1),
        ("I do not know", ["no"], 0),
        ("Yes, east", ["east"], 1),
        ("northeast", ["east"], 0),
    ],
)
def test_contains_word(prediction: str, answers: list[str], expected: float) -> None:
    assert contains_word(prediction, answers) == expected


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("The <REGISTER_CONTENT> in line torpid-kid is <2416>.", ["2416"], 1),
        ("line 3: 2416", ["2416"], 1),
        ("2416 in line 3", ["2416"], 0),
        ("02416", ["2416"], 1),
        ("I do not know", ["2416"], 0),
        ("", ["2416"], 0),
    ],
)
def test_last_number(prediction: str, answers: list[str], expected: float) -> None:
    assert last_number(prediction, answers) == expected


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("the cat sat", ["the cat sat down"], 6 / 7),  # 3 words in common of 3 and 4
        ("sat cat the", ["the cat sat"], 1 / 3),  # one word in order
        ("Cats", ["cat"], 1.0),  # stemmed, in lower case
        ("x", ["the cat", "x y"], 2 / 3),
    ],
)
def test_rouge_l(prediction: str, answers: list[str], expected: float) -> None:
    assert rouge_l(prediction, answers) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("The Golden hair!", ["long golden hair"], 0.8),  # P = 1, R = 2/3
        ("red", ["blue", "dark red"], 2 / 3),
        ("", [""], 0.0),  # unlike SQuAD: nothing in common
        ("the", ["a"], 0.0),
        ("R\u00d6NTGEN", ["r\u00f6ntgen"], 1.0),
    ],
)
def test_longbench_f1(prediction: str, answers: list[str], expected: float) -> None:
    assert longbench_f1(prediction, answers) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("12", ["12"], 1.0),
        ("12 of 30 paragraphs", ["12"], 0.5),
        ("12 or 12, not 7", ["12", "7"], 2 / 3),
        ("012", ["12"], 0.0),  # digits are compared, not numbers
        ("twelve", ["12"], 0.0),
        ("", ["12"], 0.0),
    ],
)
def test_longbench_count(prediction: str, answers: list[str], expected: float) -> None:
    assert longbench_count(prediction, answers) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("Paragraph 15", ["Paragraph 15"], 1.0),
        ("paragraph 15, or Paragraph 3", ["Paragraph 15"], 0.5),
        ("\u6bb5\u843d15", ["\u6bb5\u843d15"], 1.0),
        ("15", ["\u6bb5\u843d15"], 1.0),
        ("Paragraph fifteen", ["Paragraph 15"], 0.0),
        ("15", ["15"], 0.0),  # an answer of another form names no paragraph
    ],
)
def test_longbench_retrieval(prediction: str, answers: list[str], expected: float) -> None:
    assert longbench_retrieval(prediction, answers) == expected


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("return x", ["return x"], 1.0),
        ("\n\nreturn x\nmore", ["return x"], 1.0),
        ("# a comment\n```python\nreturn x", ["return x"], 1.0),
        ("return y", ["return x"], 0.88),  # 7 of 8 characters in both: 87.5, rounded to even
        ("# only a comment", ["return x"], 0.0),
        ("", ["", "x"], 1.0),
        ("caf\u00e9", ["cafe"], 0.75),
        ("RETURN", ["return"], 0.0),
    ],
)
def test_longbench_code(prediction: str, answers: list[str], expected: float) -> None:
    assert longbench_code(prediction, answers) == expected


CLASSES = ("Other location", "Other", "Food", "City")


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("Type: Food", ["Food"], 1.0),
        ("Food or City", ["Food"], 0.5),
        ("Food or City", ["Other", "City"], 0.5),
        ("Other location", ["Other location"], 1.0),  # "Other" is a part of the right name
        ("Other location", ["Other"], 0.5),
        ("food", ["Food"], 0.0),
        ("", ["Food"], 0.0),
    ],
)
def test_longbench_classes(prediction: str, answers: list[str], expected: float) -> None:
    assert longbench_classes(prediction, answers, CLASSES) == expected


def test_longbench_classes_pass_over_the_one_after_a_part() -> None:
    """As the authors' loop does, which takes names out of the list that it goes through."""
    classes = ("a", "ab", "abc")
    assert longbench_classes("abc", ["abc"], classes) == 1 / 2  # "a" goes, "ab" is passed over


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("the cat sat", ["the cat sat down"], 6 / 7),  # 3 words in common of 3 and 4
        ("Cats", ["cat"], 0.0),  # neither stemmed nor in lower case
        ("the the cat", ["the cat"], 1.0),  # a word counts once
        ("the cat. it sat", ["it sat. the cat"], 1.0),  # sentence by sentence, in any order
        ("sat cat the", ["the cat sat"], 1 / 3),
        (".", ["cat"], 0.0),
        ("x", ["the cat", "x y"], 2 / 3),
    ],
)
def test_longbench_rouge(prediction: str, answers: list[str], expected: float) -> None:
    assert scorer("longbench_rouge")(prediction, answers) == pytest.approx(expected)


I_LIKE_BEIJING = "\u6211\u559c\u6b22\u5317\u4eac\u3002"
I_LIKE_IT = "\u6211\u559c\u6b22\u3002"


@pytest.mark.filterwarnings("ignore:::jieba", "ignore:pkg_resources")
def test_chinese_is_scored_by_word() -> None:
    """Three words and two, the full stop is none of them; ROUGE counts it as one."""
    assert scorer("longbench_f1_zh")(I_LIKE_IT, [I_LIKE_BEIJING]) == pytest.approx(4 / 5)
    assert scorer("longbench_rouge_zh")(I_LIKE_IT, [I_LIKE_BEIJING]) == pytest.approx(6 / 7)
    assert scorer("longbench_f1_zh")("\u3002", ["\u3002"]) == 0


@pytest.mark.parametrize(
    ("prediction", "answers", "every", "one"),
    [
        ("12345 and 67890", ["12345", "67890"], 1.0, 1.0),
        ("12345", ["12345", "67890"], 0.5, 1.0),
        ("ABCDE, fghij", ["abcde", "FGHIJ"], 1.0, 1.0),
        ("a12345b", ["12345"], 1.0, 1.0),  # as a part of a word too
        ("\u00dcber", ["\u00fcber"], 1.0, 1.0),
        ("one\x00two", ["one\ntwo"], 1.0, 1.0),  # what cannot be printed is a line break
        ("", ["12345"], 0.0, 0.0),
        ("12345", [], 0.0, 0.0),
    ],
)
def test_ruler(prediction: str, answers: list[str], every: float, one: float) -> None:
    assert ruler_all(prediction, answers) == every
    assert ruler_part(prediction, answers) == one


def test_a_missing_package_is_named() -> None:
    with pytest.raises(MissingExtraError, match=r"package no_such_package, .*\[longbench\]"):
        require("no_such_package")
