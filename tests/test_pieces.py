"""Pieces cover a text, end where its lines and sentences do, and are taken as far as they fit."""

from __future__ import annotations

import time
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
        return "".join(map(chr, token_ids)).replace("\0", "")


class Words:
    """As a reader whose tokens are words with the blank before them, but for that of a text."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def encode(self, text: str) -> Tensor:
        words = text.split()
        self.words += [word for word in dict.fromkeys(words) if word not in self.words]
        return torch.tensor([self.words.index(word) for word in words])

    def decode(self, token_ids: Tensor | list[int]) -> str:
        return " ".join(self.words[int(each)] for each in token_ids)


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


def test_in_prose_they_end_with_a_paragraph_then_a_sentence_then_a_line(reader: Reader) -> None:
    paragraph = "It rained. It went on. It stopped.\n"
    assert pieces(reader, paragraph * 3) == [paragraph] * 3
    wrapped = "It rained all day. It went\non raining. "
    assert pieces(reader, wrapped * 4)[0] == wrapped + "It rained all day. "
    endless = wrapped + "and it went on and on\nand on and on and on and on and on and on, " * 2
    assert pieces(reader, endless)[1].endswith("and on\n")
    heading = "It rained. It went on\n\nand on. "
    assert pieces(reader, heading * 4)[0] == heading + "It rained. It went on\n\n"


def test_they_end_with_a_sentence_where_no_line_does(reader: Reader) -> None:
    sentence = 'He said "it rains." '
    blank_first = pieces(reader, sentence * 7)
    assert [each.strip() for each in blank_first[:-1]] == [(sentence * 3).strip()] * 2


def test_a_script_without_blanks_has_sentences_too() -> None:
    sentence = "\u4e2d\u6587\u5f88\u597d\u3002"
    assert pieces(cast(Reader, Characters()), sentence * 14)[0] == sentence * 12
    quoted = "\u4e2d\u6587\u4e2d\u6587\u300c\u5f88\u597d\u3002\u300d"  # 9 characters
    assert pieces(cast(Reader, Characters()), "\u4e2d" + quoted * 8)[0] == "\u4e2d" + quoted * 7


def test_special_tokens_part_sentences() -> None:
    text = "It rained.\0It went on and on and on.\0"
    assert pieces(cast(Reader, Characters()), text * 3)[0] == text.replace("\0", "") + "It rained."


def test_a_tokenizer_that_drops_the_first_blank_has_sentences_too() -> None:
    """Such as sentencepiece: words begin with their blank, a text does not."""
    text = "It rained all day. " * 5
    found = pieces(cast(Reader, Words()), text * 12)
    assert all(each.endswith("day.") for each in found)


@pytest.mark.parametrize("mark", [")", '"', ".", "\u3002", "\n"])
def test_a_run_of_marks_costs_what_it_is_long(reader: Reader, mark: str) -> None:
    """And not its square, which took minutes."""
    ids = torch.tensor([ord(each) for each in mark * 200_000])
    start = time.process_time()
    cut(cast(Reader, Characters()), ids)
    assert time.process_time() - start < 20


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


def test_nothing_is_read_for_coming_after_what_is_not_read() -> None:
    assert best_fitting([0, 2], [64, 30, 30, 64], 40) == [2]


def test_what_does_not_fit_is_passed_over() -> None:
    assert best_fitting([0, 2], [64, 64, 10], 12) == [2]
    assert best_fitting([0, 2], [64, 64, 30, 64], 40) == [2]
    assert best_fitting([0, 1], [64, 64], 40) == []
    assert best_fitting([], [], 40) == []
    assert best_fitting([0, 1], [20, 20], 0) == []
