"""What a sample says of a reading."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from extensible_embedding import ExtensibleEmbedder
from extensible_embedding.evals.cost_readings import reading_maker
from extensible_embedding.evals.cost_settings import ONLINE, CostSetting
from extensible_embedding.evals.flops import (
    Shape,
    compress_flops,
    head_flops,
    layers_flops,
    read_flops,
    shape_of,
)
from extensible_embedding.evals.methods import EmbedsReading, Reading
from extensible_embedding.evals.stopwatch import Sample, measure

BYTES_A_ROW = 4 * 2 * 2 * 8 * 4  # layers, keys and values, key heads, head size, float32


@pytest.fixture
def shape(tiny_embedder: ExtensibleEmbedder) -> Shape:
    return shape_of(tiny_embedder.reader.model.config)


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(97, 123, (100,), generator=torch.Generator().manual_seed(1))


Measure = Callable[..., Sample]


@pytest.fixture
def sample_of(tiny_embedder: ExtensibleEmbedder, shape: Shape, ids: Tensor) -> Measure:
    def sample_of(method: str, k: int = 1, window: int | None = None, new: int = 5) -> Sample:
        setting = CostSetting(method, ONLINE, k, len(ids), window)
        return measure(reading_maker(tiny_embedder, setting, ids, new), tiny_embedder, shape, new)

    return sample_of


def test_raw_reading(sample_of: Measure, shape: Shape) -> None:
    sample = sample_of("raw")
    assert (sample.num_rows, sample.k) == (101, 1)
    assert sample.cache_bytes == 101 * BYTES_A_ROW
    assert sample.flops == read_flops(shape, 101)
    assert sample.read_s > 0
    assert sample.new_tokens_per_s is not None
    assert sample.new_tokens_per_s > 0


def test_reading_rows(sample_of: Measure, shape: Shape, tiny_embedder: ExtensibleEmbedder) -> None:
    sample = sample_of("extensible", k=4)
    assert (sample.num_rows, sample.k) == (26, 4)
    assert sample.cache_bytes == 26 * BYTES_A_ROW
    made = compress_flops(shape, tiny_embedder.config, 100, 4)
    assert sample.flops == made + read_flops(shape, 26)


def test_pruning_reads_every_token_first(sample_of: Measure, shape: Shape) -> None:
    """Its reader scores all 100 tokens after a head, in one block, before it reads those kept."""
    sample = sample_of("llmlingua", window=55)
    scoring = layers_flops(shape, 4, 100, 100 * 101 // 2) + head_flops(shape, 100)
    assert sample.num_rows == 50
    assert sample.flops == scoring + read_flops(shape, 50)


def test_one_new_token_has_no_speed(sample_of: Measure) -> None:
    assert sample_of("raw", new=1).new_tokens_per_s is None


def test_making_and_reading_are_told_apart(
    tiny_embedder: ExtensibleEmbedder, shape: Shape, ids: Tensor
) -> None:
    def make() -> Reading:
        time.sleep(0.2)
        return EmbedsReading(
            reader=tiny_embedder.reader, embeds=tiny_embedder.reader.embed_tokens(ids)
        )

    sample = measure(make, tiny_embedder, shape, 2)
    assert sample.make_s >= 0.2
    assert 0 < sample.read_s < sample.make_s


def test_an_end_token_ends_nothing_and_models_stay_as_they_were(
    tiny_embedder: ExtensibleEmbedder, sample_of: Measure, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_embedder.reader.model
    seen: list[int] = []
    hook = model.register_forward_hook(lambda module, inputs, output: seen.append(1))
    monkeypatch.setattr(model.generation_config, "eos_token_id", list(range(259)))
    sample_of("raw", new=7)
    hook.remove()
    assert len(seen) == 7
    assert model.generation_config.min_new_tokens is None
    assert not model._forward_hooks
    assert not tiny_embedder._forward_pre_hooks
    assert not model.get_decoder()._forward_pre_hooks
