"""On an accelerator: the same rows, losses and answers as on the CPU, within rounding."""

from __future__ import annotations

import pytest
import torch
from conftest import byte_tokenizer, make_embedder, tiny_llama
from torch import Tensor

from extensible_embedding import ExtensibleEmbedder, Reader
from extensible_embedding.train.data import Instance
from extensible_embedding.train.packed_batches import collate_packed
from extensible_embedding.train.packing import Piece
from extensible_embedding.train.speed import compiled
from extensible_embedding.train.two_stream import TwoStreamModel

ACCELERATOR = torch.accelerator.current_accelerator(check_available=True)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(ACCELERATOR is None, reason="this machine has no accelerator"),
]
IDS = torch.arange(96) % 256


def embedder_on(device: torch.device | None) -> ExtensibleEmbedder:
    model = tiny_llama()
    model.to(device)  # type: ignore[arg-type]
    embedder = make_embedder(Reader(model, byte_tokenizer()))
    return embedder.to(device)


def both() -> tuple[ExtensibleEmbedder, ExtensibleEmbedder]:
    return embedder_on(torch.device("cpu")), embedder_on(ACCELERATOR)


def trained(embedder: ExtensibleEmbedder) -> tuple[float, Tensor]:
    """Loss of one instance, and the gradient of the projection."""
    model = TwoStreamModel(embedder)
    loss = model(IDS.view(1, 6, 16).to(embedder.reader.device), 4)["loss"]
    loss.backward()
    gradient = embedder.projection.weight.grad
    assert gradient is not None
    return float(loss.detach()), gradient.cpu()


def test_rows_and_losses_are_those_of_the_cpu() -> None:
    here, there = both()
    contexts = [each.eval().compress(IDS, k=4) for each in (here, there)]
    torch.testing.assert_close(contexts[1].rows, contexts[0].rows, rtol=1e-3, atol=1e-4)
    losses = [each.reader.nll(contexts[0].rows, IDS[:20]).cpu() for each in (here, there)]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=1e-4)


def test_an_answer_streams() -> None:
    embedder = embedder_on(ACCELERATOR)
    context = embedder.compress(IDS, k=4)
    settings = {"max_new_tokens": 8, "do_sample": False}
    whole = embedder.reader.answer(context, "What?", **settings)
    pieces = "".join(embedder.reader.answer(context, "What?", stream=True, **settings))
    assert pieces.strip() == str(whole.text).strip()


def test_a_training_step_is_that_of_the_cpu() -> None:
    (loss, gradient), (other_loss, other_gradient) = (trained(each) for each in both())
    assert other_loss == pytest.approx(loss, rel=1e-3)
    torch.testing.assert_close(other_gradient, gradient, rtol=1e-2, atol=1e-4)


def test_a_packed_step_is_that_of_the_cpu() -> None:
    """Block masks and compiled blocks on one side, a dense mask on the other."""
    steps = []
    for embedder in both():
        model = TwoStreamModel(embedder)
        ids = torch.arange(3 * 128).view(3, 128) % 251
        pieces = [
            Piece.of_instance(Instance(token_ids=ids, k=k), torch.tensor([7])) for k in (2, 8)
        ]
        batch = collate_packed(
            [pieces, pieces[::-1]],
            sequence_places=1024,
            chunk_tokens=16,
            question_share=0.5,
            sampling=embedder.config.down_sampling,
        )["packed"]
        there = {name: tensor.to(embedder.reader.device) for name, tensor in batch.items()}
        with compiled(model, whole=embedder.reader.device.type == "cuda"):
            loss = model(packed=there)["loss"]
            loss.backward()
        gradient = embedder.projection.weight.grad
        assert gradient is not None
        steps.append((float(loss.detach()), gradient.cpu()))
    (loss_here, here), (loss_there, found) = steps
    assert loss_there == pytest.approx(loss_here, rel=1e-3)
    assert (found - here).norm() <= 1e-2 * here.norm()
