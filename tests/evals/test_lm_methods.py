"""Methods in language modelling: named twice, choosing their k, failing on a target."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from extensible_embedding import ExtensibleEmbedder
from extensible_embedding.evals.lm import evaluate_lm
from extensible_embedding.evals.methods import EmbedsReading
from extensible_embedding.evals.methods.rows import Extensible

ASKED: dict[str, Any] = {"context_tokens": [64], "target_tokens": 16, "num_targets": 5}


@pytest.fixture
def data(tmp_path: Path) -> list[Path]:
    texts = ["".join(f"{number:03d} " for number in range(start, 200)) for start in range(3)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "numbers.parquet")
    return [tmp_path / "numbers.parquet"]


def test_a_method_named_twice_is_measured_and_told_once(
    tiny_embedder: ExtensibleEmbedder, data: list[Path]
) -> None:
    once = evaluate_lm(tiny_embedder, data, methods=["none", "raw", "extensible"], **ASKED)
    twice = ["none", "raw", "extensible", "raw", "extensible"]
    assert evaluate_lm(tiny_embedder, data, methods=twice, **ASKED) == once


def test_a_loss_that_is_no_number_is_said(
    tiny_embedder: ExtensibleEmbedder, data: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = EmbedsReading.nll

    def broken(self: EmbedsReading, target_ids: torch.Tensor) -> torch.Tensor:
        return real(self, target_ids) * (float("nan") if self.k == 16 else 1)

    monkeypatch.setattr(EmbedsReading, "nll", broken)
    records = evaluate_lm(tiny_embedder, data, methods=["extensible"], **ASKED)
    assert [record.k for record in records] == [4, 16]
    assert records[0].note == ""
    assert records[0].loss_nats is not None
    assert records[1].note == "the loss of a target is nan"
    assert records[1].loss_nats is None


@pytest.mark.parametrize("windows", [[], [48]])
def test_a_reader_whose_every_loss_is_no_number(
    tiny_embedder: ExtensibleEmbedder,
    data: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    windows: list[int],
) -> None:
    """As one that overflows in float16."""
    monkeypatch.setattr(EmbedsReading, "nll", lambda self, ids: torch.full((2,), float("nan")))
    methods = ["none", "extensible"]
    records = evaluate_lm(tiny_embedder, data, methods=methods, windows=windows, **ASKED)
    assert {record.note for record in records} == {"the loss of a target is nan"}
    assert {(record.num_targets, record.loss_nats, record.recovery) for record in records} == {
        (0, None, None)
    }


def test_the_k_of_a_record_is_the_one_that_most_targets_had(
    tiny_embedder: ExtensibleEmbedder, data: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: Iterator[int] = iter([8, 4, 8, 8, 2])
    monkeypatch.setattr(Extensible, "_smallest_k", lambda *_: next(chosen))
    (record,) = evaluate_lm(
        tiny_embedder, data, methods=["extensible"], scale_factors=[], windows=[48], **ASKED
    )
    assert record.k == 8
