"""Readers that another package takes part in: adapters and quantised models."""

from __future__ import annotations

import copy
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer, make_embedder, tiny_llama
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaForCausalLM

from extensible_embedding import ExtensibleEmbedder, Reader
from extensible_embedding.errors import MissingExtraError
from extensible_embedding.evals.kinship import DERIVATIVE, compare_readers


@pytest.fixture
def adapter(tmp_path: Path, tiny_reader_folder: Path) -> Path:
    """A folder as peft writes it, but for the weights."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    for file in tiny_reader_folder.glob("tokenizer*"):
        shutil.copy(file, folder)
    settings = {"base_model_name_or_path": str(tiny_reader_folder), "peft_type": "LORA"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def test_an_adapter_needs_peft(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def find_others(name: str, *arguments: Any) -> Any:
        return None if name == "peft" else find(name, *arguments)

    monkeypatch.setattr(importlib.util, "find_spec", find_others)
    with pytest.raises(MissingExtraError, match=r"adapter' is an adapter, .*`pip install peft`"):
        Reader.from_pretrained(adapter)


def test_a_package_that_a_model_needs_is_named(
    tiny_reader_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*arguments: object, **settings: object) -> None:
        raise ImportError("Using `quark` needs it: `pip install quark`\nor not")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    with pytest.raises(MissingExtraError, match=r"\(Using `quark` .* quark`\); install it") as told:
        Reader.from_pretrained(tiny_reader_folder)
    assert "\n" not in str(told.value)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_reads_like_the_merged_model(
    tiny_reader: Reader,
    tiny_reader_folder: Path,
    tiny_embedder: ExtensibleEmbedder,
    tmp_path: Path,
    text: str,
) -> None:
    peft = pytest.importorskip("peft")
    base = AutoModelForCausalLM.from_pretrained(tiny_reader_folder)
    config = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    torch.manual_seed(0)
    model = peft.get_peft_model(base, config)
    model.save_pretrained(tmp_path / "adapter")
    tiny_reader.tokenizer.save_pretrained(tmp_path / "adapter")
    before = {name: weight.clone() for name, weight in tiny_reader.model.state_dict().items()}
    adapted = Reader.from_pretrained(tmp_path / "adapter", dtype=torch.float32, device="cpu")
    merged = Reader(copy.deepcopy(model).merge_and_unload(), tiny_reader.tokenizer)
    ids = adapted.encode(text[:80])
    ours, theirs, plain = (
        each.nll(each.embed_tokens(ids[:40]), ids[40:]) for each in (adapted, merged, tiny_reader)
    )
    torch.testing.assert_close(ours, theirs)
    assert not torch.allclose(ours, plain)
    assert compare_readers(tiny_reader, adapted).relation == DERIVATIVE
    tiny_embedder.save_pretrained(tmp_path / "e")
    embedder = ExtensibleEmbedder.from_pretrained(tmp_path / "e", adapted)
    assert torch.equal(embedder.compress(ids, k=4).rows, tiny_embedder.compress(ids, k=4).rows)
    assert all(torch.equal(before[n], w) for n, w in tiny_reader.model.state_dict().items())


@pytest.mark.parametrize(
    "kind", [{"load_in_8bit": True}, {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}]
)
def test_quantised_readers_take_the_same_rows(
    tmp_path: Path, text: str, kind: dict[str, Any]
) -> None:
    pytest.importorskip("bitsandbytes")
    wide = tiny_llama().config  # 4 bits are kept in blocks of 64
    wide.hidden_size, wide.head_dim, wide.intermediate_size = 64, 16, 128
    exact = Reader(LlamaForCausalLM(wide), byte_tokenizer(), name="exact")
    exact.model.save_pretrained(tmp_path / "exact")
    settings = {"dtype": torch.float32, "quantization_config": BitsAndBytesConfig(**kind)}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "exact", **settings)
    model.save_pretrained(tmp_path / "q")
    exact.tokenizer.save_pretrained(tmp_path / "q")
    reader = Reader.from_pretrained(tmp_path / "q", dtype=torch.float32, device="cpu")
    assert "bitsandbytes" in type(reader.model.model.layers[0].mlp.up_proj).__module__
    assert compare_readers(exact, reader).relation == DERIVATIVE
    make_embedder(exact).save_pretrained(tmp_path / "e")
    mine, theirs = (
        ExtensibleEmbedder.from_pretrained(tmp_path / "e", each) for each in (exact, reader)
    )
    ids = reader.encode(text[:80])
    rows = theirs.compress(ids, k=4).rows
    assert torch.equal(rows, mine.compress(ids, k=4).rows)
    loss, expected = (each.nll(rows, ids[:20]).mean() for each in (reader, exact))
    assert loss != expected
    assert loss == pytest.approx(float(expected), rel=0.3)
