"""Outputs at some places are those of all places, for less."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from conftest import make_embedder
from torch import Tensor, nn

from extensible_embedding import ExtensibleEmbedder, Reader
from extensible_embedding.picked import computes_only, last_block

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
PLACES = torch.tensor([2, 7, 15])


@pytest.fixture
def chunks() -> Tensor:
    return torch.randint(0, 256, (3, 16), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("settings", [{}, {"residual": False}, {"final_norm": False}])
def test_picked_outputs_are_the_outputs(
    tiny_reader: Reader, chunks: Tensor, settings: dict[str, Any]
) -> None:
    embedder = make_embedder(tiny_reader, **settings)
    with torch.no_grad():
        torch.testing.assert_close(embedder(chunks, PLACES), embedder(chunks)[:, PLACES], **CLOSE)


@pytest.mark.parametrize("name", ["strided", "terminal", "random", "mean"])
def test_compressed_rows_are_rows_of_all_outputs(
    tiny_reader: Reader, chunks: Tensor, name: str
) -> None:
    embedder = make_embedder(tiny_reader, down_sampling=name)
    with torch.no_grad():
        expected = embedder.rows(chunks, 5).flatten(0, 1)
    torch.testing.assert_close(embedder.compress(chunks.flatten(), k=5).rows, expected, **CLOSE)


def test_only_the_last_mlp_sees_fewer_tokens(
    tiny_embedder: ExtensibleEmbedder, chunks: Tensor
) -> None:
    seen: list[int] = []
    for block in tiny_embedder.layers.layers:  # type: ignore[union-attr]
        block.mlp.gate_proj.register_forward_hook(  # type: ignore[union-attr,operator]
            lambda module, inputs, output: seen.append(output.shape[1])
        )
    tiny_embedder(chunks, PLACES)
    assert seen == [16, 3]
    tiny_embedder(chunks)
    assert seen == [16, 3, 16, 16]


class Experts(nn.Module):
    """A mixture of experts gives its routing with its output."""

    def forward(self, hidden: Tensor, scale: float) -> tuple[Tensor, float]:
        return hidden * scale, scale


class Decoder(nn.Module):
    def __init__(self, mlp: nn.Module | None) -> None:
        super().__init__()
        block = nn.Module()
        if mlp is not None:
            block.mlp = mlp
        self.blocks = nn.ModuleList([nn.Module(), block])


def test_modules_with_several_inputs_and_outputs() -> None:
    decoder, hidden = Decoder(Experts()), torch.randn(2, 16, 4)
    mlp = last_block(decoder).mlp
    with computes_only(decoder, PLACES):
        output, routing = mlp(hidden, 3.0)  # type: ignore[operator]
    assert torch.equal(output[:, PLACES], 3 * hidden[:, PLACES])
    assert output.count_nonzero() == 2 * 3 * 4
    assert routing == 3.0
    assert torch.equal(mlp(hidden, 3.0)[0], 3 * hidden)  # type: ignore[operator]


def test_a_block_without_an_mlp_of_that_name_is_left_alone() -> None:
    decoder = Decoder(None)
    with computes_only(decoder, PLACES):
        assert not list(decoder.modules())[-1]._forward_hooks


def test_other_threads_are_left_alone(tiny_embedder: ExtensibleEmbedder) -> None:
    ids = torch.arange(32).view(2, 16)
    expected = tiny_embedder(ids)
    with (
        computes_only(tiny_embedder.layers, torch.tensor([3, 15])),
        ThreadPoolExecutor(1) as other,
    ):
        found = other.submit(tiny_embedder, ids).result()
    assert torch.equal(found, expected)
