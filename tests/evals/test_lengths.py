"""Contexts of one length: what answers stays, and the length is what was asked."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from extensible_embedding import ExtensibleEmbedder, Reader
from extensible_embedding.cli.questions import LEAST_CONTEXT
from extensible_embedding.errors import InputError
from extensible_embedding.evals.lengths import (
    LEAST_FILLED,
    LEAST_TOKENS,
    Lengthener,
    evidence_span,
)
from extensible_embedding.evals.qa import evaluate_qa
from extensible_embedding.evals.tasks import Example, make_task

TOKENS = 400


def write(folder: Path, contexts: list[str], golds: list[str] | None = None) -> Path:
    numbers = range(len(contexts))
    columns: dict[str, list[object]] = {
        "id": [f"q{number}" for number in numbers],
        "doc_id": [f"d{number}" for number in numbers],
        "context": list(contexts),
        "question": [f"What is {number}?" for number in numbers],
        "answers": [[f"answer-{number}."] for number in numbers],
        "task": ["" for _ in numbers],
    }
    if golds is not None:
        columns["gold_context"] = list(golds)
    path = folder / "q.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def document(number: int, sentences: int, at: int) -> tuple[str, str]:
    gold = f"The answer is answer-{number}. Ünïcode stands here."
    said = [f"Sentence {each} of {number}." for each in range(sentences)]
    return " ".join([*said[:at], gold, *said[at:]]), gold


def lengthened(reader: Reader, path: Path, name: str, seed: int = 0) -> list[Example | None]:
    lengthener = Lengthener(reader, make_task(name, path), TOKENS, seed)
    return [lengthener.lengthen(example) for example in lengthener.examples]


@pytest.mark.parametrize("at", [0, 70, 199, 200])
@pytest.mark.parametrize("seed", range(4))
def test_a_long_document_is_cut_around_what_answers(
    tiny_reader: Reader, tmp_path: Path, at: int, seed: int
) -> None:
    context, gold = document(0, 200, at)
    (found,) = lengthened(tiny_reader, write(tmp_path, [context], [gold]), "squad2", seed)
    assert found is not None
    assert gold in found.context
    assert found.context in context
    assert abs(len(tiny_reader.encode(found.context)) - TOKENS) <= 3


def test_the_place_is_drawn(tiny_reader: Reader, tmp_path: Path) -> None:
    context, gold = document(0, 400, 200)
    path = write(tmp_path, [context], [gold])
    places = set()
    for seed in range(6):
        (found,) = lengthened(tiny_reader, path, "squad2", seed)
        assert found is not None
        places.add(found.context.find(gold))
    assert len(places) > 1


def test_short_documents_stand_among_others_that_hold_no_answer(
    tiny_reader: Reader, tmp_path: Path
) -> None:
    pairs = [document(number, 8, 3) for number in range(40)]
    contexts = [context for context, _ in pairs]
    contexts[7] = f"answer-0. {contexts[7]}"  # holds the answer to another question
    found = lengthened(tiny_reader, write(tmp_path, contexts), "squad2")
    for number, example in enumerate(found):
        assert example is not None
        length = len(tiny_reader.encode(example.context))
        assert LEAST_FILLED * TOKENS <= length <= TOKENS + 20
        assert contexts[number] in example.context
    assert found[0] is not None
    assert contexts[7] not in found[0].context
    firsts = {example.context.startswith(contexts[n]) for n, example in enumerate(found) if example}
    assert firsts == {True, False}  # the place among them is drawn


def test_statements_keep_their_order_in_a_book(tiny_reader: Reader, tmp_path: Path) -> None:
    lines = ["Mary went to the garden.", "John took the milk.", "Mary slept."]
    (found,) = lengthened(tiny_reader, write(tmp_path, ["\n".join(lines)]), "babi")
    assert found is not None
    places = [found.context.find(line) for line in lines]
    assert places == sorted(places)
    assert places[0] >= 0
    assert len(tiny_reader.encode(found.context)) >= LEAST_FILLED * TOKENS


def test_a_conversation_is_cut_where_it_ends(tiny_reader: Reader, tmp_path: Path) -> None:
    context, _ = document(0, 300, 0)
    (found,) = lengthened(tiny_reader, write(tmp_path, [context]), "longeval-topics")
    assert found is not None
    assert context.startswith(found.context)


def test_a_needle_is_in_every_haystack(tiny_reader: Reader, tmp_path: Path) -> None:
    path = tmp_path / "books.parquet"
    pq.write_table(pa.table({"text": ["One sentence. Another sentence of words. " * 3000]}), path)
    lengthener = Lengthener(tiny_reader, make_task("needle", path), TOKENS, 0)
    found = [lengthener.lengthen(each) for each in lengthener.examples[:3]]
    for example in found:
        assert example is not None
        assert example.evidence in example.context
        assert abs(len(tiny_reader.encode(example.context)) - TOKENS) <= 3


def test_what_allows_neither_is_left_out(tiny_reader: Reader, tmp_path: Path) -> None:
    long, gold = document(0, 300, 40)
    short = "line one: REGISTER_CONTENT is <4>"
    path = write(tmp_path, [long, long, short, long], [gold, "", short, "nowhere"])
    kept = [found is not None for found in lengthened(tiny_reader, path, "kv-retrieval")]
    assert kept == [True, False, False, False]


def test_evidence_longer_than_the_context_is_left_out(tiny_reader: Reader, tmp_path: Path) -> None:
    long, _ = document(0, 300, 40)
    (found,) = lengthened(tiny_reader, write(tmp_path, [long], [long]), "kv-retrieval")
    assert found is None


def test_evidence_may_be_in_parts() -> None:
    def example(evidence: str, context: str = "ab\ncd\nef") -> Example:
        return Example(id="", group="", context=context, question="", answers=(), evidence=evidence)

    assert evidence_span(example("ab\n\nef")) == (0, 8)
    assert evidence_span(example(" ab\nef\n")) == (0, 8)
    assert evidence_span(example("ef\n\nab")) is None
    assert evidence_span(example("cd")) == (3, 5)
    assert evidence_span(example("cd\n\nxy")) is None
    assert evidence_span(example("")) is None
    assert evidence_span(example("ab", "ab cd ab")) is None  # which one is unclear
    assert evidence_span(example("x\nlong", "x long x")) == (0, 6)


def test_records_tell_the_length(tiny_embedder: ExtensibleEmbedder, tmp_path: Path) -> None:
    pairs = [document(number, 8, 3) for number in range(40)]
    path = write(tmp_path, [context for context, _ in pairs])
    records = evaluate_qa(
        tiny_embedder,
        [make_task("squad2", path)],
        methods=["truncate"],
        windows=[120],
        context_tokens=200,
        num_examples=3,
    )
    assert {record.context_tokens for record in records} == {200}
    assert {record.num_left_out for record in records} == {0}
    assert {record.num_examples for record in records} == {3}


def test_records_tell_what_was_left_out(tiny_embedder: ExtensibleEmbedder, tmp_path: Path) -> None:
    long, gold = document(0, 60, 30)
    path = write(tmp_path, [long] * 6, [gold, "", "", gold, "", gold])
    records = evaluate_qa(
        tiny_embedder,
        [make_task("kv-retrieval", path)],
        methods=["none"],
        windows=[200],
        context_tokens=200,
    )
    assert [(record.num_examples, record.num_left_out) for record in records] == [(3, 3)]


def test_a_task_without_any_such_context_says_so(
    tiny_embedder: ExtensibleEmbedder, tmp_path: Path
) -> None:
    path = write(tmp_path, ["line one: REGISTER_CONTENT is <4>"])
    with pytest.raises(InputError, match="cut around what answers, or filled"):
        evaluate_qa(
            tiny_embedder, [make_task("kv-retrieval", path)], windows=[120], context_tokens=500
        )


def test_a_story_is_not_cut(tiny_reader: Reader, tmp_path: Path) -> None:
    """What its last statement says may undo what an earlier one did."""
    story = "\n".join(["Fred took the milk.", *["Mary slept."] * 60, "Fred dropped the milk."])
    found = lengthened(tiny_reader, write(tmp_path, [story], ["Fred took the milk."]), "babi")
    assert found == [None]


def test_a_book_names_nobody_of_the_story(tiny_reader: Reader, tmp_path: Path) -> None:
    story = "Catherine went to the garden.\nThe milk is there.\nIsabella slept."
    for seed in range(5):
        (found,) = lengthened(tiny_reader, write(tmp_path, [story]), "babi", seed)
        assert found is not None
        assert found.context.count("Catherine") == found.context.count("Isabella") == 1


def test_a_long_context_can_be_cut_on_either_side_of_a_needle(tmp_path: Path) -> None:
    path, num_tokens = tmp_path / "books.parquet", 40_000
    pq.write_table(pa.table({"text": ["One sentence. Another sentence of words. " * 9000]}), path)
    example = next(make_task("needle", path).documents(num_tokens))
    place = example.context.find(example.evidence)
    assert min(place, len(example.context) - place) > 5 * num_tokens  # characters


def test_the_command_line_knows_the_least() -> None:
    """It refuses before anything is loaded, so that it has the number by itself."""
    assert LEAST_CONTEXT == LEAST_TOKENS


@pytest.mark.parametrize("num_tokens", [0, 63, "400", 400.0, True])
def test_a_length_is_a_number_of_tokens(
    tiny_reader: Reader, tmp_path: Path, num_tokens: int
) -> None:
    task = make_task("squad2", write(tmp_path, ["text"]))
    with pytest.raises(InputError, match="number of tokens of 64 or more"):
        Lengthener(tiny_reader, task, num_tokens, 0)


def test_gold_that_is_no_text_is_refused(tiny_reader: Reader, tmp_path: Path) -> None:
    path = write(tmp_path, ["text"], ["text"])
    table = pq.read_table(path)
    place = table.column_names.index("gold_context")
    pq.write_table(table.set_column(place, "gold_context", pa.array([["text"]])), path)
    with pytest.raises(InputError, match="under `gold_context`"):
        Lengthener(tiny_reader, make_task("squad2", path), 400, 0)


def test_what_fills_is_counted_once(
    tiny_reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts = [document(number, 8, 3)[0] for number in range(30)]
    lengthener = Lengthener(tiny_reader, make_task("squad2", write(tmp_path, contexts)), 10**6, 0)
    encoded: list[str] = []
    encode = Reader.encode

    def counting(self: Reader, text: str) -> object:
        encoded.append(text)
        return encode(self, text)

    monkeypatch.setattr(Reader, "encode", counting)
    assert [lengthener.lengthen(example) for example in lengthener.examples] == [None] * 30
    assert len(encoded) == 30 + 1
