"""What makes training faster changes nothing else."""

from __future__ import annotations

import dataclasses
import os
import shutil

import pytest
import torch
from conftest import make_embedder

from extensible_embedding import ExtensibleEmbedder, Reader
from extensible_embedding.errors import ConfigError
from extensible_embedding.train.config import TrainConfig
from extensible_embedding.train.speed import check_compiler, compiled, keep_freed_memory
from extensible_embedding.train.trainer import train
from extensible_embedding.train.two_stream import TwoStreamModel

CPU = torch.device("cpu")


def compiled_parts(model: TwoStreamModel) -> int:
    modules = (*model.embedder.layers.modules(), *model.embedder.reader.model.modules())
    return sum(module._compiled_call_impl is not None for module in modules)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of what torch's compiler imports
def test_norms_and_mlps_are_compiled_and_put_back(tiny_embedder: ExtensibleEmbedder) -> None:
    """Two norms and one MLP of two layers in the embedder and of four in the reader."""
    model = TwoStreamModel(tiny_embedder)

    def fail() -> None:
        with compiled(model):
            assert compiled_parts(model) == 3 * (2 + 4)
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail()
    assert compiled_parts(model) == 0


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which(os.environ.get("CXX") or "g++") is None, reason="no C++ compiler to compile with"
)
@pytest.mark.filterwarnings("ignore")  # of torch's compiler
def test_compiled_loss_and_gradients_are_the_eager_ones(tiny_reader: Reader) -> None:
    embedder = make_embedder(tiny_reader)
    model, token_ids = TwoStreamModel(embedder), torch.randint(0, 256, (1, 3, 16))
    weights = {name: w for name, w in embedder.named_parameters() if w.requires_grad}

    def step() -> tuple[torch.Tensor, ...]:
        loss = model(token_ids, 4)["loss"]
        return loss.detach(), *torch.autograd.grad(loss, list(weights.values()))

    expected = step()
    with compiled(model):
        found = step()
    torch.testing.assert_close(found[0], expected[0])
    for name, one, other in zip(weights, found[1:], expected[1:], strict=True):
        assert (one - other).norm() <= 1e-4 * other.norm(), name


def test_no_compiler_is_told_before_training(
    config: TrainConfig, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match="'no-such-compiler' is not found; install one"):
        train(dataclasses.replace(config, compile=True), reader=reader)
    check_compiler(torch.device("cuda"))
    monkeypatch.setenv("CXX", "sh")
    check_compiler(CPU)


def test_keeping_freed_memory_is_harmless() -> None:
    keep_freed_memory()
    keep_freed_memory()
    assert torch.ones(1 << 22).sum() == 1 << 22
