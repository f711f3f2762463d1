"""Watched weights are those of the reader's own attention."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import byte_tokenizer, tiny_llama

from extensible_embedding import ExtensibleEmbedder, Reader
from extensible_embedding.attend import attention_to_rows
from extensible_embedding.errors import InputError
from extensible_embedding.prompt import Prompt, question_prompt


def expected(
    reader: Reader, prompt: Prompt, k: int, places: int, after: torch.Tensor
) -> torch.Tensor:
    """Slow: transformers' eager attention gives all weights."""
    model = copy.deepcopy(reader.model)
    model.set_attn_implementation("eager")
    embeds = torch.cat([prompt.embeds(reader, k), reader.embed_tokens(after)])
    with torch.no_grad():
        layers = model(inputs_embeds=embeds[None], output_attentions=True).attentions
    return torch.stack([layer[0, :, -places:].mean(dim=(0, 1)) for layer in layers]).mean(0)


@pytest.mark.parametrize("places", [1, 5])
def test_weights_are_those_of_eager_attention(
    tiny_embedder: ExtensibleEmbedder, text: str, places: int
) -> None:
    reader = tiny_embedder.reader
    contexts = [tiny_embedder.compress(text[:n], k=4) for n in (60, 33)]
    prompt = question_prompt(reader, contexts, "Who?")
    after = reader.encode("It is she.")
    found = attention_to_rows(reader, prompt, 4, places, after)
    whole = expected(reader, prompt, 4, places, after)
    parts = whole[: prompt.num_rows(4)].split(prompt.part_rows(4))
    for weights, part in zip(found, [parts[2], parts[4]], strict=True):
        torch.testing.assert_close(weights, part)
    assert [len(each) for each in found] == [context.num_rows for context in contexts]


def test_the_readers_attention_is_put_back(tiny_embedder: ExtensibleEmbedder, text: str) -> None:
    reader = tiny_embedder.reader
    before = reader.model.config._attn_implementation
    prompt = question_prompt(reader, [tiny_embedder.compress(text, k=4)], "Who?")
    attention_to_rows(reader, prompt, 4, 2)
    assert reader.model.config._attn_implementation == before
    with pytest.raises(IndexError):
        attention_to_rows(reader, prompt, 4, 2, torch.tensor([10**6]))
    assert reader.model.config._attn_implementation == before


def test_readers_with_attention_of_their_own_are_refused(
    tiny_embedder: ExtensibleEmbedder, text: str
) -> None:
    model = tiny_llama()
    type(model)._supports_attention_backend, kept = False, type(model)._supports_attention_backend
    try:
        reader = Reader(model, byte_tokenizer(), name="own")
        prompt = question_prompt(reader, [tiny_embedder.compress(text, k=4)], "Who?")
        with pytest.raises(InputError, match="'own' .* has its own; leave out citations"):
            attention_to_rows(reader, prompt, 4, 1)
    finally:
        type(model)._supports_attention_backend = kept
