"""A tiny reader that context helps: it has learnt that texts repeat one letter."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from conftest import byte_tokenizer, make_embedder, tiny_llama
from torch import Tensor

from extensible_embedding import ExtensibleEmbedder, Reader

LETTERS = "abcdefgh"


def repeating_reader(seed: int = 0, steps: int = 60) -> Reader:
    """Predicts any letter after <s>, and after a letter the same one."""
    model = tiny_llama(seed)
    model.load_state_dict(_learnt(seed, steps))
    return Reader(model, byte_tokenizer(), name="repeating")


@cache
def _learnt(seed: int, steps: int) -> dict[str, Tensor]:
    model, tokenizer = tiny_llama(seed), byte_tokenizer()
    start = torch.full((len(LETTERS), 1), tokenizer.bos_token_id)
    letters = torch.tensor([tokenizer(letter)["input_ids"] for letter in LETTERS])
    ids = torch.cat([start, letters.expand(-1, 40)], 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    return model.state_dict()


def repeating_embedder(reader: Reader) -> ExtensibleEmbedder:
    """Its rows are nearly the letters they stand for."""
    embedder = make_embedder(reader)
    with torch.no_grad():
        embedder.projection.weight.mul_(0.05)
    return embedder


def repeating_texts(path: Path, letters: str = LETTERS) -> Path:
    """A document of each letter."""
    pq.write_table(pa.table({"text": [letter * 200 for letter in letters]}), path)
    return path
