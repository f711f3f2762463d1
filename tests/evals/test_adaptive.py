"""The way of reading that has predicted the text best so far reads on."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import byte_tokenizer, tiny_llama
from torch import Tensor

from extensible_embedding import ExtensibleEmbedder, Reader
from extensible_embedding.evals.lm import evaluate_lm
from extensible_embedding.evals.methods import Method, Passage, Reading, make_method
from extensible_embedding.evals.methods.adaptive import (
    AHEAD_NATS,
    SWITCH_TOKENS,
    TRIAL_TOKENS,
    AdaptiveReading,
    ExtensibleAdaptive,
)
from extensible_embedding.evals.methods.base import EmbedsReading
from extensible_embedding.evals.methods.following import FollowingReading
from extensible_embedding.evals.methods.rows import Extensible
from extensible_embedding.pieces import PIECE_TOKENS

ROOM = 161


def ids(text: str) -> Tensor:
    return Reader(tiny_llama(), byte_tokenizer()).encode(text)


def passage(tail: str = "", num_tokens: int = 600, num_next: int = 300) -> Passage:
    text = "the magic number was seven, and rain fell upon every hill. " * 16
    return Passage(head=ids("H"), context=ids(text[:num_tokens]), tail=ids(tail), num_next=num_next)


def embeds(reading: object) -> Tensor:
    if isinstance(reading, FollowingReading):
        reading = reading.first
    assert isinstance(reading, EmbedsReading)
    return reading.embeds


class Told(EmbedsReading):
    """A reading with a loss that it is made with."""

    def nll(self, target_ids: Tensor) -> Tensor:
        return torch.full((len(target_ids),), float(self.embeds[0, 0]))


class Way(Method):
    """A way of reading that remembers what it was given."""

    def __init__(self, reader: Reader, loss: float) -> None:
        super().__init__(reader)
        self.loss, self.read_so_far = loss, list[Passage]()

    def read(self, passage: Passage, room: int) -> Reading:
        self.read_so_far.append(passage)
        return Told(reader=self.reader, embeds=torch.full((room, 1), self.loss))


def ways(embedder: ExtensibleEmbedder, *losses: float) -> tuple[ExtensibleAdaptive, list[Way]]:
    method = make_method("extensible-adaptive", embedder, k=8)
    assert isinstance(method, ExtensibleAdaptive)
    made = [Way(embedder.reader, loss) for loss in losses]
    method._ways = tuple(made)
    return method, made


def test_it_is_another_version_where_what_it_reads_by_is(tiny_embedder: ExtensibleEmbedder) -> None:
    """Kept answers of another way of reading are not taken for its own."""
    adaptive, mixed = (
        make_method(name, tiny_embedder, k=8).version
        for name in ("extensible-adaptive", "extensible-mixed")
    )
    assert (adaptive, mixed) == (11, 11), "raise both where a question is read otherwise"


@pytest.mark.parametrize("best", [0, 1, 2])
def test_the_way_with_the_least_loss_on_the_end_reads_first(
    tiny_embedder: ExtensibleEmbedder, best: int
) -> None:
    method, made = ways(tiny_embedder, *(float(number != best) for number in range(3)))
    here = passage()
    reading = method.read(here, ROOM)
    assert isinstance(reading, AdaptiveReading)
    assert embeds(reading.first)[0, 0] == 0
    assert reading.first is reading.readings[best]
    for way in made:
        early, whole = way.read_so_far
        assert torch.equal(early.context, here.context[:-TRIAL_TOKENS])
        assert whole is here
    assert reading.trials.shape == (3, TRIAL_TOKENS)


def test_it_writes_as_its_first_way_does(tiny_embedder: ExtensibleEmbedder) -> None:
    method = make_method("extensible-adaptive", tiny_embedder, k=8)
    reading = method.read(passage(), ROOM)
    assert isinstance(reading, AdaptiveReading)
    assert reading.generate(4) == reading.first.generate(4)
    assert reading.k == 8
    assert 0 < reading.first.num_rows <= reading.num_rows <= ROOM


def test_a_trial_takes_no_more_places_than_what_follows(tiny_embedder: ExtensibleEmbedder) -> None:
    method, _ = ways(tiny_embedder, 0.0, 0.0, 0.0)
    reading = method.read(passage(num_next=20), ROOM)
    assert isinstance(reading, AdaptiveReading)
    assert reading.trials.shape == (3, 20)


class Fixed(EmbedsReading):
    """A reading with the losses that it is made with."""

    def nll(self, target_ids: Tensor) -> Tensor:
        return self.embeds


def adaptive(trials: list[float], *losses: Tensor) -> AdaptiveReading:
    reader = Reader(tiny_llama(), byte_tokenizer())
    readings = tuple(Fixed(reader=reader, embeds=each) for each in losses)
    return AdaptiveReading(readings=readings, trials=torch.tensor(trials)[:, None])


def test_another_way_reads_on_once_it_has_done_better() -> None:
    block = torch.ones(SWITCH_TOKENS)
    first, second = torch.cat([2 * block, block, block]), torch.cat([block, block, 3 * block])
    hopeless = 9 * block.repeat(3)
    found = adaptive([1.0, 2.0, 9.0], first, second, hopeless).nll(torch.arange(3 * SWITCH_TOKENS))
    # The second one is ahead after the first block, and reads on though it then does worse.
    assert torch.equal(found, torch.cat([2 * block, block, 3 * block]))


@pytest.mark.parametrize(("behind", "reads"), [(0.9, True), (1.1, False)])
def test_the_last_way_gives_way_to_one_that_is_clearly_better(behind: float, reads: bool) -> None:
    """A little better on a few tokens is not enough, and what is enough fades."""
    losses = torch.zeros(2 * SWITCH_TOKENS), torch.ones(2 * SWITCH_TOKENS)
    found = adaptive([0.0, behind * AHEAD_NATS], *losses).nll(torch.arange(2 * SWITCH_TOKENS))
    assert bool(found[0]) == reads
    assert not found[-1]


def test_no_way_is_chosen_for_what_is_still_to_come() -> None:
    generator = torch.Generator().manual_seed(0)
    losses = [torch.rand(3 * SWITCH_TOKENS + 7, generator=generator) for _ in range(3)]
    targets = torch.arange(len(losses[0]))
    found = adaptive([3.0, 3.1, 3.2], *losses).nll(targets)
    for end in range(0, len(targets), SWITCH_TOKENS):
        other = [torch.cat([each[: end + 1], 9 * each[end + 1 :].flip(0)]) for each in losses]
        again = adaptive([3.0, 3.1, 3.2], *other).nll(targets)
        assert torch.equal(again[: end + 1], found[: end + 1])


def test_the_reading_of_a_text_is_one_of_its_ways_block_by_block(
    tiny_embedder: ExtensibleEmbedder,
) -> None:
    reading = make_method("extensible-adaptive", tiny_embedder, k=8).read(passage(), ROOM)
    assert isinstance(reading, AdaptiveReading)
    targets = ids("rain fell upon every hill. " * 3)
    found, each = reading.nll(targets), [way.nll(targets) for way in reading.readings]
    for block, *ways in zip(
        found.split(SWITCH_TOKENS), *(way.split(SWITCH_TOKENS) for way in each), strict=True
    ):
        assert any(torch.equal(block, way) for way in ways)


def test_the_three_ways_differ(tiny_embedder: ExtensibleEmbedder) -> None:
    method = ExtensibleAdaptive(tiny_embedder, 8)
    kinds = {tuple(embeds(way.read(passage(), ROOM)).sum(1).tolist()) for way in method._ways}
    assert len(kinds) == 3


def test_its_way_with_spans_reads_more_of_them_than_mixed_does(
    tiny_embedder: ExtensibleEmbedder,
) -> None:
    here, room = passage(num_tokens=900), 10 * PIECE_TOKENS
    third = ExtensibleAdaptive(tiny_embedder, 8)._ways[2].read(here, room)
    mixed = make_method("extensible-mixed", tiny_embedder, k=8).read(here, room)
    assert isinstance(third, FollowingReading)
    assert isinstance(mixed, FollowingReading)
    assert (third.room, mixed.room) == (3 * PIECE_TOKENS, 2 * PIECE_TOKENS)


@pytest.mark.parametrize(("tail", "num_tokens"), [("magic number?", 480), ("", 200)])
def test_before_a_question_and_in_short_texts_spans_are_raw(
    tiny_embedder: ExtensibleEmbedder, tail: str, num_tokens: int
) -> None:
    here = passage(tail, num_tokens)
    found, mixed = (
        embeds(make_method(name, tiny_embedder, k=8).read(here, ROOM))
        for name in ("extensible-adaptive", "extensible-mixed")
    )
    torch.testing.assert_close(found, mixed)


def test_losses_of_a_method_that_read_otherwise_stand_apart(
    tiny_embedder: ExtensibleEmbedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    books, journal = tmp_path / "books.parquet", tmp_path / "lm.journal"
    pq.write_table(pa.table({"text": ["the sun rose over the hill. " * 30]}), books)

    def measured() -> str:
        before = journal.read_text() if journal.exists() else ""
        evaluate_lm(
            tiny_embedder,
            [books],
            methods=["truncate", "extensible"],
            context_tokens=[64],
            windows=[60],
            target_tokens=16,
            num_targets=1,
            journal=journal,
        )
        return journal.read_text().removeprefix(before)

    assert f'"{Extensible.label()}"' in measured()
    assert not measured()
    monkeypatch.setattr(Extensible, "version", Extensible.version + 1)
    new = measured()
    assert f'"{Extensible.label()}"' in new
    assert "truncate" not in new
