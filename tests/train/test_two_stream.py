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
from extensible_embedding.train.two_stream import TwoStreamModel, chunk_loss


def instances(num_batch: int, num_chunks: int, chunk_tokens: int) -> Tensor:
    generator = torch.Generator().manual_seed(num_batch)
    return torch.randint(0, 256, (num_batch, num_chunks, chunk_tokens), generator=generator)


def reference_loss(embedder: ExtensibleEmbedder, token_ids: Tensor, k: int) -> Tensor:
    """Slow: for chunk i a plain pass over [head][rows of chunks < i][chunk i]."""
    reader, losses = embedder.reader, []
    head = reader.embed_tokens(torch.tensor([reader.tokenizer.bos_token_id]))
    for instance in token_ids:
        rows = embedder.rows(instance[:-1], k)
        for number in range(1, len(instance)):
            before = torch.cat([head, rows[:number].flatten(0, 1)])
            embeds = torch.cat([before, reader.embed_tokens(instance[number])])
            logits = reader.model(inputs_embeds=embeds[None], use_cache=False).logits[0]
            losses.append(
                nn.functional.cross_entropy(logits[len(before) - 1 : -1], instance[number])
            )
    return torch.stack(losses).mean()


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
    expected = reference_loss(tiny_embedder, token_ids, k)
    loss = model(token_ids, k)["loss"]
    torch.testing.assert_close(loss, expected)
    assert_same(gradients(tiny_embedder, loss), gradients(tiny_embedder, expected))


@pytest.mark.parametrize("down_sampling", ["mean", "terminal", "random"])
def test_other_down_samplings(tiny_reader: Reader, down_sampling: str) -> None:
    embedder = make_embedder(tiny_reader, down_sampling=down_sampling)
    token_ids = instances(2, 3, 16)
    expected = reference_loss(embedder, token_ids, 4)
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
    layout = Layout(num_head=1, num_chunks=2, chunk_tokens=4, rows_per_chunk=2)

    def fail() -> None:
        with two_stream_attention(reader, layout, split=True):
            assert reader.model.config._attn_implementation == attention.SPLIT_ATTENTION
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail()
    assert reader.model.config._attn_implementation == before
    assert not attention._ACTIVE


def test_layout_of_two_streams() -> None:
    layout = Layout(num_head=1, num_chunks=3, chunk_tokens=2, rows_per_chunk=2)
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
    layout = Layout(num_head=1, num_chunks=3, chunk_tokens=4, rows_per_chunk=2)
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
    layout = Layout(num_head=1, num_chunks=2, chunk_tokens=4, rows_per_chunk=2)
    with pytest.raises(InputError, match="'mixed' has linear_attention"):
        dense_masks(reader, layout)
