"""A release is int8 weights with a card whose figures were measured on them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from extensible_embedding import ExtensibleEmbedder
from extensible_embedding.checkpoint import MODEL_CARD
from extensible_embedding.evals import release as release_module
from extensible_embedding.evals.lm import evaluate_lm
from extensible_embedding.evals.records import LmRecord
from extensible_embedding.evals.release import release

FACTORS = (2, 4)
STARTS = {"none": 0, "raw": 0.8, "extensible": 0.4, "extensible-raw-end": 0.6, "recent": 0.1}


@pytest.fixture
def data(tmp_path: Path) -> list[Path]:
    files = []
    for domain in ("books", "code"):
        path = tmp_path / f"{domain}.parquet"
        texts = [f"{domain} number {number} is on the shelf. " * 20 for number in range(3)]
        pq.write_table(pa.table({"text": texts}), path)
        files.append(path)
    return files


def test_the_card_has_what_was_measured(
    tmp_path: Path,
    tiny_embedder: ExtensibleEmbedder,
    data: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(release_module, "evaluate_lm", worth_something)
    folder = tmp_path / "released"
    records = release(
        tiny_embedder,
        folder,
        data,
        scale_factors=FACTORS,
        context_tokens=64,
        target_tokens=32,
        num_targets=3,
        command="python make.py",
    )
    loaded = ExtensibleEmbedder.from_pretrained(folder, tiny_embedder.reader)
    assert loaded.config == tiny_embedder.config
    card = (folder / MODEL_CARD).read_text(encoding="utf-8")
    assert "`python make.py` on 20" in card
    assert f"down-sampling: {tiny_embedder.config.down_sampling}" in card
    assert "| k | read | books | code | mean |" in card
    for k in FACTORS:
        for read, start in (("rows alone", 4), ("rows, the end raw", 6), ("as many", 1)):
            row = next(line for line in card.splitlines() if line.startswith(f"| {k} | {read}"))
            low, high = f"0.{start}0", f"0.{start + 2}0"
            assert row.endswith(f" | **0.{start + 1}{k} ({low} to {high})** |")
        assert f"| as many last tokens alone, k={k} | " in card
    assert {each.method for each in records} == set(STARTS)


def worth_something(*given: Any, **settings: Any) -> list[LmRecord]:
    """Records as they are measured, with recoveries, which a random reader does not have."""
    return [
        dataclasses.replace(
            each,
            recovery=start + 0.1 + each.k / 100,
            recovery_low=start,
            recovery_high=start + 0.2,
        )
        for each in evaluate_lm(*given, **settings)
        for start in [STARTS[each.method]]
    ]
