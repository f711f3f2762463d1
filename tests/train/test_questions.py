"""The second stage: what is trained is what a question on a context reads, and nothing else."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import byte_tokenizer, make_embedder, tiny_llama
from torch import Tensor

from extensible_embedding import ExtensibleEmbedder, Reader
from extensible_embedding.errors import ConfigError, InputError
from extensible_embedding.prompt import question_prompt
from extensible_embedding.train import question_cache
from extensible_embedding.train.checkpoints import SETTINGS
from extensible_embedding.train.config import TrainConfig
from extensible_embedding.train.question_cache import QuestionFile, tokenize_questions
from extensible_embedding.train.questions import (
    MAX_QUESTIONS,
    Document,
    Mixed,
    Questions,
    collate,
)
from extensible_embedding.train.trainer import instances, train, with_questions
from extensible_embedding.train.two_stream import TwoStreamModel

ROWS = [
    {"context": "The heron is blue and old.", "question": "Which colour?", "answers": ["blue"]},
    {"context": "The heron is blue and old.", "question": "How young?", "answers": ["old", "x"]},
    {"context": "A boat lay by the quay." * 3, "question": "Where?", "answer": "by the quay"},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def file(tmp_path: Path, tiny_reader: Reader) -> QuestionFile:
    return tokenize_questions(write(tmp_path / "q.jsonl", ROWS), tiny_reader, tmp_path / "cache")


def reference(embedder: ExtensibleEmbedder, rows: list[dict[str, Any]], k: int) -> Tensor:
    """Mean loss of each answer and end token, read after the prompt that `answer` would read."""
    reader, losses = embedder.reader, []
    for row in rows:
        context = embedder.compress(row["context"], k=k)
        prompt = question_prompt(reader, [context], row["question"]).embeds(reader, k)
        answer = row["answers"][0] if "answers" in row else row["answer"]
        end = torch.tensor([reader.tokenizer.eos_token_id])
        losses.append(reader.nll(prompt, torch.cat([reader.encode(answer), end])))
    return torch.cat(losses).mean()


def document(questions: Questions, num_questions: int) -> Document:
    """One with that many questions; of the file above there is one of each number."""
    drawn = (questions[index] for index in range(100))
    return next(each for each in drawn if len(each.blocks) == num_questions)


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("k", [2, 4])
def test_the_loss_is_that_of_answers_after_the_prompt_that_is_read(
    tiny_embedder: ExtensibleEmbedder, file: QuestionFile, k: int, split: bool
) -> None:
    model = TwoStreamModel(tiny_embedder)
    model.split = split
    questions = Questions([file], scale_factors=[k])
    for rows in (ROWS[:2], ROWS[2:]):
        batch = collate([document(questions, len(rows))])
        loss = model(**batch)["loss"]
        torch.testing.assert_close(loss.detach(), reference(tiny_embedder, rows, k))


def test_a_reader_without_a_chat_template(tmp_path: Path) -> None:
    embedder = make_embedder(Reader(tiny_llama(), byte_tokenizer(chat=False), name="plain"))
    path = write(tmp_path / "q.jsonl", ROWS[2:])
    file = tokenize_questions(path, embedder.reader, tmp_path / "cache")
    loss = TwoStreamModel(embedder)(**collate([Questions([file], scale_factors=[4])[0]]))["loss"]
    spaced = [{**ROWS[2], "answer": " by the quay"}]
    torch.testing.assert_close(loss.detach(), reference(embedder, spaced, 4))


def test_a_batch_is_the_mean_of_all_answer_tokens(
    tiny_embedder: ExtensibleEmbedder, file: QuestionFile
) -> None:
    questions = Questions([file], scale_factors=[4])
    batch = collate([document(questions, 2), document(questions, 1)])
    loss = TwoStreamModel(tiny_embedder)(**batch)["loss"]
    torch.testing.assert_close(loss.detach(), reference(tiny_embedder, ROWS, 4))


def test_gradients_reach_every_weight_and_no_reader(
    tiny_embedder: ExtensibleEmbedder, file: QuestionFile
) -> None:
    batch = collate([document(Questions([file], scale_factors=[4]), 2)])
    TwoStreamModel(tiny_embedder)(**batch)["loss"].backward()
    trained = [weight for weight in tiny_embedder.parameters() if weight.requires_grad]
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in trained)
    assert all(weight.grad is None for weight in tiny_embedder.reader.model.parameters())


def test_predicted_tokens_are_counted_without_reading(file: QuestionFile) -> None:
    questions = Questions([file], scale_factors=[2, 4])
    for index in range(10):
        assert questions.num_predicted(index) == int(questions[index].answers.sum())


def test_draws_depend_on_the_seed_and_the_number_alone(file: QuestionFile) -> None:
    one, two = (Questions([file], scale_factors=[2, 4, 8], batch_size=2, seed=5) for _ in "ab")
    other = Questions([file], scale_factors=[2, 4, 8], batch_size=2, seed=6)
    drawn = [one[index] for index in range(40)]
    for index in reversed(range(40)):
        assert torch.equal(two[index].blocks, drawn[index].blocks)
        assert two[index].k == drawn[index].k
    assert all(drawn[index].k == drawn[index + 1].k for index in range(0, 40, 2))
    assert {each.k for each in drawn} == {2, 4, 8}
    assert any(other[index].k != drawn[index].k for index in range(40))


def test_at_most_so_many_questions_of_a_document(tmp_path: Path, tiny_reader: Reader) -> None:
    rows = [{**ROWS[0], "question": f"Which colour has number {n}?"} for n in range(20)]
    path = write(tmp_path / "q.jsonl", rows)
    file = tokenize_questions(path, tiny_reader, tmp_path / "cache")
    drawn = Questions([file], scale_factors=[4])
    assert len(file) == 1
    assert {len(drawn[index].blocks) for index in range(5)} == {MAX_QUESTIONS}
    assert not torch.equal(drawn[0].blocks, drawn[1].blocks)


def test_parquet_reads_as_jsonl_does(tmp_path: Path, tiny_reader: Reader) -> None:
    rows = [{**ROWS[0], "task": "colours"}, ROWS[1]]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "q.parquet")
    files = [
        tokenize_questions(path, tiny_reader, tmp_path / "cache")
        for path in (tmp_path / "q.parquet", write(tmp_path / "q.jsonl", rows))
    ]
    for name in ("num_answer", "first_question"):
        assert (getattr(files[0], name) == getattr(files[1], name)).all()
    assert (files[0].blocks.token_ids == files[1].blocks.token_ids).all()


def test_the_cache_is_used_and_another_template_has_its_own(
    tmp_path: Path, tiny_reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cache = write(tmp_path / "q.jsonl", ROWS), tmp_path / "cache"
    tokenize_questions(path, tiny_reader, cache)
    plain = Reader(tiny_llama(), byte_tokenizer(chat=False), name="plain")
    tokenize_questions(path, plain, cache)
    assert len(list(cache.iterdir())) == 2
    monkeypatch.setattr(question_cache, "read_questions", lambda path: pytest.fail("read again"))
    tokenize_questions(path, tiny_reader, cache)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"context": "a", "question": "b"}, "row 2 has no answer"),
        ({"context": "a", "question": "", "answer": "b"}, "row 2 has no question"),
        ({"context": 3, "question": "a", "answers": ["b"]}, "row 2 has no context"),
        ({"context": "a", "question": "a", "answers": []}, "row 2 has no answer"),
        ({"context": "long " * 400, "question": "Why?", "answer": "b"}, "'Why.' takes 2[0-9]+;"),
        ([1], "row 2 is no object"),
    ],
)
def test_rows_of_another_form_are_refused(
    tmp_path: Path, tiny_reader: Reader, row: Any, message: str
) -> None:
    path = write(tmp_path / "q.jsonl", [ROWS[0], row])
    with pytest.raises(InputError, match=message):
        tokenize_questions(path, tiny_reader, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("q-*"))


@pytest.mark.parametrize("text", [None, "", "\n\n", "{", "\x00"])
def test_files_of_another_form_are_refused(
    tmp_path: Path, tiny_reader: Reader, text: str | None
) -> None:
    path = tmp_path / "q.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match="Training questions are"):
        tokenize_questions(path, tiny_reader, tmp_path / "cache")


def test_no_parquet_is_refused(tmp_path: Path, tiny_reader: Reader) -> None:
    (tmp_path / "q.parquet").write_bytes(b"PAR0")
    with pytest.raises(InputError, match="cannot be read so"):
        tokenize_questions(tmp_path / "q.parquet", tiny_reader, tmp_path / "cache")


@pytest.fixture
def asking(config: TrainConfig, tmp_path: Path) -> TrainConfig:
    path = write(tmp_path / "questions.jsonl", ROWS)
    return dataclasses.replace(config, questions=[str(path)], question_share=0.5)


def mixed(config: TrainConfig, reader: Reader) -> Mixed:
    return with_questions(config, instances(config, reader), reader)


def test_batches_are_text_or_questions_in_the_share_asked(
    asking: TrainConfig, reader: Reader
) -> None:
    more = dataclasses.replace(asking, max_steps=400, question_share=0.25, batch_size=2)
    drawn = mixed(more, reader)
    asks = [drawn.asks(index) for index in range(800)]
    assert asks[::2] == asks[1::2]
    assert 0.2 < sum(asks) / len(asks) < 0.3
    assert not any(mixed(dataclasses.replace(more, questions=None), reader).asks(i) for i in (0, 9))


def test_a_run_on_questions_learns_and_is_counted(asking: TrainConfig, reader: Reader) -> None:
    before = {name: weight.clone() for name, weight in reader.model.state_dict().items()}
    folder = train(asking, reader=reader)
    record = ExtensibleEmbedder.from_pretrained(folder, reader).training_record
    counts = [mixed(asking, reader).num_predicted(number) for number in range(12 * 2)]
    assert record["tokens"] == sum(tokens for tokens, _ in counts)
    assert record["answer_tokens"] == sum(of_answers for _, of_answers in counts)
    assert 0 < int(str(record["answer_tokens"])) < int(str(record["tokens"]))
    assert all(torch.equal(before[name], w) for name, w in reader.model.state_dict().items())


def test_a_run_goes_on_only_with_its_own_questions(asking: TrainConfig, reader: Reader) -> None:
    train(dataclasses.replace(asking, max_steps=4), reader=reader)
    file = Path(asking.output_dir) / "checkpoint-4" / SETTINGS
    saved = json.loads(file.read_text())
    assert saved.pop("span_tokens") == [0]
    file.write_text(json.dumps(saved))  # as an earlier version wrote it
    for change in ({"question_share": 0.25}, {"span_tokens": [64]}, {"questions": None}):
        with pytest.raises(ConfigError, match=f"`{next(iter(change))}` was"):
            train(dataclasses.replace(asking, **change), reader=reader)  # type: ignore[arg-type]


def test_missing_questions_are_refused_before_anything_is_loaded(asking: TrainConfig) -> None:
    with pytest.raises(InputError, match="'none.jsonl' is none; check `questions`"):
        train(dataclasses.replace(asking, questions=["none.jsonl"]))
