from __future__ import annotations

import random

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from extensible_embedding import Reader
from extensible_embedding.errors import InputError
from extensible_embedding.serve.detokenize import Detokenizer
from extensible_embedding.serve.engines.base import NewTokens

ENDED = NewTokens(token_ids=(), finish_reason="length")
TEXT = "Naive caf\u00e9: \u4f60\u597d, \U0001f469\u200d\U0001f680!\n\n  Two  spaces\tand more. "


@pytest.fixture(scope="module")
def word_reader(tiny_reader):
    """Words that bring their own space, which the first of a text loses, and bytes, as Llama's."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += ["\u2581", "\u2581a", "\u2581fine", "\u2581caf", "e", "\u2581day", ",", "."]
    model = models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    return Reader(tiny_reader.model, wrapped)


def portions(ids, rng):
    """The ids in random portions, some of them empty; the last has the reason."""
    pieces, start = [], 0
    while start < len(ids):
        size = rng.randint(0, 4)
        pieces.append(NewTokens(token_ids=tuple(ids[start : start + size])))
        start += size
    return [*pieces, NewTokens(token_ids=(), finish_reason="length")]


def texts(reader, pieces, stop=()):
    detokenizer = Detokenizer(reader, stop)
    found = [detokenizer.add(piece) for piece in pieces]
    assert detokenizer.finish_reason is not None
    assert detokenizer.num_tokens == sum(len(piece.token_ids) for piece in pieces)
    return found, detokenizer.finish_reason


def random_ids(rng, reader, count):
    return [rng.randrange(len(reader.tokenizer)) for _ in range(count)]


def word_ids(rng, count):
    """Words, special tokens, and characters in bytes."""
    characters = [
        [3 + byte for byte in text.encode()] for text in ("\u4f60", "\u00e9", "\U0001f680")
    ]
    units = [*([token] for token in (1, 2, *range(259, 267))), *characters]
    return [token for _ in range(count) for token in rng.choice(units)]


@pytest.mark.parametrize("seed", range(12))
def test_pieces_together_are_what_the_reader_decodes(tiny_reader, word_reader, seed):
    """Of any ids: whole characters, halves, special tokens."""
    rng = random.Random(seed)
    whole = tiny_reader.encode(TEXT * 2).tolist()
    noisy = [t for t in whole if rng.random() < 0.9]
    for reader, ids in [
        (tiny_reader, whole),
        (tiny_reader, noisy),
        (tiny_reader, random_ids(rng, tiny_reader, 60)),
        (word_reader, word_ids(rng, 40)),
    ]:
        found, reason = texts(reader, portions(ids, rng))
        assert "".join(found) == reader.decode(ids)
        assert reason == "length"


@pytest.mark.parametrize("seed", range(5))
def test_no_piece_has_half_a_character(tiny_reader, seed):
    ids = tiny_reader.encode(TEXT * 2).tolist()
    found, _ = texts(tiny_reader, portions(ids, random.Random(seed)))
    assert not any("\ufffd" in piece for piece in found)
    assert "".join(found) == TEXT * 2


def test_text_comes_at_once_where_nothing_speaks_against_it(tiny_reader):
    detokenizer = Detokenizer(tiny_reader, ["xyz"])
    pieces = [detokenizer.add(NewTokens(token_ids=(int(t),))) for t in tiny_reader.encode("a b.")]
    assert pieces == ["a", " ", "b", "."]
    assert detokenizer.finish_reason is None


def test_half_a_character_at_the_end_is_as_the_reader_decodes_it(tiny_reader):
    ids = tiny_reader.encode("a\u4f60").tolist()[:-1]
    pieces = [NewTokens(token_ids=(t,)) for t in ids]
    found, _ = texts(tiny_reader, [*pieces, NewTokens(token_ids=(), finish_reason="length")])
    assert "".join(found) == tiny_reader.decode(ids) == "a\ufffd"


def test_special_tokens_are_no_text(tiny_reader):
    end = tiny_reader.tokenizer.eos_token_id
    ids = [256, *tiny_reader.encode("ab").tolist(), end]
    found, reason = texts(tiny_reader, [NewTokens(token_ids=tuple(ids), finish_reason="stop")])
    assert found == ["ab"]
    assert reason == "stop"


@pytest.mark.parametrize("seed", range(20))
def test_a_stop_string_ends_the_text_before_it_however_it_comes(tiny_reader, seed):
    rng = random.Random(seed)
    text = "".join(rng.choice("ab\u4f60") for _ in range(30))
    stops = ["".join(rng.choice("ab\u4f60") for _ in range(rng.randint(1, 4))) for _ in range(2)]
    found, reason = texts(tiny_reader, portions(tiny_reader.encode(text).tolist(), rng), stops)
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    assert "".join(found) == text[: min(ends)[1] if ends else None]
    assert reason == ("stop" if ends else "length")


def test_a_possible_beginning_of_a_stop_string_is_held_back(tiny_reader):
    detokenizer = Detokenizer(tiny_reader, ["END.", "ENG"])
    pieces = [detokenizer.add(NewTokens(token_ids=(int(t),))) for t in tiny_reader.encode("aENEND")]
    assert pieces == ["a", "", "", "EN", "", ""]
    assert detokenizer.add(NewTokens(token_ids=(), finish_reason="length")) == "END"
    assert detokenizer.finish_reason == "length"


def test_after_a_stop_string_nothing_is_text(tiny_reader):
    detokenizer = Detokenizer(tiny_reader, ["b"])
    ids = tuple(tiny_reader.encode("abc").tolist())
    assert detokenizer.add(NewTokens(token_ids=ids)) == "a"
    assert detokenizer.finish_reason == "stop"
    assert detokenizer.add(NewTokens(token_ids=ids, finish_reason="length")) == ""
    assert detokenizer.finish_reason == "stop"
    assert detokenizer.num_tokens == 6


def test_an_empty_stop_string_is_refused(tiny_reader):
    with pytest.raises(InputError, match="at least 1 character"):
        Detokenizer(tiny_reader, ["a", ""])


@pytest.mark.parametrize(
    "ids", [[256] * 2000, [162] * 2000, [162, 256] * 1000], ids=["special", "halves", "both"]
)
def test_a_long_answer_costs_what_it_is_long(tiny_reader, monkeypatch, ids):
    lengths = []
    decode = Reader.decode
    monkeypatch.setattr(
        Reader, "decode", lambda *given: (lengths.append(len(given[1])), decode(*given))[1]
    )
    for given in (ids, tiny_reader.encode(TEXT * 20).tolist()):
        lengths.clear()
        texts(tiny_reader, [NewTokens(token_ids=(token,)) for token in given] + [ENDED])
        assert sum(lengths) < 30 * len(given)


@pytest.mark.parametrize("seed", range(8))
def test_text_after_many_halves_is_what_the_reader_decodes(tiny_reader, word_reader, seed):
    """Halves alone, of characters that never end, and then whole ones again; so special tokens."""
    rng = random.Random(seed)
    halves = [t for t in range(256) if tiny_reader.decode([t]) == "\ufffd"]
    ids: list[int] = []
    for _ in range(6):
        ids += [rng.choice(halves) for _ in range(rng.randint(0, 120))]
        ids += [256] * rng.randint(0, 60)
        ids += tiny_reader.encode(TEXT[rng.randrange(20) :]).tolist()
    found, _ = texts(tiny_reader, portions(ids, rng))
    assert "".join(found) == tiny_reader.decode(ids)
    stop = TEXT[-9:-4]
    found, reason = texts(tiny_reader, portions(ids, rng), [stop])
    assert "".join(found) == tiny_reader.decode(ids).partition(stop)[0]
    assert reason == "stop"


@pytest.mark.parametrize("seed", range(8))
def test_a_tokenizer_without_a_fast_backend(tiny_reader, seed):
    """Of bytes, too, but it leaves out those that are no character."""
    rng = random.Random(seed)
    reader = Reader(tiny_reader.model, ByT5Tokenizer())
    noise = [rng.randrange(3, 259) for _ in range(100)]
    for ids in (reader.encode(TEXT).tolist(), noise, noise + reader.encode(TEXT).tolist()):
        found, _ = texts(reader, portions(ids, rng))
        assert "".join(found) == reader.decode(ids)


@pytest.mark.e2e
@pytest.mark.parametrize("seed", range(5))
def test_with_the_real_tokenizer(seed):
    rng = random.Random(seed)
    reader = Reader.from_pretrained()
    texts_of = torch.randint(
        len(reader.tokenizer), (200,), generator=torch.Generator().manual_seed(seed)
    )
    for ids in (texts_of.tolist(), reader.encode(TEXT * 3).tolist()):
        found, _ = texts(reader, portions(ids, rng))
        assert "".join(found) == reader.decode(ids)
