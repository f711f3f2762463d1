"""A packed batch has the losses of its pieces, each read alone, and hardly a place is wasted."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_embedder
from torch import Tensor

from extensible_embedding import ExtensibleEmbedder, Reader
from extensible_embedding.errors import ConfigError
from extensible_embedding.train import trainer
from extensible_embedding.train.config import TrainConfig
from extensible_embedding.train.data import Instance
from extensible_embedding.train.packed_attention import packed_mask
from extensible_embedding.train.packed_batches import collate_packed
from extensible_embedding.train.packing import PackedSequences, Piece
from extensible_embedding.train.questions import Document
from extensible_embedding.train.trainer import build, instances, packed_sequences, train
from extensible_embedding.train.two_stream import TwoStreamModel, plain_cross_entropy

from .conftest import KillAfter, Killed, Watch, same, weights
from .test_two_stream import assert_same, gradients

HEAD = torch.tensor([7])


def instance(num_chunks: int, chunk_tokens: int, k: int) -> Instance:
    generator = torch.Generator().manual_seed(num_chunks * chunk_tokens + k)
    ids = torch.randint(0, 256, (num_chunks, chunk_tokens), generator=generator)
    return Instance(token_ids=ids, k=k)


def document(context_tokens: int, k: int) -> Document:
    generator = torch.Generator().manual_seed(context_tokens)

    def some(*shape: int) -> Tensor:
        return torch.randint(0, 256, shape, generator=generator)

    answers = torch.zeros(2, 7, dtype=torch.bool)
    answers[0, 3:7] = answers[1, 4:6] = True
    return Document(
        head=some(3), context=some(context_tokens), blocks=some(2, 7), answers=answers, k=k
    )


def packed(sequences: list[list[Piece]], **more: Any) -> dict[str, Tensor]:
    settings = {
        "sequence_places": 160,
        "chunk_tokens": 16,
        "question_share": 0.25,
        "sampling": "strided",
        **more,
    }
    return collate_packed(sequences, **settings)["packed"]


@pytest.mark.parametrize("sampling", ["strided", "terminal"])
def test_texts_have_the_loss_of_each_alone(tiny_reader: Reader, sampling: str) -> None:
    """Of instances whose chunks are the embedder's, so that both ways embed alike."""
    tiny_embedder = make_embedder(tiny_reader, chunk_tokens=16, down_sampling=sampling)
    model = TwoStreamModel(tiny_embedder)
    head: Tensor = model.head_ids  # type: ignore[assignment]
    drawn = [instance(3, 16, 4), instance(4, 16, 2), instance(2, 16, 8)]
    pieces = [Piece.of_instance(each, head) for each in drawn]
    loss = model(packed=packed([pieces[:2], pieces[2:]], sampling=sampling))["loss"]
    counts = torch.tensor([each.token_ids[1:].numel() for each in drawn])
    alone = torch.stack([model(each.token_ids[None], each.k)["loss"] for each in drawn])
    expected = (alone * counts).sum() / counts.sum()
    torch.testing.assert_close(loss, expected)
    assert_same(gradients(tiny_embedder, loss), gradients(tiny_embedder, expected))


@pytest.mark.parametrize("sampling", ["strided", "terminal"])
def test_answers_have_the_loss_of_each_alone(tiny_reader: Reader, sampling: str) -> None:
    tiny_embedder = make_embedder(tiny_reader, chunk_tokens=16, down_sampling=sampling)
    model, drawn = TwoStreamModel(tiny_embedder), [document(37, 4), document(16, 8)]
    fields = ("head", "context", "blocks", "answers")
    alone = [{name: getattr(each, name) for name in fields} for each in drawn]
    expected = (
        sum(
            model(k=each.k, documents=[one])["loss"] for each, one in zip(drawn, alone, strict=True)
        )
        / 2
    )
    pieces = [Piece.of_document(each, 16) for each in drawn]
    loss = model(packed=packed([pieces], sampling=sampling))["loss"]
    torch.testing.assert_close(loss, expected)
    assert_same(gradients(tiny_embedder, loss), gradients(tiny_embedder, expected))


def test_answers_and_text_weigh_what_the_share_says(tiny_embedder: ExtensibleEmbedder) -> None:
    model = TwoStreamModel(tiny_embedder)
    text = Piece.of_instance(instance(3, 16, 4), HEAD)
    asked = Piece.of_document(document(37, 4), 16)
    of_text, of_answers = (model(packed=packed([[piece]]))["loss"] for piece in (text, asked))
    both = model(packed=packed([[asked, text]]))["loss"]
    torch.testing.assert_close(both, 0.25 * of_answers + 0.75 * of_text)


def test_short_blocks_read_rows_of_whole_reading_chunks(tiny_embedder: ExtensibleEmbedder) -> None:
    """Rows are those of `compress`, whatever the blocks' own length."""
    each = instance(5, 8, 4)
    batch = packed([[Piece.of_instance(each, HEAD)]])
    rows = tiny_embedder.rows_at(batch["chunks"], batch["row_outputs"])
    expected = tiny_embedder.compress(each.token_ids[:-1].flatten(), k=4).rows
    torch.testing.assert_close(rows, expected)
    assert batch["row_places"].tolist() == list(range(1, 9))


def test_a_block_sees_its_rows_and_itself_and_nothing_of_others() -> None:
    pieces = [Piece.of_instance(instance(3, 8, 4), HEAD), Piece.of_document(document(16, 8), 16)]
    batch = packed([pieces])
    mask = packed_mask(batch["start"], batch["seen"], batch["own"])
    assert isinstance(mask, Tensor)
    sees = mask[0, 0]
    # [0 head][1-4 rows][5-12 block][13-20 block][21-23 head][24-25 rows][26-32][33-38] rest
    assert sees[5].nonzero()[:, 0].tolist() == [0, 1, 2, 5]
    assert sees[13].nonzero()[:, 0].tolist() == [0, 1, 2, 3, 4, 13]
    assert sees[3].nonzero()[:, 0].tolist() == [0, 1, 2, 3]
    assert sees[24].nonzero()[:, 0].tolist() == [21, 22, 23, 24]
    assert sees[34].nonzero()[:, 0].tolist() == [21, 22, 23, 24, 25, 33, 34]
    assert sees.any(-1).all()
    assert batch["positions"][0, [5, 12, 13, 20, 21, 26, 33]].tolist() == [3, 10, 5, 12, 0, 5, 5]
    assert batch["own"][0, [0, 3, 5, 12, 13, 26, 38]].tolist() == [0, 3, 5, 5, 13, 26, 33]


def test_the_form_for_compilers_is_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 11, generator=generator, requires_grad=True)
    labels = torch.randint(0, 11, (5,), generator=generator)
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    expected.sum().backward()
    losses, found = plain_cross_entropy(logits.detach(), labels)
    torch.testing.assert_close(losses, expected.detach())
    torch.testing.assert_close(found, logits.grad)


@pytest.fixture
def asking(config: TrainConfig, tmp_path: Path) -> TrainConfig:
    """Twelve steps of packed text and questions."""
    rows = [
        {"context": f"The {name} is {number}. " * 4, "question": name, "answers": [str(number)]}
        for number, name in enumerate(["fox", "hen", "cat", "dog"])
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return dataclasses.replace(
        config, questions=[str(path)], sequence_places=256, batch_size=2, question_share=0.5
    )


def drawn(config: TrainConfig, reader: Reader) -> PackedSequences:
    embedder = build(config, reader)
    return packed_sequences(config, instances(config, reader), embedder, None)


def test_sequences_are_full_and_counted(asking: TrainConfig, reader: Reader) -> None:
    sequences = drawn(asking, reader)
    found = [sequences[index] for index in range(len(sequences))]
    assert {sequences.asks(index) for index in range(8)} == {True, False}
    for index, pieces in enumerate(found):
        batch = packed([pieces], sequence_places=256)
        of_answers = sum(sum(piece.predicted) for piece in pieces if piece.asks)
        assert sequences.num_predicted(index) == (len(batch["labels"]), of_answers)
        assert sequences.asks(index) == (of_answers > 0)
        # Less is left over than the smallest piece of text of the lengths drawn here takes.
        assert (batch["seen"] == 0).sum() < 1 + 16 + 8


def test_first_steps_have_their_own_scale_factors(asking: TrainConfig, reader: Reader) -> None:
    config = dataclasses.replace(asking, first_scale_factors=[8], first_steps=3)
    sequences = drawn(config, reader)
    per_step = config.batch_size * config.gradient_accumulation_steps
    factors = [{piece.k for piece in sequences[index]} for index in range(6 * per_step)]
    assert set.union(*factors[: 3 * per_step]) == {8}
    assert set.union(*factors[3 * per_step :]) == {2, 4}


def test_a_killed_run_goes_on_exactly(asking: TrainConfig, reader: Reader, tmp_path: Path) -> None:
    watch = Watch()
    whole = train(asking, reader=reader, callbacks=[watch])
    assert watch.losses()[-1] < watch.losses()[0]
    other = dataclasses.replace(asking, output_dir=str(tmp_path / "other"))
    with pytest.raises(Killed):
        train(other, reader=reader, callbacks=[KillAfter(6)])
    assert same(weights(train(other, reader=reader)), weights(whole))


def test_a_packed_run_evaluates_on_plain_instances(asking: TrainConfig, reader: Reader) -> None:
    watch = Watch()
    config = dataclasses.replace(asking, eval_data=asking.data, eval_steps=6, eval_instances=4)
    train(config, reader=reader, callbacks=[watch])
    assert len(watch.losses("eval_loss")) == 2


def test_workers_make_the_same_batches(asking: TrainConfig, reader: Reader, tmp_path: Path) -> None:
    short = dataclasses.replace(asking, max_steps=2)
    alone = weights(train(short, reader=reader))
    other = dataclasses.replace(short, workers=1, output_dir=str(tmp_path / "other"))
    assert same(weights(train(other, reader=reader)), alone)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"question_share": 1.0}, "`question_share` is below 1 with `sequence_places`"),
        ({"first_steps": 3}, "come together, but they are None and 3; give both or neither"),
        ({"first_scale_factors": [2]}, r"come together, but they are \[2\] and 0"),
        ({"one_stream": True}, "`one_stream` is false with `sequence_places`"),
        ({"sequence_places": 0}, "`sequence_places` is a whole number, 1 or more"),
    ],
)
def test_what_cannot_be_packed_is_refused(
    asking: TrainConfig, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(asking, **change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scale_factors": [3]}, "every k divides every chunk length, but 3 does not divide 8"),
        ({"first_scale_factors": [5], "first_steps": 1}, "but 5 does not divide 8"),
        ({"down_sampling": "mean"}, "rows are picked of the embedder's outputs, .* are 'mean'"),
        (
            {"down_sampling": "terminal"},
            "whole chunks of the reading length, 16 .* has 8",
        ),
        ({"sequence_places": 24}, "holds the rows of one chunk and the next chunk, 25 places"),
    ],
)
def test_what_does_not_pack_with_this_embedder_is_refused(
    asking: TrainConfig, reader: Reader, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        train(dataclasses.replace(asking, **change), reader=reader)


def test_questions_that_no_sequence_holds_are_refused(
    asking: TrainConfig, reader: Reader, tmp_path: Path
) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"context": "word " * 80, "question": "?", "answers": ["x"]}))
    short = dataclasses.replace(asking, sequence_places=100)
    with pytest.raises(ConfigError, match="of 256 documents drawn none fits 100 places"):
        train(dataclasses.replace(short, questions=[str(path)]), reader=reader)
    mixed = dataclasses.replace(short, questions=[str(path), *(asking.questions or [])])
    sequences = drawn(mixed, reader)
    assert any(sequences.num_predicted(index)[1] for index in range(8))


def test_averaged_rows_of_init_from_are_refused(
    asking: TrainConfig, reader: Reader, tmp_path: Path
) -> None:
    plain = dataclasses.replace(asking, sequence_places=None, max_steps=1, down_sampling="mean")
    again = dataclasses.replace(
        asking, init_from=str(train(plain, reader=reader)), output_dir=str(tmp_path / "again")
    )
    with pytest.raises(ConfigError, match="rows are picked of .*, but its rows are 'mean'"):
        train(again, reader=reader)


def test_the_reading_chunk_is_that_of_the_embedder(
    asking: TrainConfig, reader: Reader, tmp_path: Path
) -> None:
    first = dataclasses.replace(asking, max_steps=1, reading_chunk_tokens=24, scale_factors=[8])
    folder = str(train(first, reader=reader))
    again = dataclasses.replace(
        asking,
        init_from=folder,
        output_dir=str(tmp_path / "again"),
        reading_chunk_tokens=256,
        scale_factors=[16],
        chunk_tokens=[16],
    )
    with pytest.raises(ConfigError, match="16 does not divide 24"):
        train(again, reader=reader)


def test_readers_with_other_attention_are_refused(
    asking: TrainConfig, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "can_split", lambda reader: False)
    with pytest.raises(ConfigError, match="plain causal attention, but 'tiny' has other layers"):
        train(asking, reader=reader)


def test_plain_form_packs(tiny_reader: Reader) -> None:
    embedder = make_embedder(tiny_reader, residual=False)
    batch = packed([[Piece.of_instance(instance(3, 16, 4), HEAD)]])
    found = gradients(embedder, TwoStreamModel(embedder)(packed=batch)["loss"])
    assert found["output_scale"].abs() > 0
