"""The way of reading that predicted the end of the context best reads all of it."""

from __future__ import annotations

import pytest
import torch
from conftest import byte_tokenizer, tiny_llama
from torch import Tensor

from extensible_embedding import ExtensibleEmbedder, Reader
from extensible_embedding.evals.methods import Passage, make_method
from extensible_embedding.evals.methods.adaptive import TRIAL_TOKENS, ExtensibleAdaptive
from extensible_embedding.evals.methods.base import EmbedsReading

ROOM = 161


def ids(text: str) -> Tensor:
    return Reader(tiny_llama(), byte_tokenizer()).encode(text)


def passage(tail: str = "", num_tokens: int = 480) -> Passage:
    text = "the magic number was seven, and rain fell upon every hill. " * 9
    return Passage(head=ids("H"), context=ids(text[:num_tokens]), tail=ids(tail))


def embeds(reading: object) -> Tensor:
    assert isinstance(reading, EmbedsReading)
    return reading.embeds


@pytest.mark.parametrize("best", [0, 1, 2])
def test_the_way_with_the_least_loss_on_the_end_reads(
    tiny_embedder: ExtensibleEmbedder, monkeypatch: pytest.MonkeyPatch, best: int
) -> None:
    method = make_method("extensible-adaptive", tiny_embedder, k=8)
    assert isinstance(method, ExtensibleAdaptive)
    here, trials = passage(), []

    def nll(self: EmbedsReading, target_ids: Tensor) -> Tensor:
        trials.append(target_ids)
        return torch.full((len(target_ids),), float(len(trials) - 1 != best))

    monkeypatch.setattr(EmbedsReading, "nll", nll)
    found = embeds(method.read(here, ROOM))
    assert len(trials) == 3
    assert all(torch.equal(end, here.context[-TRIAL_TOKENS:]) for end in trials)
    torch.testing.assert_close(found, embeds(method._ways[best].read(here, ROOM)))


def test_the_three_ways_differ(tiny_embedder: ExtensibleEmbedder) -> None:
    method = ExtensibleAdaptive(tiny_embedder, 8)
    kinds = {tuple(embeds(way.read(passage(), ROOM)).sum(1).tolist()) for way in method._ways}
    assert len(kinds) == 3


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
