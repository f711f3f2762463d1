"""Pieces cover a text, end where its lines and sentences do, and are taken as far as they fit."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from conftest import byte_tokenizer, tiny_llama
from torch import Tensor

from extensible_embedding import Reader
from extensible_embedding.pieces import LEAST_TOKENS, PIECE_TOKENS, best_fitting, cut

LINE = "x = compute(first, second)\n"


@pytest.fixture(scope="module")
def reader() -> Reader:
    """With a token for every byte."""
    return Reader(tiny_llama(), byte_tokenizer())


class Characters:
    """As a reader whose tokens are characters."""

    def encode(self, text: str) -> Tensor:
        return torch.tensor([ord(each) for each in text])

    def decode(self, token_ids: Tensor | list[int]) -> str:
        return "".join(map(chr, token_ids))


def pieces(reader: Reader, text: str) -> list[str]:
    ids = reader.encode(text)
    return [reader.decode(ids[start:end]) for start, end in cut(reader, ids)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "no end in sight " * 30,
        LINE * 20,
        "One. Two! Three? " * 30,
        "\n" * 200,
        "caf\u00e9 \U0001f600. \u4e2d\u6587\u3002" * 20,
    ],
)
def test_they_are_the_text(reader: Reader, text: str) -> None:
    ids = reader.encode(text)
    found = cut(reader, ids)
    assert torch.equal(torch.cat([ids[start:end] for start, end in found] + [ids[:0]]), ids)
    assert all(one[1] == other[0] for one, other in zip(found, found[1:], strict=False))
    assert all(end - start <= PIECE_TOKENS for start, end in found)
    assert all(end - start >= LEAST_TOKENS for start, end in found[:-1])


def test_they_end_with_a_line(reader: Reader) -> None:
    assert pieces(reader, LINE * 5) == [LINE * 2, LINE * 2, LINE]
    paragraph = "It rained. It went on. " * 2 + "Then:\n"
    assert pieces(reader, paragraph * 3) == [paragraph] * 3


def test_they_end_with_a_sentence_where_no_line_does(reader: Reader) -> None:
    sentence = 'He said "it rains." '
    blank_first = pieces(reader, sentence * 7)
    assert [each.strip() for each in blank_first[:-1]] == [(sentence * 3).strip()] * 2


def test_a_script_without_blanks_has_sentences_too() -> None:
    sentence = "\u300c\u4e2d\u6587\u5f88\u597d\u3002\u300d"
    assert pieces(cast(Reader, Characters()), sentence * 10)[0] == sentence * 9


def test_a_number_is_no_end_of_a_sentence(reader: Reader) -> None:
    text = "a" * 40 + " pi is 3.14159 and " + "b" * 60
    assert pieces(reader, text)[0] == text[:PIECE_TOKENS]


def test_a_piece_is_taken_with_the_one_after_it() -> None:
    sizes = [20, 30, 40, 50, 60]
    assert best_fitting([2, 0, 1, 3, 4], sizes, 90) == [2, 3]
    assert best_fitting([2, 0, 1, 3, 4], sizes, 140) == [0, 1, 2, 3]
    assert best_fitting([4, 3, 2, 1, 0], sizes, 60) == [4]


def test_another_text_is_not_what_comes_after() -> None:
    assert best_fitting([1, 3, 0, 2], [20] * 4, 40, last={1, 3}) == [1, 3]
    assert best_fitting([1, 3, 0, 2], [20] * 4, 40) == [1, 2]


def test_what_does_not_fit_is_passed_over() -> None:
    assert best_fitting([0, 2], [64, 64, 30, 64], 40) == [2]
    assert best_fitting([0, 1], [64, 64], 40) == []
    assert best_fitting([], [], 40) == []
    assert best_fitting([0, 1], [20, 20], 0) == []
