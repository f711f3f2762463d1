"""One reader pass for all chunks is the same as one pass for each."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import make_embedder
from torch import Tensor, nn

from extensible_embedding import ExtensibleEmbedder, Reader
from extensible_embedding.errors import InputError
from extensible_embedding.train import attention, two_stream
from extensible_embedding.train.attention import Layout, dense_masks, two_stream_attention
from extensible_embedding.train.reference import dense_loss, per_chunk_loss
from extensible_embedding.train.two_stream import TwoStreamModel, chunk_loss, instance_rows


def instances(num_batch: int, num_chunks: int, chunk_tokens: int) -> Tensor:
    generator = torch.Generator().manual_seed(num_batch)
    return torch.randint(0, 256, (num_batch, num_chunks, chunk_tokens), generator=generator)


def gradients(embedder: ExtensibleEmbedder, loss: Tensor) -> dict[str, Tensor]:
    embedder.zero_grad()
    loss.backward()
    return {n: w.grad.clone() for n, w in embedder.named_parameters() if w.grad is not None}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Every gradient differs by less than float32 rounding of its sums, measured on its length."""
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("k", [1, 2, 5, 16])
@pytest.mark.parametrize("shape", [(1, 2, 16), (1, 4, 7), (3, 3, 16)])
def test_loss_and_gradients_equal_the_reference(
    tiny_embedder: ExtensibleEmbedder, shape: tuple[int, int, int], k: int, split: bool
) -> None:
    token_ids = instances(*shape)
    model = TwoStreamModel(tiny_embedder)
    assert model.split
    model.split = split
    expected = per_chunk_loss(tiny_embedder, token_ids, k)
    loss = model(token_ids, k)["loss"]
    torch.testing.assert_close(loss, expected)
    assert_same(gradients(tiny_embedder, loss), gradients(tiny_embedder, expected))


@pytest.mark.parametrize("down_sampling", ["strided", "mean"])
@pytest.mark.parametrize("shape", [(2, 5, 8), (1, 4, 4), (2, 3, 4)])
def test_short_chunks_are_embedded_as_they_will_be_read(
    tiny_reader: Reader, shape: tuple[int, int, int], down_sampling: str
) -> None:
    embedder = make_embedder(tiny_reader, down_sampling=down_sampling)
    token_ids = instances(*shape)
    rows = instance_rows(embedder, token_ids[:, :-1], 4)
    for each, context in zip(rows, token_ids[:, :-1].flatten(1), strict=True):
        torch.testing.assert_close(each.flatten(0, 1), embedder.compress(context, k=4).rows)
    expected = per_chunk_loss(embedder, token_ids, 4)
    loss = TwoStreamModel(embedder)(token_ids, 4)["loss"]
    torch.testing.assert_close(loss, expected)
    assert_same(gradients(embedder, loss), gradients(embedder, expected))


def test_rows_that_do_not_end_with_their_chunk_are_made_of_it_alone(
    tiny_reader: Reader,
) -> None:
    embedder, token_ids = make_embedder(tiny_reader), instances(1, 3, 8)
    rows = instance_rows(embedder, token_ids, 5)
    torch.testing.assert_close(rows[0], embedder.rows(token_ids[0], 5))


@pytest.mark.parametrize("k", [1, 4])
def test_both_references_agree(tiny_embedder: ExtensibleEmbedder, k: int) -> None:
    token_ids = instances(2, 4, 8)
    expected, found = (each(tiny_embedder, token_ids, k) for each in (per_chunk_loss, dense_loss))
    torch.testing.assert_close(found, expected)
    assert_same(gradients(tiny_embedder, found), gradients(tiny_embedder, expected))


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("shape", [(1, 2, 16), (3, 4, 7)])
def test_one_stream_is_the_loss_of_the_last_chunk_after_all_rows(
    tiny_embedder: ExtensibleEmbedder, shape: tuple[int, int, int], split: bool
) -> None:
    token_ids = instances(*shape)
    model = TwoStreamModel(tiny_embedder, one_stream=True)
    model.split = split
    expected = per_chunk_loss(tiny_embedder, token_ids, 4, first=-1)
    loss = model(token_ids, 4)["loss"]
    torch.testing.assert_close(loss, expected)
    assert_same(gradients(tiny_embedder, loss), gradients(tiny_embedder, expected))


@pytest.mark.parametrize("down_sampling", ["mean", "terminal", "random"])
def test_other_down_samplings(tiny_reader: Reader, down_sampling: str) -> None:
    embedder = make_embedder(tiny_reader, down_sampling=down_sampling)
    token_ids = instances(2, 3, 16)
    expected = per_chunk_loss(embedder, token_ids, 4)
    torch.testing.assert_close(TwoStreamModel(embedder)(token_ids, 4)["loss"], expected)


def test_plain_form_learns_its_scale_and_layers(tiny_reader: Reader) -> None:
    embedder = make_embedder(tiny_reader, residual=False)
    found = gradients(embedder, TwoStreamModel(embedder)(instances(1, 3, 16), 4)["loss"])
    assert found["output_scale"].abs() > 0
    assert all(gradient.isfinite().all() for gradient in found.values())


def test_batch_is_the_mean_of_its_instances(tiny_embedder: ExtensibleEmbedder) -> None:
    token_ids, model = instances(3, 3, 16), TwoStreamModel(tiny_embedder)
    with torch.no_grad():
        each = torch.stack([model(one[None], 4)["loss"] for one in token_ids])
        torch.testing.assert_close(model(token_ids, 4)["loss"], each.mean())


def test_the_head_in_blocks_gives_the_same(
    tiny_embedder: ExtensibleEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    token_ids, model = instances(2, 3, 16), TwoStreamModel(tiny_embedder)
    loss = model(token_ids, 4)["loss"]
    before = gradients(tiny_embedder, loss)
    monkeypatch.setitem(two_stream._HEAD_BLOCK, True, 10)
    blocks = model(token_ids, 4)["loss"]
    torch.testing.assert_close(blocks, loss)
    assert_same(gradients(tiny_embedder, blocks), before)


def test_evaluation_before_training_changes_nothing(tiny_embedder: ExtensibleEmbedder) -> None:
    """A mask cached in inference mode must not stop a later backward pass."""
    model, token_ids = TwoStreamModel(tiny_embedder), instances(1, 3, 11)
    with torch.inference_mode():
        loss = model(token_ids, 4)["loss"]
    trained = model(token_ids, 4)["loss"]
    trained.backward()
    torch.testing.assert_close(trained.detach(), loss)


def test_the_readers_attention_is_put_back(tiny_embedder: ExtensibleEmbedder) -> None:
    reader = tiny_embedder.reader
    before = reader.model.config._attn_implementation
    layout = Layout.of_chunks(num_head=1, num_chunks=2, chunk_tokens=4, rows_per_chunk=2)

    def fail() -> None:
        with two_stream_attention(reader, layout, split=True):
            assert reader.model.config._attn_implementation == attention.SPLIT_ATTENTION
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail()
    assert reader.model.config._attn_implementation == before
    assert not attention._ACTIVE


@pytest.mark.parametrize("shape", [(1, 2, 16, 4), (2, 4, 7, 2), (1, 3, 5, 5)])
def test_fused_and_plain_attention_agree(shape: tuple[int, int, int, int]) -> None:
    num_batch, num_chunks, chunk_tokens, rows = shape
    layout = Layout.of_chunks(
        num_head=1, num_chunks=num_chunks, chunk_tokens=chunk_tokens, rows_per_chunk=rows
    )
    length = len(layout.positions())
    torch.manual_seed(0)
    inputs = [torch.randn(num_batch, heads, length, 8, requires_grad=True) for heads in (6, 2, 2)]
    weight = torch.randn(num_batch, 6, length, 8)
    results = []
    for attend in (attention.plain_attention, attention.fused_attention):
        output = attend(*inputs, 0.3, layout)
        results.append((output, *torch.autograd.grad((output * weight).sum(), inputs)))
    for plain, fused in zip(*results, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-5)


def test_other_devices_use_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the device "meta", which has shapes and no values."""
    layout = Layout.of_chunks(num_head=1, num_chunks=2, chunk_tokens=4, rows_per_chunk=2)
    monkeypatch.setattr(attention, "_ACTIVE", [layout])
    used = []
    for name in ("plain_attention", "fused_attention"):
        monkeypatch.setattr(attention, name, lambda *a, name=name: used.append(name) or a[0])
    for device in ("cpu", "meta"):
        query = torch.zeros(1, 4, 7, 8, device=device)
        attention.split_attention(nn.Identity(), query, query, query, None)
    assert used == ["plain_attention", "fused_attention"]


def test_few_masks_are_kept() -> None:
    for cache in (attention._prefix_bias, attention._block_bias, attention._allowed):
        assert (cache.cache_info().maxsize or 99) <= 4


@pytest.mark.parametrize("setting", ["logits_scaling", "logit_scale", "final_logit_softcapping"])
def test_logits_that_are_not_the_models_own_are_refused(tiny_reader: Reader, setting: str) -> None:
    """Llama knows none of these settings; `Reader.logits` believes in them."""
    model = copy.deepcopy(tiny_reader.model)
    setattr(model.config, setting, 0.5)
    embedder = make_embedder(Reader(model, tiny_reader.tokenizer, name="scaled"))
    with pytest.raises(InputError, match=r"'scaled' \(LlamaForCausalLM\) differ .* choose another"):
        TwoStreamModel(embedder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_models_own_logits_pass(tiny_reader: Reader, dtype: torch.dtype) -> None:
    model = copy.deepcopy(tiny_reader.model).to(dtype)
    two_stream.check_logits(Reader(model, tiny_reader.tokenizer))


def test_layout_of_two_streams() -> None:
    layout = Layout.of_chunks(num_head=1, num_chunks=3, chunk_tokens=2, rows_per_chunk=2)
    assert layout.positions().tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 6]
    assert layout.allowed().int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 1, 0, 0, 0],
        [1, 1, 1, 0, 0, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0, 0, 1, 0],
        [1, 1, 1, 1, 1, 0, 0, 1, 1],
    ]


def test_each_token_is_predicted_where_it_is_next(tiny_reader: Reader) -> None:
    """Hidden states that hold their own next token's embedding predict it best there."""
    layout = Layout.of_chunks(num_head=1, num_chunks=3, chunk_tokens=4, rows_per_chunk=2)
    targets = torch.arange(8).view(1, 2, 4)
    hidden = torch.zeros(1, 13, 32)
    head = tiny_reader.model.get_output_embeddings().weight
    for place, token in zip([2, 5, 6, 7, 4, 9, 10, 11], range(8), strict=True):
        hidden[0, place] = 50 * head[token] / head[token].norm()
    right = chunk_loss(tiny_reader, hidden, targets, layout)
    wrong = chunk_loss(tiny_reader, hidden, targets.flip(2), layout)
    assert right < wrong - 5


def test_other_kinds_of_layers_are_refused(tiny_reader: Reader) -> None:
    model = copy.deepcopy(tiny_reader.model)
    model.config.layer_types = ["full_attention", "linear_attention"] * 2
    reader = Reader(model, tiny_reader.tokenizer, name="mixed")
    layout = Layout.of_chunks(num_head=1, num_chunks=2, chunk_tokens=4, rows_per_chunk=2)
    with pytest.raises(InputError, match="'mixed' has linear_attention"):
        dense_masks(reader, layout)
