"""Citations name places in the source, and quote what stands there."""

from __future__ import annotations

import pytest
import torch
from conftest import make_embedder

from extensible_embedding import ExtensibleEmbedder, Reader
from extensible_embedding.answer import Plan
from extensible_embedding.cite import citations
from extensible_embedding.expand import expanded_prompt
from extensible_embedding.prompt import question_prompt

SENTENCES = [f"Sentence number {n} tells of h\u00e9ron {n * 7}." for n in range(40)]
TEXT = " ".join(SENTENCES)


@pytest.fixture
def embedder(tiny_reader: Reader) -> ExtensibleEmbedder:
    return make_embedder(tiny_reader, chunk_tokens=64)


def plan(embedder: ExtensibleEmbedder, k: int = 8, room: int = 700) -> Plan:
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


def test_no_answer_has_no_rows(embedder: ExtensibleEmbedder) -> None:
    assert all(each.raw for each in citations(embedder.reader, plan(embedder), ""))
