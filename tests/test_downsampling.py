"""Which outputs of a chunk stand for its tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from extensible_embedding.downsampling import (
    DOWN_SAMPLINGS,
    check_scale_factor,
    down_sampling,
    num_rows,
    row_ends,
)
from extensible_embedding.errors import InputError

LENGTHS = [1, 2, 7, 16, 17]
SCALES = [1, 2, 3, 4, 5, 16, 32]


def outputs(length: int) -> Tensor:
    return torch.randn(length, 6, generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize("k", SCALES)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", DOWN_SAMPLINGS)
def test_rows_are_the_ceiling(name: str, length: int, k: int) -> None:
    rows = down_sampling(name).rows(outputs(length), k)
    assert rows.shape == (num_rows(length, k), 6) == (-(-length // k), 6)


@pytest.mark.parametrize("name", DOWN_SAMPLINGS)
@pytest.mark.parametrize("length", LENGTHS)
def test_at_1_every_output_is_a_row(name: str, length: int) -> None:
    assert torch.equal(down_sampling(name).rows(outputs(length), 1), outputs(length))


def test_row_ends_keep_the_last_partial_stride() -> None:
    assert row_ends(10, 4).tolist() == [4, 8, 10]
    assert row_ends(8, 4).tolist() == [4, 8]
    assert row_ends(3, 4).tolist() == [3]


def test_strided_takes_the_last_of_every_k() -> None:
    given = outputs(10)
    assert torch.equal(down_sampling("strided").rows(given, 4), given[[3, 7, 9]])


def test_mean_of_every_k() -> None:
    given = outputs(10)
    expected = torch.stack([given[:4].mean(0), given[4:8].mean(0), given[8:].mean(0)])
    torch.testing.assert_close(down_sampling("mean").rows(given, 4), expected)


def test_terminal_takes_the_last_outputs() -> None:
    given = outputs(10)
    assert torch.equal(down_sampling("terminal").rows(given, 4), given[7:])


def test_random_is_in_order_without_repeats_and_the_same_each_time() -> None:
    places = torch.arange(50.0)[:, None]
    drawn = down_sampling("random").rows(places, 4)[:, 0]
    assert (drawn.diff() > 0).all()
    assert torch.equal(drawn, down_sampling("random").rows(places, 4)[:, 0])
    assert not torch.equal(drawn, down_sampling("strided").rows(places, 4)[:, 0])


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", ["strided", "terminal"])
def test_what_is_picked_nests_bit_for_bit(name: str, length: int, k: int, factor: int) -> None:
    sampler, given = down_sampling(name), outputs(length)
    coarser = sampler.coarser(sampler.rows(given, k), length, k, factor)
    assert torch.equal(coarser, sampler.rows(given, k * factor))


@pytest.mark.parametrize("n", [1, 15, 16, 39, 48])
@pytest.mark.parametrize("name", [name for name, each in DOWN_SAMPLINGS.items() if each.nests])
def test_a_context_in_chunks_is_each_chunk_by_itself(name: str, n: int) -> None:
    sampler, chunks = down_sampling(name), outputs(n).split(16)
    fine = torch.cat([sampler.rows(chunk, 2) for chunk in chunks])
    coarse = torch.cat([sampler.rows(chunk, 6) for chunk in chunks])
    torch.testing.assert_close(sampler.context_coarser(fine, n, 16, 2, 3), coarse)
    ends = sampler.context_row_ends(n, 16, 2)
    each = [sampler.row_ends(len(chunk), 2) + 16 * number for number, chunk in enumerate(chunks)]
    assert torch.equal(ends, torch.cat(each))
    assert (ends.diff() > 0).all()
    assert int(ends[-1]) == n


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", DOWN_SAMPLINGS)
def test_rows_begin_alike_where_it_says_so(name: str, length: int) -> None:
    """Of the whole strides that a chunk begins with, whatever follows."""
    sampler, given = down_sampling(name), outputs(length)
    starts = list(range(4, length + 1, 4))
    alike = [
        torch.equal(sampler.rows(given, 4)[: n // 4], sampler.rows(given[:n], 4)) for n in starts
    ]
    assert all(alike) or not sampler.begins_alike
    if length > 8:
        assert all(alike) == sampler.begins_alike


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("length", LENGTHS)
def test_mean_nests(length: int, k: int, factor: int) -> None:
    sampler, given = down_sampling("mean"), outputs(length)
    coarser = sampler.coarser(sampler.rows(given, k), length, k, factor)
    torch.testing.assert_close(coarser, sampler.rows(given, k * factor))


def test_random_does_not_nest_and_says_so() -> None:
    sampler = down_sampling("random")
    assert not sampler.nests
    with pytest.raises(InputError, match="compress the text again at k=8"):
        sampler.coarser(sampler.rows(outputs(16), 4), 16, 4, 2)


@pytest.mark.parametrize("name", DOWN_SAMPLINGS)
def test_dtype_and_gradients_pass(name: str) -> None:
    given = outputs(10).bfloat16().requires_grad_()
    rows = down_sampling(name).rows(given, 3)
    rows.float().sum().backward()
    assert rows.dtype is torch.bfloat16
    assert given.grad is not None
    assert given.grad.abs().sum() > 0


@pytest.mark.parametrize("k", [0, -1, 2.0, True, "4", None])
def test_a_scale_factor_is_a_whole_number(k: object) -> None:
    with pytest.raises(InputError, match="whole number of tokens per row"):
        check_scale_factor(k)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="strided, mean, terminal, random"):
        down_sampling("max")
