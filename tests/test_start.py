"""Where a new embedder's rows begin."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import VOCAB_SIZE, byte_tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, MixtralConfig

from extensible_embedding import ExtensibleEmbedder, Reader
from extensible_embedding.checkpoint import own_weights
from extensible_embedding.errors import InputError
from extensible_embedding.picked import blocks

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
}


@pytest.fixture
def token_ids() -> Tensor:
    return torch.randint(0, 256, (55,), generator=torch.Generator().manual_seed(3))


def test_a_started_projection_gives_hidden_states_at_their_own_scale(
    tiny_reader: Reader, token_ids: Tensor
) -> None:
    embedder = ExtensibleEmbedder.from_reader(
        tiny_reader, 2, chunk_tokens=16, final_norm=False, projection_start=4.0
    )
    chunk = token_ids[:16]
    tokens = tiny_reader.embed_tokens(chunk)
    with torch.inference_mode():
        states = tiny_reader.model.get_decoder()(
            inputs_embeds=tokens[None], output_hidden_states=True
        ).hidden_states
    expected = (tokens + 4 * states[2][0])[3::4]
    torch.testing.assert_close(embedder.compress(chunk, k=4).rows, expected, **CLOSE)
    with pytest.raises(InputError, match="projection starts where there is one"):
        ExtensibleEmbedder.from_reader(tiny_reader, 2, residual=False, projection_start=1.0)
    for wrong in (-1.0, float("nan"), float("inf"), 10**400, True, "4"):
        with pytest.raises(InputError, match="projection_start is a number, 0 or more"):
            ExtensibleEmbedder.from_reader(tiny_reader, 2, projection_start=wrong)  # type: ignore[arg-type]


def test_a_new_embedders_rows_have_one_length_and_the_direction_of_hidden_states(
    tiny_reader: Reader, token_ids: Tensor
) -> None:
    embedder = ExtensibleEmbedder.from_reader(tiny_reader, 2, chunk_tokens=16)
    chunk = token_ids[:16]
    tokens = tiny_reader.embed_tokens(chunk)
    with torch.inference_mode():
        read = tiny_reader.model.get_decoder()(
            inputs_embeds=tokens[None], output_hidden_states=True
        )
    states = read.hidden_states[2][0]
    added = embedder.compress(chunk, k=1).rows, embedder.compress(chunk, k=2).rows - tokens[1::2]
    lengths = added[1].pow(2).mean(-1).sqrt()
    torch.testing.assert_close(lengths, lengths.mean().expand_as(lengths), rtol=1e-3, atol=0)
    usual = states.pow(2).mean(-1).sqrt().median()
    assert 2.5 < float(lengths[0] / usual) < 6  # 4 on the text that it was measured on
    alike = torch.nn.functional.cosine_similarity(added[1], states[1::2])
    torch.testing.assert_close(alike, torch.ones_like(alike))
    assert torch.equal(added[0], tokens)


def test_where_the_projection_starts_is_kept_beside_it(
    tiny_reader: Reader, token_ids: Tensor, tmp_path: Path
) -> None:
    embedder = ExtensibleEmbedder.from_reader(tiny_reader, 2, chunk_tokens=16)
    assert embedder.config.projection_start > 0
    assert not embedder.projection.weight.any()
    embedder.save_pretrained(tmp_path / "e")
    loaded = ExtensibleEmbedder.from_pretrained(tmp_path / "e", tiny_reader)
    assert loaded.fingerprint == embedder.fingerprint
    assert torch.equal(loaded.compress(token_ids, k=4).rows, embedder.compress(token_ids, k=4).rows)
    four, same, zero = (
        ExtensibleEmbedder.from_reader(tiny_reader, 2, chunk_tokens=16, projection_start=start)
        for start in (4, 4.0, 0.0)
    )
    assert four.fingerprint == same.fingerprint
    assert zero.fingerprint not in (four.fingerprint, embedder.fingerprint)


def test_an_embedder_without_a_start_has_the_fingerprint_that_it_had_before_there_were_any(
    tiny_reader: Reader,
) -> None:
    embedder = ExtensibleEmbedder.from_reader(tiny_reader, 1, projection_start=0.0)
    settings = dataclasses.asdict(embedder.config)
    del settings["projection_start"]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for name, weight in own_weights(embedder).items():
        digest.update(name.encode())
        digest.update(weight.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    assert embedder.fingerprint == digest.hexdigest()[:16]


@pytest.mark.parametrize("num_layers", [1, 2, 4])
@pytest.mark.parametrize("final_norm", [True, False])
def test_rows_begin_four_times_as_long_as_states_of_any_layer(
    tiny_reader: Reader, num_layers: int, final_norm: bool
) -> None:
    """Of the last layer, too, whose states the reader itself gives out with its final norm."""
    embedder = ExtensibleEmbedder.from_reader(tiny_reader, num_layers, final_norm=final_norm)
    seen: list[Tensor] = []
    block = blocks(tiny_reader.model.get_decoder())[num_layers - 1]
    handle = block.register_forward_hook(
        lambda _, __, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    ids = tiny_reader.encode("The ferry left at seven, and by noon the island was a grey line.")
    with torch.inference_mode():
        tiny_reader.model.get_decoder()(input_ids=ids[None])
        added = embedder(ids[None]) - tiny_reader.embed_tokens(ids)
    handle.remove()
    lengths = [each.pow(2).mean(-1).sqrt().median() for each in (added, seen[0])]
    assert 3 < float(lengths[0] / lengths[1]) < 5.5


def test_measuring_a_start_draws_nothing() -> None:
    """Routers of this reader are noisy in training."""
    config = MixtralConfig(**SMALL, num_key_value_heads=2, router_jitter_noise=0.1)
    reader = Reader(AutoModelForCausalLM.from_config(config), byte_tokenizer())
    drawn = []
    for start in (1.0, None):
        torch.manual_seed(5)
        embedder = ExtensibleEmbedder.from_reader(reader, 2, projection_start=start)
        assert embedder.layers.training
        drawn.append(torch.rand(1))
    assert torch.equal(*drawn)


def test_what_positions_add_is_no_scale_of_the_reader() -> None:
    config = GPT2Config(**SMALL, n_positions=512)
    model = AutoModelForCausalLM.from_config(config)
    starts = []
    for times in (1.0, 10.0):
        with torch.no_grad():
            model.transformer.wpe.weight.mul_(times)
        embedder = ExtensibleEmbedder.from_reader(Reader(model, byte_tokenizer()), 1)
        ids = embedder.reader.encode("The ferry left at seven, and by noon the island was grey.")
        with torch.inference_mode():
            added = embedder(ids[None]) - embedder.reader.embed_tokens(ids)
            states = model.transformer(input_ids=ids[None], output_hidden_states=True).hidden_states
        lengths = [each.pow(2).mean(-1).sqrt().median() for each in (added, states[1])]
        starts.append(float(lengths[0] / lengths[1]))
    assert starts == [pytest.approx(4, rel=0.25)] * 2


def test_a_start_that_cannot_be_measured_is_told(tiny_reader: Reader) -> None:
    model = copy.deepcopy(tiny_reader.model)
    with torch.no_grad():
        for block in blocks(model.get_decoder()):
            block.mlp.down_proj.weight.fill_(float("nan"))
    broken = Reader(model, tiny_reader.tokenizer, name="broken")
    with pytest.raises(InputError, match="those of 'broken' after layer 1 .* nan"):
        ExtensibleEmbedder.from_reader(broken, 1)
    ExtensibleEmbedder.from_reader(broken, 1, projection_start=1.0)
