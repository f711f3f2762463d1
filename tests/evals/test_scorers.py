"""Scorers against values worked out by hand from the definitions of the tasks' authors."""

from __future__ import annotations

import pytest

from extensible_embedding.evals.scorers import (
    SCORERS,
    contains,
    contains_word,
    exact_match,
    last_number,
    normalize,
    rouge_l,
    token_f1,
)


@pytest.mark.parametrize("name", [name for name in SCORERS if name != "last_number"])
def test_an_empty_prediction_is_worth_nothing_and_the_answer_itself_all(name: str) -> None:
    assert SCORERS[name]("", ["golden hair"]) == 0
    assert SCORERS[name]("golden hair", ["golden hair"]) == 1
    assert SCORERS[name]("golden hair", ["silver", "golden hair"]) == 1
    assert SCORERS[name]("golden hair", []) == 0


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
