"""Questions that are made from text alone."""

from __future__ import annotations

import random
import re

import pytest

from extensible_embedding.train.facts import Asked, paragraph_sentences
from extensible_embedding.train.synthetic import CODE_KINDS, PROSE_KINDS, make

from .made_texts import CODE, PROSE, SPEAKERS

CHARS = 1_500
FACT_CHARS = 8 * 130
EVALUATION_ONLY = ("pass key", "magic", "REGISTER_CONTENT", "in the JSON object", "Remember it")
KINDS = [(kind, False) for kind in PROSE_KINDS] + [(kind, True) for kind in CODE_KINDS]


def made(kind: str, is_code: bool, seed: int) -> Asked:
    asked = make(
        kind,
        CODE if is_code else PROSE,
        is_code=is_code,
        context_chars=CHARS,
        rng=random.Random(f"{kind} {seed}"),
    )
    assert asked is not None
    return asked


@pytest.mark.parametrize(("kind", "is_code"), KINDS)
def test_answers_stand_in_their_contexts(kind: str, is_code: bool) -> None:
    for seed in range(25):
        asked = made(kind, is_code, seed)
        assert 2 <= len(asked.pairs) <= 8
        assert len(asked.context) <= CHARS + FACT_CHARS
        for question, answer in asked.pairs:
            assert answer
            assert answer in asked.context
            assert answer not in question or kind in ("cloze", "signature", "repeat")


@pytest.mark.parametrize(("kind", "is_code"), KINDS)
def test_a_seed_gives_the_same_questions_and_another_gives_others(kind: str, is_code: bool) -> None:
    assert made(kind, is_code, 3) == made(kind, is_code, 3)
    assert len({made(kind, is_code, seed) for seed in range(8)}) > 4


@pytest.mark.parametrize(("kind", "is_code"), KINDS)
def test_no_words_of_the_evaluation(kind: str, is_code: bool) -> None:
    for seed in range(25):
        asked = made(kind, is_code, seed)
        text = "\n".join([asked.context, *(question for question, _ in asked.pairs)])
        assert not [words for words in EVALUATION_ONLY if words in text]


def test_facts_are_put_between_sentences_and_the_text_stays() -> None:
    text = _split(PROSE.texts[0])
    for seed in range(25):
        sentences = _split(made("passkey", False, seed).context)
        kept = [each for each in sentences if each in text]
        assert 2 <= len(sentences) - len(kept) <= 3
        assert "".join(kept) in "".join(text)


def _split(text: str) -> list[str]:
    return [each for part in text.split("\n\n") for each in paragraph_sentences(part)]


def test_facts_in_code_are_comments_on_lines_of_their_own() -> None:
    for seed in range(10):
        lines = made("key-value", True, seed).context.split("\n")
        code = "\n".join(line for line in lines if not line.lstrip().startswith("# "))
        assert code in CODE.texts[0]
        assert 4 <= sum(line.lstrip().startswith("# ") for line in lines) <= 8


def test_the_next_sentence_and_the_next_line_follow() -> None:
    for seed in range(10):
        asked = made("next-sentence", False, seed)
        for question, answer in asked.pairs:
            given = question[question.index('"') + 1 : question.rindex('"')]
            assert f"{given} {answer}" in asked.context
        asked = made("next-sentence", True, seed)
        for question, answer in asked.pairs:
            given = question[question.index("`") + 1 : question.rindex("`")]
            assert re.search(rf"{re.escape(given)}\n *{re.escape(answer)}", asked.context)


def test_who_said_names_the_speaker() -> None:
    for seed in range(10):
        asked = made("who-said", False, seed)
        assert len({name for _, name in asked.pairs} & set(SPEAKERS)) >= 1
        for question, name in asked.pairs:
            given = question[question.index('"') + 1 : question.rindex('"')].removesuffix(" ...")
            (line,) = [part for part in asked.context.split("\n\n") if given in part]
            assert name in line.rpartition('"')[2]


@pytest.mark.parametrize(
    "text",
    [
        '"Is it far from here to town?"\n\nEmma replied that it was.\n\n"Not at all," he said.',
        '"It is far from here to town," said he.\n\n"It is not far to town," said She.',
        '"It is far from here to town," said Emma\'s aunt. "I know it well," said the aunt.',
    ],
)
def test_words_without_a_speaker_of_their_own_are_not_asked_for(text: str) -> None:
    assert PROSE_KINDS["who-said"](text, random.Random(0)) is None


def test_a_class_a_function_before_and_parameters() -> None:
    pairs = {pair for seed in range(30) for pair in made("signature", True, seed).pairs}
    answers = {answer for question, answer in pairs if "`load_5`" in question}
    assert answers <= {"self, path, limit=5", "load_4", "Loader"}
    assert {"self, path, limit=5", "load_4"} <= answers


def test_a_blank_has_one_filling() -> None:
    for is_code in (False, True):
        for seed in range(10):
            asked = made("cloze", is_code, seed)
            for question, answer in asked.pairs:
                blanked = re.split('["`]', question, maxsplit=1)[1][:-1]
                assert asked.context.count(blanked.replace("____", answer)) == 1


def test_sentences_end_neither_at_titles_nor_at_initials() -> None:
    text = 'Mr. J. Brown met Dr. Hill. "Well!" He left at 5 p.m. and slept. "Did he?" Yes.'
    assert paragraph_sentences(text) == [
        "Mr. J. Brown met Dr. Hill.",
        '"Well!"',
        "He left at 5 p.m. and slept.",
        '"Did he?"',
        "Yes.",
    ]
