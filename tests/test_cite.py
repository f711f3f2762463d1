"""Citations name places in the source, and quote what stands there."""

from __future__ import annotations

import dataclasses
import itertools
import unicodedata
from pathlib import Path

import pytest
import torch
from conftest import byte_tokenizer, make_embedder, tiny_llama
from tokenizers import normalizers

from extensible_embedding import ContextStore, ExtensibleEmbedder, Reader
from extensible_embedding.answer import Plan
from extensible_embedding.cite import _unquoted, citations
from extensible_embedding.expand import expanded_prompt
from extensible_embedding.prompt import choose_k, question_prompt
from extensible_embedding.source import GivenText, characters_before
from extensible_embedding.store.reading import lazy_context

SENTENCES = [f"Sentence number {n} tells of h\u00e9ron {n * 7}." for n in range(40)]
TEXT = " ".join(SENTENCES)


@pytest.fixture
def embedder(tiny_reader: Reader) -> ExtensibleEmbedder:
    return make_embedder(tiny_reader, chunk_tokens=64)


def plan(embedder: ExtensibleEmbedder, k: int = 8, room: int = 504) -> Plan:
    reader = embedder.reader
    context = embedder.compress(TEXT, k=4, title="Herons")
    prompt = expanded_prompt(reader, [context], "What of number 17?", k=k, room=room)
    return reader.plan(prompt, k, 8)


def test_quotes_stand_where_they_say(embedder: ExtensibleEmbedder) -> None:
    found = citations(embedder.reader, plan(embedder), "A heron.")
    data = TEXT.encode()
    assert [each.raw for each in found] == sorted((each.raw for each in found), reverse=True)
    assert any(each.raw for each in found)
    assert sum(not each.raw for each in found) == 3
    for each in found:
        assert data[each.start_byte : each.end_byte].decode() == each.quote
        assert each.title == "Herons"
        assert each.context == 0


def test_quotes_are_whole_sentences(embedder: ExtensibleEmbedder) -> None:
    for each in citations(embedder.reader, plan(embedder), "A heron."):
        assert each.quote.strip().startswith("Sentence number")
        assert each.quote.rstrip().endswith(".")


def test_the_row_that_gets_most_attention_comes_first(
    embedder: ExtensibleEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan(embedder)
    weights = torch.zeros(made.prompt.contexts[0].rows_at(8))
    weights[[20, 50]] = torch.tensor([3.0, 1.0])
    monkeypatch.setattr("extensible_embedding.cite.attention_to_rows", lambda *a: [weights])
    first, second, _ = (each for each in citations(embedder.reader, made, "x") if not each.raw)
    assert (first.weight, second.weight) == (0.75, 0.25)
    assert first.start_byte <= 20 * 8 < first.end_byte  # a token is a byte


def test_no_place_is_quoted_twice(embedder: ExtensibleEmbedder) -> None:
    """Not even where two rows are of one sentence, or a row is of two."""
    found = citations(embedder.reader, plan(embedder), "A heron.", most=1000)
    places = sorted((each.start_byte, each.end_byte) for each in found)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(places))
    data = TEXT.encode()
    assert all(data[start:end].decode().startswith("Sentence") for start, end in places)
    assert sum(end - start + 1 for start, end in places) == len(data) + 1  # all, but for blanks


def test_attention_inside_of_a_raw_span_is_the_spans(
    embedder: ExtensibleEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan(embedder)
    span = made.prompt.spans[0]
    weights = torch.zeros(made.prompt.contexts[0].rows_at(8))
    inside = slice(-(-span.start // 8), span.end // 8)
    weights[inside] = 3.0 / len(weights[inside])
    weights[50] = 1.0
    assert not inside.start <= 50 < inside.stop
    monkeypatch.setattr("extensible_embedding.cite.attention_to_rows", lambda *a: [weights])
    found = citations(embedder.reader, made, "x")
    assert [each.weight for each in found if each.raw][0] == pytest.approx(0.75)
    rows = [each for each in found if not each.raw]
    assert rows[0].weight == 0.25
    assert all(each.weight == 0 for each in rows[1:])


def test_rows_of_a_context_that_is_read_whole_are_raw(embedder: ExtensibleEmbedder) -> None:
    reader = embedder.reader
    contexts = [embedder.compress(" ".join(SENTENCES[:5]), k=4), embedder.compress(TEXT, k=4)]
    prompt = question_prompt(reader, contexts, "What?")
    found = citations(reader, reader.plan(prompt, [1, 8], 8), "A heron.", most=20)
    assert {each.context for each in found} == {0, 1}
    assert all(each.raw == (each.context == 0) for each in found)


@pytest.mark.parametrize(
    ("quoted", "expected"),
    [
        ([], "One is one. Two is two."),
        ([(0, 11)], "Two is two."),
        ([(12, 23)], "One is one."),
        ([(0, 23)], None),
        ([(0, 10), (13, 40)], ". T"),
    ],
)
def test_what_is_quoted_is_left_out(quoted: list[tuple[int, int]], expected: str | None) -> None:
    text = "One is one. Two is two. Three is three."
    found = _unquoted(text, 10, 13, quoted)
    assert (found and text[slice(*found)]) == expected


def test_blanks_are_not_the_longest_part() -> None:
    text = f"It was. No?{20 * chr(10)}Then all went."
    end = text.index("Then")
    assert _unquoted(text, 8, end, [(0, 8)]) == (8, 11)
    assert _unquoted(text, 4, end, [(8, 11)]) == (0, 7)
    assert _unquoted(text, 11, end, []) is None


def test_several_contexts_and_raw_text(embedder: ExtensibleEmbedder) -> None:
    reader = embedder.reader
    contexts = [
        embedder.compress(" ".join(part), k=4, title=title)
        for title, part in (("One", SENTENCES[:5]), ("Two", SENTENCES[5:10]))
    ]
    prompt = question_prompt(reader, contexts, "What?")
    found = citations(reader, reader.plan(prompt, [1, 4], 8), "A heron.", most=20)
    assert {each.title for each in found} == {"One", "Two"}
    for each in found:
        source = " ".join(SENTENCES[:5] if each.context == 0 else SENTENCES[5:10]).encode()
        assert source[each.start_byte : each.end_byte].decode() == each.quote
    assert 0 < sum(each.weight for each in found) <= 1


def composing_reader() -> Reader:
    """Its tokens spell é as one character, however the text wrote it."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    return Reader(tiny_llama(), tokenizer, name="composing")


DECOMPOSED = " ".join(f"Phrase {n} très bien dite à {n * 7}." for n in range(40))
DECOMPOSED = unicodedata.normalize("NFD", DECOMPOSED)


@pytest.mark.parametrize("kept", ["given", "stored", "grown"])
def test_places_are_those_of_the_text_and_not_of_its_tokens(tmp_path: Path, kept: str) -> None:
    embedder = make_embedder(composing_reader(), chunk_tokens=64)
    reader, store = embedder.reader, ContextStore(tmp_path / "store")
    if kept == "given":
        context = embedder.compress(DECOMPOSED, k=4)
    elif kept == "stored":
        context = lazy_context(store.add("text", DECOMPOSED, embedder, k=3))
    else:
        cut = DECOMPOSED.index("Phrase 21 ")
        store.add("text", DECOMPOSED[:cut], embedder)
        context = store.append("text", DECOMPOSED[cut:], embedder).context(8)
    assert reader.decode(context.token_ids) != DECOMPOSED
    prompt = expanded_prompt(reader, [context], "What of phrase 17?", k="auto", room=500)
    k = choose_k(prompt, 500)
    found = citations(reader, reader.plan(prompt, k, 8), "Très bien.", most=9)
    raw = [each for each in found if each.raw]
    assert any("Phrase 17 " in each.quote for each in raw)
    for each in found:
        quoted = DECOMPOSED.encode()[each.start_byte : each.end_byte].decode()
        assert quoted == each.quote
        assert each.quote.startswith("Phrase")
        assert each.quote.endswith(".")


def test_a_text_that_other_tokens_were_made_of_is_not_cited(embedder: ExtensibleEmbedder) -> None:
    made = embedder.compress(TEXT, k=4)
    other = dataclasses.replace(made, source=GivenText("Another text. " * 90))
    prompt = question_prompt(embedder.reader, [other], "What?")
    for each in citations(embedder.reader, embedder.reader.plan(prompt, 8, 8), "A heron."):
        assert TEXT.encode()[each.start_byte : each.end_byte].decode() == each.quote


@pytest.mark.parametrize("text", ["abc", "a\u0301é\U0001f600x", ""])
def test_characters_before_a_byte(text: str) -> None:
    data = text.encode()
    expected = [len(data[:end].decode(errors="ignore")) for end in range(len(data) + 1)]
    found = characters_before(text, torch.arange(len(data) + 1))
    whole = [
        end
        for end in range(len(data) + 1)
        if data[:end].decode(errors="ignore").encode() == data[:end]
    ]
    assert [int(found[end]) for end in whole] == [expected[end] for end in whole]


def test_no_answer_has_no_rows(embedder: ExtensibleEmbedder) -> None:
    assert all(each.raw for each in citations(embedder.reader, plan(embedder), ""))
