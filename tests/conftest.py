"""Tiny random readers and a byte tokenizer, made offline; no test touches the real home."""

from __future__ import annotations

import os
import tempfile

_HOME = tempfile.mkdtemp(prefix="extensible-tests-")
os.environ.update(
    HOME=_HOME,
    XDG_CACHE_HOME=f"{_HOME}/cache",
    HF_HOME=f"{_HOME}/huggingface",
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
)

import shutil  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402

from extensible_embedding import ExtensibleEmbedder, Reader  # noqa: E402

CHAT_TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}\n{{ message['content'] }}</s>\n"
    "{% endfor %}{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
VOCAB_SIZE = 260


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    torch.set_num_threads(1)
    yield
    shutil.rmtree(_HOME, ignore_errors=True)


def byte_tokenizer(*, chat: bool = True) -> PreTrainedTokenizerFast:
    """One token for every byte, and <s>, </s>, <pad> after them."""
    vocabulary = {piece: i for i, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for special in ("<s>", "</s>", "<pad>"):
        vocabulary[special] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    wrapped.chat_template = CHAT_TEMPLATE if chat else None
    return wrapped


def tiny_llama(seed: int = 0) -> LlamaForCausalLM:
    """Random weights large enough that attention and logits are far from uniform."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            initializer_range=0.2,
            bos_token_id=256,
            eos_token_id=257,
            pad_token_id=258,
        )
    )


def make_embedder(reader: Reader, **settings: object) -> ExtensibleEmbedder:
    """An embedder whose rows differ from tokens: its projection is small, random and started."""
    start = {"projection_start": 0.25} if settings.get("residual", True) else {}
    embedder = ExtensibleEmbedder.from_reader(
        reader,
        **{"num_layers": 2, "chunk_tokens": 16, **start, **settings},  # type: ignore[arg-type]
    )
    if embedder.config.residual:
        torch.manual_seed(1)
        torch.nn.init.normal_(embedder.projection.weight, std=0.05)
    return embedder.eval()


@pytest.fixture(scope="session")
def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture(scope="session")
def tiny_reader() -> Reader:
    return Reader(tiny_llama(), byte_tokenizer(), name="tiny")


@pytest.fixture(scope="session")
def tiny_reader_folder(tiny_reader: Reader, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reader")
    tiny_reader.model.save_pretrained(folder)
    tiny_reader.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_embedder(tiny_reader: Reader) -> ExtensibleEmbedder:
    return make_embedder(tiny_reader)


@pytest.fixture(scope="session")
def text() -> str:
    return (
        "It is a truth universally acknowledged, that a single man in possession of a good "
        "fortune, must be in want of a wife. However little known the feelings or views of such "
        "a man may be on his first entering a neighbourhood, this truth is so well fixed. "
    ) * 2
