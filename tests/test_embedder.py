"""Rows: how many, which, and what must not change them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from conftest import VOCAB_SIZE, byte_tokenizer, make_embedder
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, MambaConfig

from extensible_embedding import ExtensibleEmbedder, Reader
from extensible_embedding.errors import InputError

CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture
def token_ids() -> Tensor:
    return torch.randint(0, 256, (55,), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("k", range(1, 17))
@pytest.mark.parametrize("num_tokens", [16, 33, 55])
def test_rows_are_the_ceiling_in_every_chunk(
    tiny_embedder: ExtensibleEmbedder, token_ids: Tensor, k: int, num_tokens: int
) -> None:
    context = tiny_embedder.compress(token_ids[:num_tokens], k=k)
    full, rest = divmod(num_tokens, 16)
    assert context.num_rows == full * -(-16 // k) + -(-rest // k) == context.rows_at(k)
    assert context.row_ends()[-1] == num_tokens
    assert context.rows.isfinite().all()


def test_rows_are_the_strided_outputs(tiny_embedder: ExtensibleEmbedder, token_ids: Tensor) -> None:
    """Chunk 4 has seven tokens: its row for the last partial stride is kept."""
    context = tiny_embedder.compress(token_ids, k=4)
    with torch.inference_mode():
        last = tiny_embedder(token_ids[None, 48:])[0]
    torch.testing.assert_close(context.rows[-2:], last[[3, 6]], **CLOSE)
    assert context.row_ends().tolist()[-3:] == [48, 52, 55]


def test_at_1_rows_are_the_raw_token_embeddings(
    tiny_embedder: ExtensibleEmbedder, token_ids: Tensor
) -> None:
    expected = tiny_embedder.reader.embed_tokens(token_ids)
    assert torch.equal(tiny_embedder.compress(token_ids, k=1).rows, expected)


def test_untrained_residual_gives_the_token_at_the_end_of_each_stride(
    tiny_reader: Reader, token_ids: Tensor
) -> None:
    embedder = ExtensibleEmbedder.from_reader(tiny_reader, 2, chunk_tokens=16, projection_start=0.0)
    context = embedder.compress(token_ids, k=4)
    expected = tiny_reader.embed_tokens(token_ids[context.row_ends() - 1])
    assert torch.equal(context.rows, expected)


def test_a_trained_residual_does_not(tiny_embedder: ExtensibleEmbedder, token_ids: Tensor) -> None:
    context = tiny_embedder.compress(token_ids, k=4)
    raw = tiny_embedder.reader.embed_tokens(token_ids[context.row_ends() - 1])
    assert (context.rows - raw).abs().amax(1).min() > 0.01


@pytest.mark.parametrize("batch_chunks", [1, 2, 3, 100])
def test_batching_changes_nothing(
    tiny_embedder: ExtensibleEmbedder, token_ids: Tensor, batch_chunks: int
) -> None:
    rows = tiny_embedder.compress(token_ids, k=3, batch_chunks=batch_chunks).rows
    torch.testing.assert_close(rows, tiny_embedder.compress(token_ids, k=3).rows, **CLOSE)


def test_the_last_chunk_is_like_any_other(
    tiny_embedder: ExtensibleEmbedder, token_ids: Tensor
) -> None:
    """The short last chunk has the same rows alone as after long ones."""
    alone = tiny_embedder.compress(token_ids[48:], k=4).rows
    torch.testing.assert_close(tiny_embedder.compress(token_ids, k=4).rows[-2:], alone, **CLOSE)


def test_chunks_are_independent(tiny_embedder: ExtensibleEmbedder, token_ids: Tensor) -> None:
    other = token_ids.clone()
    other[:16] = 7
    one, two = (tiny_embedder.compress(ids, k=4).rows for ids in (token_ids, other))
    assert not torch.equal(one[:4], two[:4])
    torch.testing.assert_close(one[4:], two[4:], **CLOSE)


def test_a_row_depends_on_every_token_before_it_in_its_chunk(
    tiny_embedder: ExtensibleEmbedder, token_ids: Tensor
) -> None:
    rows = tiny_embedder.compress(token_ids[:16], k=16).rows
    for place in range(16):
        other = token_ids[:16].clone()
        other[place] = (other[place] + 1) % 256
        assert not torch.equal(tiny_embedder.compress(other, k=16).rows, rows), place


@pytest.mark.parametrize(("k", "multiple"), [(2, 4), (2, 6), (3, 9), (4, 8), (4, 16)])
def test_strided_rows_nest(
    tiny_embedder: ExtensibleEmbedder, token_ids: Tensor, k: int, multiple: int
) -> None:
    """Up to rounding: the last MLP runs on the rows alone, and their number differs."""
    fine, coarse = (tiny_embedder.compress(token_ids, k=each) for each in (k, multiple))
    torch.testing.assert_close(fine.at(multiple).rows, coarse.rows, **CLOSE)
    assert fine.at(multiple).k == multiple


def test_mean_rows_nest(tiny_reader: Reader, token_ids: Tensor) -> None:
    embedder = make_embedder(tiny_reader, down_sampling="mean")
    fine, coarse = (embedder.compress(token_ids, k=each) for each in (2, 8))
    torch.testing.assert_close(fine.at(8).rows, coarse.rows, **CLOSE)


def test_training_rows_are_the_reading_rows(
    tiny_embedder: ExtensibleEmbedder, token_ids: Tensor
) -> None:
    rows = tiny_embedder.rows(token_ids[:48].view(3, 16), 4)
    assert rows.requires_grad
    context = tiny_embedder.compress(token_ids[:48], k=4)
    torch.testing.assert_close(rows.detach().flatten(0, 1), context.rows, **CLOSE)


@pytest.mark.parametrize("final_norm", [True, False])
def test_plain_form_is_scaled_like_tokens(
    tiny_reader: Reader, token_ids: Tensor, final_norm: bool
) -> None:
    embedder = make_embedder(tiny_reader, residual=False, final_norm=final_norm)
    with torch.inference_mode():
        outputs = embedder(token_ids[None, :48])
    rms = outputs.pow(2).mean(-1).sqrt().mean()
    assert rms.item() == pytest.approx(tiny_reader.embedding_rms, rel=0.01)
    assert not hasattr(embedder, "projection")


def test_final_norm_is_left_out_when_asked(tiny_reader: Reader, token_ids: Tensor) -> None:
    """Without it the layers' outputs are those of the reader's layer, before any norm."""
    embedder = make_embedder(tiny_reader, residual=False, final_norm=False)
    with torch.inference_mode():
        ids = token_ids[None, :16]
        ours = embedder.layers(
            inputs_embeds=tiny_reader.embed_tokens(ids), use_cache=False
        ).last_hidden_state
        theirs = tiny_reader.model(ids, output_hidden_states=True).hidden_states[2]
    torch.testing.assert_close(ours, theirs)


def test_the_readers_weights_are_copied_not_shared(tiny_embedder: ExtensibleEmbedder) -> None:
    before = {name: w.clone() for name, w in tiny_embedder.reader.model.state_dict().items()}
    with torch.no_grad():
        for weight in tiny_embedder.parameters():
            weight.add_(1)
    after = tiny_embedder.reader.model.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert not any("_reader" in name for name in tiny_embedder.state_dict())


def test_text_ids_and_tensor_give_the_same_context(
    tiny_embedder: ExtensibleEmbedder, text: str
) -> None:
    ids = tiny_embedder.reader.encode(text)
    contexts = [tiny_embedder.compress(given, k=5) for given in (text, ids, ids.tolist())]
    assert all(torch.equal(context.rows, contexts[0].rows) for context in contexts)
    assert all(torch.equal(context.token_ids, ids) for context in contexts)


def test_progress_counts_tokens(tiny_embedder: ExtensibleEmbedder, token_ids: Tensor) -> None:
    seen: list[tuple[int, int]] = []
    tiny_embedder.compress(
        token_ids, k=4, batch_chunks=2, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(32, 55), (48, 55), (55, 55)]


def test_k_beyond_the_chunk_names_the_largest(
    tiny_embedder: ExtensibleEmbedder, token_ids: Tensor
) -> None:
    with pytest.raises(InputError, match="k is at most 16 here, but k is 17"):
        tiny_embedder.compress(token_ids, k=17)


def test_more_layers_than_the_reader_has(tiny_reader: Reader) -> None:
    with pytest.raises(InputError, match="has 4, but num_layers is 5"):
        ExtensibleEmbedder.from_reader(tiny_reader, 5)


# The fingerprint follows the weights, and is made once


def test_the_fingerprint_is_made_once(
    tiny_embedder: ExtensibleEmbedder, token_ids: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tiny_embedder.compress(token_ids, k=4).embedder_fingerprint
    monkeypatch.setattr("hashlib.sha256", None)
    assert tiny_embedder.compress(token_ids, k=2).embedder_fingerprint == first


@pytest.mark.parametrize(
    "optimizer",
    [torch.optim.SGD, torch.optim.AdamW, lambda w: torch.optim.AdamW(w, fused=True)],
)
def test_training_changes_the_fingerprint(
    tiny_reader: Reader, token_ids: Tensor, optimizer: Any
) -> None:
    embedder = make_embedder(tiny_reader)
    seen = {embedder.fingerprint}
    step = optimizer([w for w in embedder.parameters() if w.requires_grad])
    for count in (2, 3):
        embedder(token_ids[None, :16]).square().sum().backward()
        step.step()
        seen.add(embedder.fingerprint)
        assert len(seen) == count
    embedder.projection.weight = nn.Parameter(embedder.projection.weight * 2)
    assert embedder.fingerprint not in seen
    seen.add(embedder.fingerprint)
    embedder.projection.weight.data.mul_(2)
    assert embedder.fingerprint not in seen


# Readers of other kinds


def test_dropout_of_the_reader_is_not_copied(token_ids: Tensor) -> None:
    config = GPT2Config(vocab_size=VOCAB_SIZE, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    assert config.resid_pdrop > 0
    model = AutoModelForCausalLM.from_config(config)
    embedder = make_embedder(Reader(model, byte_tokenizer(), name="gpt2"))
    outputs = [embedder.train(mode)(token_ids[None, :16]) for mode in (True, True, False)]
    assert torch.equal(outputs[0], outputs[1])
    torch.testing.assert_close(outputs[0], outputs[2])
    assert model.config.resid_pdrop > 0


def test_readers_without_attention_are_refused() -> None:
    config = MambaConfig(vocab_size=VOCAB_SIZE, hidden_size=32, num_hidden_layers=2)
    reader = Reader(AutoModelForCausalLM.from_config(config), byte_tokenizer(), name="mamba")
    with pytest.raises(InputError, match="attention layers .* 'MambaForCausalLM' has none; use"):
        ExtensibleEmbedder.from_reader(reader, 2)


class Packed(nn.Module):
    """A matrix as quantisation libraries keep it: integers and a scale."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("scale", linear.weight.abs().amax(1, keepdim=True) / 127)
        self.register_buffer("weight", (linear.weight / self.scale).round().to(torch.int8))

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden @ (self.weight.to(hidden.dtype) * self.scale).T


def packed(reader: Reader) -> Reader:
    model = copy.deepcopy(reader.model)
    for layer in model.model.layers:
        layer.mlp.gate_proj = Packed(layer.mlp.gate_proj)
    return Reader(model, reader.tokenizer, name="packed")


def test_a_quantised_reader_loads_an_embedder_but_makes_none(
    tiny_reader: Reader, tiny_embedder: ExtensibleEmbedder, token_ids: Tensor, tmp_path: Any
) -> None:
    reader = packed(tiny_reader)
    with pytest.raises(InputError, match="of 'packed' are not .*gate_proj.weight.*; make the"):
        ExtensibleEmbedder.from_reader(reader, 2)
    tiny_embedder.save_pretrained(tmp_path / "e")
    loaded = ExtensibleEmbedder.from_pretrained(tmp_path / "e", reader)
    assert torch.equal(
        loaded.compress(token_ids, k=4).rows, tiny_embedder.compress(token_ids, k=4).rows
    )


# The reader's dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rows_are_computed_in_the_readers_dtype(
    tiny_reader: Reader, tiny_embedder: ExtensibleEmbedder, token_ids: Tensor, dtype: torch.dtype
) -> None:
    reader = Reader(copy.deepcopy(tiny_reader.model).to(dtype), tiny_reader.tokenizer)
    embedder, seen = make_embedder(reader), []
    embedder.layers.layers[0].mlp.gate_proj.register_forward_hook(  # type: ignore[union-attr,index]
        lambda module, inputs, output: seen.append(output.dtype)
    )
    context = embedder.compress(token_ids, k=4)
    assert set(seen) == {dtype}
    assert context.rows.dtype == dtype
    exact = tiny_embedder.compress(token_ids, k=4).rows
    error = (context.rows.float() - exact).norm() / exact.norm()
    assert error < {torch.bfloat16: 0.02, torch.float16: 0.003, torch.float32: 1e-6}[dtype]
    assert all(weight.dtype is torch.float32 for weight in embedder.parameters())


def test_half_a_character_is_refused(tiny_embedder: ExtensibleEmbedder) -> None:
    with pytest.raises(InputError, match="half of one"):
        tiny_embedder.compress("a\ud835", k=1)
