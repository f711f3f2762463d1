"""Raw spans beside rows in training are those that mixed precision reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from extensible_embedding import ExtensibleEmbedder, Reader
from extensible_embedding.expand import expanded_prompt
from extensible_embedding.train.beside import raw_tokens, span_mark, spans_within
from extensible_embedding.train.packing import Piece, context_rows
from extensible_embedding.train.question_cache import QuestionFile, tokenize_questions
from extensible_embedding.train.questions import Questions, collate
from extensible_embedding.train.two_stream import TwoStreamModel

BIRDS = ("heron", "stork", "crane", "egret", "ibis")
CONTEXT = "\n".join(
    f"The {bird} of pond {number} is old and grey." for number, bird in enumerate(BIRDS * 2)
)
ROWS = [
    {"context": CONTEXT, "question": f"Which colour has the {bird}?", "answer": "grey"}
    for bird in BIRDS
]


@pytest.fixture
def file(tmp_path: Path, tiny_reader: Reader) -> QuestionFile:
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return tokenize_questions(path, tiny_reader, tmp_path / "cache")


def spans_of(file: QuestionFile, question: int, num_tokens: int) -> list[tuple[int, int]]:
    ends, order = file.piece_ends[0].tolist(), file.piece_orders[question].tolist()
    return spans_within(ends, order, num_tokens, len(file.mark))


@pytest.mark.parametrize("num_tokens", [8, 64, 100, 150])
def test_spans_are_those_of_mixed_precision(
    tiny_embedder: ExtensibleEmbedder, file: QuestionFile, num_tokens: int
) -> None:
    reader = tiny_embedder.reader
    context = tiny_embedder.compress(CONTEXT, k=4)
    for number, row in enumerate(ROWS):
        prompt = expanded_prompt(
            reader, [context], row["question"], k=4, expand=num_tokens, room=4096
        )
        spans = spans_of(file, number, num_tokens)
        assert spans == [(span.start, span.end) for span in prompt.spans] != []
        raw = [part for part in prompt.tensors(reader, 4) if part.ndim == 1]
        read = torch.cat(raw[2:-1])  # without head, the title of a context by itself, and tail
        assert torch.equal(raw_tokens(context.token_ids, spans, span_mark(reader)), read)


def test_spans_take_half_of_a_context_at_most(file: QuestionFile) -> None:
    num_tokens = len(file.contexts[0])
    spans = spans_of(file, 0, 10 * num_tokens)
    assert 0.3 < sum(end - start for start, end in spans) / num_tokens <= 0.5
    assert spans_of(file, 0, 0) == []
    assert spans_within([], [], 100, 5) == []
    assert spans_within([40], [0], 100, 5) == []  # all of a context of one piece


def reference(embedder: ExtensibleEmbedder, k: int, num_tokens: int, asked: set[int]) -> Tensor:
    """Mean loss of the answers, each after the prompt that mixed precision reads."""
    reader, losses = embedder.reader, []
    context = embedder.compress(CONTEXT, k=k)
    for number in sorted(asked):
        prompt = expanded_prompt(
            reader, [context], ROWS[number]["question"], k=k, expand=num_tokens, room=4096
        ).embeds(reader, k)
        end = torch.tensor([reader.tokenizer.eos_token_id])
        losses.append(reader.nll(prompt, torch.cat([reader.encode(ROWS[number]["answer"]), end])))
    return torch.cat(losses).mean()


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("k", [2, 8])
def test_the_loss_is_that_of_answers_after_rows_and_spans(
    tiny_embedder: ExtensibleEmbedder, file: QuestionFile, k: int, split: bool
) -> None:
    model = TwoStreamModel(tiny_embedder)
    model.split = split
    questions = Questions([file], scale_factors=[k], span_tokens=[100])
    loss = model(**collate([questions[0]]))["loss"].detach()
    asked = set(questions._draw(0).questions)
    assert len(asked) == 4
    torch.testing.assert_close(loss, reference(tiny_embedder, k, 100, asked))


def test_draws_say_how_many_tokens_before_they_are_read(file: QuestionFile) -> None:
    questions = Questions([file], scale_factors=[2, 4, 8], span_tokens=[0, 64, 150], seed=3)
    lengths = set()
    for index in range(30):
        drawn, size = questions[index], questions.size(index)
        piece = Piece.of_document(drawn, 16)
        assert sum(map(len, piece.blocks)) == size.block_tokens
        assert questions.num_predicted(index) == int(drawn.answers.sum())
        assert size.head_tokens + context_rows(size.context_tokens, 16, size.k) < len(CONTEXT)
        lengths.add((len(drawn.blocks), max(map(len, piece.blocks)) // 80))
    assert {count for count, _ in lengths} == {4, 5}
    assert len({length for _, length in lengths}) == 3


def test_where_all_is_raw_there_are_no_spans(file: QuestionFile) -> None:
    raw = Questions([file], scale_factors=[1], span_tokens=[150])[0]
    assert torch.equal(raw.blocks, Questions([file], scale_factors=[1])[0].blocks)


def test_a_context_too_short_for_spans_keeps_its_questions(
    tmp_path: Path, tiny_reader: Reader
) -> None:
    path = tmp_path / "short.jsonl"
    rows = [{**row, "context": "The ibis is grey."} for row in ROWS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    file = tokenize_questions(path, tiny_reader, tmp_path / "cache")
    assert len(Questions([file], scale_factors=[4], span_tokens=[150])[0].blocks) == len(ROWS)
