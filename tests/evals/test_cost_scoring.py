"""Samples become records: what is compared was measured in the same round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from extensible_embedding.evals.cost_scoring import Measured, Models, score_cost
from extensible_embedding.evals.cost_settings import ONLINE, CostSetting, raw_of
from extensible_embedding.evals.flops import Shape


def sample(seconds: float) -> Mapping[str, Any]:
    return {
        "make_s": 0.0,
        "read_s": seconds,
        "new_tokens_per_s": 1.0,
        "flops": 10,
        "k": 4,
        "cache_bytes": 8,
        "num_rows": 2,
    }


def test_rounds_are_paired_by_number_where_one_failed() -> None:
    setting = CostSetting("extensible", ONLINE, 4, 64)
    raw = Measured(rounds={0: sample(8.0), 1: sample(80.0), 2: sample(800.0)})
    rows = Measured(rounds={1: sample(10.0), 2: sample(100.0)})
    shape = Shape(
        hidden_size=8, num_layers=2, layer_weights=100, mlp_weights=60, attention_width=8,
        head_weights=256,
    )  # fmt: skip
    models = Models(shape=shape, num_embedder_layers=1, num_head=1)
    (record,) = score_cost({setting: rows, raw_of(setting): raw}, [setting], models, 4)
    assert record.speedup == 8.0
    assert record.num_repeats == 2
    assert record.ttft_s == 55.0
