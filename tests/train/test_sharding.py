"""A model that is divided computes the same, and comes whole out of it; the rest is refused."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from conftest import make_embedder, tiny_llama
from torch import Tensor
from torch.distributed.tensor import DTensor

from extensible_embedding import ExtensibleEmbedder, Reader
from extensible_embedding.errors import ConfigError, InputError
from extensible_embedding.train import sharding
from extensible_embedding.train.config import TrainConfig
from extensible_embedding.train.optimizer import make_optimizer
from extensible_embedding.train.two_stream import TwoStreamModel

TWO: Any = SimpleNamespace(num_processes=2, device=torch.device("cpu"))
ONE: Any = SimpleNamespace(num_processes=1, device=torch.device("cpu"))
PLUGIN: Any = SimpleNamespace(reshard_after_forward=True)


@pytest.fixture
def _world_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def _asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")


def step(model: TwoStreamModel, optimizer: torch.optim.Optimizer) -> Tensor:
    loss: Tensor = model(torch.arange(48).view(1, 3, 16), k=4)["loss"]
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


@pytest.mark.usefixtures("_world_of_one")
def test_a_divided_model_trains_the_same_and_comes_out_whole(
    config: TrainConfig, reader: Reader
) -> None:
    plain = TwoStreamModel(make_embedder(Reader(tiny_llama(), reader.tokenizer)).train())
    divided = TwoStreamModel(make_embedder(reader).train())
    sharding.shard(divided, ONE, PLUGIN)
    optimizers = [make_optimizer(model.embedder, config) for model in (plain, divided)]
    for _ in range(2):
        losses = [
            step(model.train(), optimizer)
            for model, optimizer in zip((plain, divided), optimizers, strict=True)
        ]
        torch.testing.assert_close(*losses)
    assert not reader.model.training
    assert isinstance(divided.embedder.projection.weight, DTensor)
    assert isinstance(reader.model.model.layers[0].mlp.up_proj.weight, DTensor)
    weights = sharding.whole_weights(divided.embedder)
    expected = sharding.whole_weights(plain.embedder)
    torch.testing.assert_close(weights, expected)
    state = sharding.whole_state(divided, optimizers[1])
    kept = optimizers[0].state_dict()
    torch.testing.assert_close(state["state"], kept["state"])
    assert [group["params"] for group in state["param_groups"]] == [
        group["params"] for group in kept["param_groups"]
    ]

    # And back: what one more step makes of it is the same.
    weights, saved = copy.deepcopy((weights, state))  # on a CPU, these may be the live ones
    for model, optimizer in zip((plain, divided), optimizers, strict=True):
        step(model, optimizer)
    after = sharding.whole_weights(plain.embedder)
    sharding.put_weights(divided.embedder, weights)
    sharding.put_state(divided, optimizers[1], saved)
    step(divided, optimizers[1])
    torch.testing.assert_close(sharding.whole_weights(divided.embedder), after)


def test_one_process_divides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sharding.sharding(TWO) is None
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert sharding.sharding(ONE) is None


@pytest.mark.usefixtures("_asked")
def test_what_the_launcher_asks_for_is_seen_here_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSDP_RESHARD_AFTER_FORWARD", "false")
    plugin = sharding.sharding(TWO)
    assert plugin is not None
    assert plugin.reshard_after_forward is False
    with sharding.launched_plain():
        assert sharding.sharding(TWO) is None


@pytest.mark.usefixtures("_asked")
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("FSDP_VERSION", "1", "FSDP2, but the launcher asks for FSDP1; launch with"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "computed once, but"),
        ("FSDP_OFFLOAD_PARAMS", "true", "on its device, but"),
    ],
)
def test_other_ways_to_divide_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        sharding.sharding(TWO)


def test_what_cannot_be_divided_is_refused(
    config: TrainConfig, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = ExtensibleEmbedder.from_reader(reader, num_layers=2)
    sharding.check_shards(config, embedder)
    asks = dataclasses.replace(config, questions=["questions.jsonl"])
    with pytest.raises(ConfigError, match="unless they are packed; give `sequence_places`"):
        sharding.check_shards(asks, embedder)
    plain = ExtensibleEmbedder.from_reader(reader, num_layers=2, residual=False)
    with pytest.raises(ConfigError, match="a scale that is one number"):
        sharding.check_shards(config, plain)
    monkeypatch.setattr(sharding, "gather_object", lambda found: [*found, "another"])
    with pytest.raises(InputError, match="'tiny' was loaded with other weights"):
        sharding.check_shards(config, embedder)
    monkeypatch.undo()
    weight = reader.model.model.layers[1].mlp.up_proj.weight
    weight.data = weight.data.to(torch.int8)
    with pytest.raises(ConfigError, match="'1.mlp.up_proj.weight' of 'tiny' is not"):
        sharding.check_shards(config, embedder)
