"""The reader: losses, fingerprints, loading."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import byte_tokenizer, tiny_llama
from torch.nn.functional import cross_entropy

from extensible_embedding import Reader
from extensible_embedding.errors import InputError, MismatchError


def test_nll_is_the_cross_entropy_of_the_plain_model(tiny_reader: Reader, text: str) -> None:
    ids = tiny_reader.encode(text[:60])
    logits = tiny_reader.model(input_ids=ids[None]).logits[0]
    for split in (1, 20, 59):
        ours = tiny_reader.nll(tiny_reader.embed_tokens(ids[:split]), ids[split:])
        expected = cross_entropy(logits[split - 1 : -1], ids[split:], reduction="none")
        torch.testing.assert_close(ours, expected)


def test_text_comes_back(tiny_reader: Reader) -> None:
    text = "A na\u00efve caf\u00e9,\n\u4f60\u597d  twice."
    assert tiny_reader.decode(tiny_reader.encode(text)) == text
    assert tiny_reader.decode(tiny_reader.encode(text).tolist()) == text


def test_the_window_is_the_configurations_or_ones_own(tiny_reader: Reader) -> None:
    assert tiny_reader.window == 512
    assert Reader(tiny_reader.model, tiny_reader.tokenizer, window=100).window == 100
    with pytest.raises(InputError, match="at least 2 rows"):
        Reader(tiny_reader.model, tiny_reader.tokenizer, window=1)


def test_the_fingerprint_is_the_same_for_every_dtype_loaded(tiny_reader_folder: Path) -> None:
    prints = {
        Reader.from_pretrained(str(tiny_reader_folder), dtype=dtype).fingerprint
        for dtype in (torch.float32, torch.bfloat16)
    }
    assert len(prints) == 1


def test_the_fingerprint_tells_readers_apart(tiny_reader: Reader) -> None:
    other = Reader(tiny_llama(seed=1), byte_tokenizer())
    assert other.fingerprint != tiny_reader.fingerprint
    with pytest.raises(MismatchError, match="load the reader it was made for"):
        other.check_same(tiny_reader.fingerprint, "This")


def test_a_folder_loads_as_the_same_reader(
    tiny_reader: Reader, tiny_reader_folder: Path, text: str
) -> None:
    loaded = Reader.from_pretrained(str(tiny_reader_folder), dtype=torch.float32, device="cpu")
    ids = loaded.encode(text)
    assert torch.equal(ids, tiny_reader.encode(text))
    assert loaded.window == tiny_reader.window
    assert loaded.tokenizer.chat_template == tiny_reader.tokenizer.chat_template
    with torch.inference_mode():
        assert torch.equal(loaded.model(ids[None]).logits, tiny_reader.model(ids[None]).logits)


def test_no_weight_wants_a_gradient(tiny_reader: Reader) -> None:
    assert not any(weight.requires_grad for weight in tiny_reader.model.parameters())
    assert not tiny_reader.model.training


def test_what_is_no_reader_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be loaded as a causal language model"):
        Reader.from_pretrained(str(tmp_path))


def test_ids_out_of_the_vocabulary_are_refused(tiny_reader: Reader) -> None:
    tiny_reader.check_ids(torch.tensor([0, 259]))
    for bad in (-1, 260):
        with pytest.raises(InputError, match="between 0 and 259"):
            tiny_reader.check_ids(torch.tensor([5, bad]))
    with pytest.raises(InputError, match="at least 1 token"):
        tiny_reader.check_ids(torch.tensor([], dtype=torch.long))


def test_embedding_rms_is_of_the_tokens(tiny_reader: Reader) -> None:
    table = tiny_reader.model.get_input_embeddings().weight
    assert tiny_reader.embedding_rms == pytest.approx(float(table.pow(2).mean().sqrt()))
