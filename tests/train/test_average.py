"""scripts/average_embedders.py: weights between those of two embedders."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import make_embedder

from extensible_embedding import Reader
from extensible_embedding.errors import InputError, MismatchError

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "average_embedders.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("average_embedders", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_weights_lie_between(script: ModuleType, tiny_reader: Reader, share: float) -> None:
    first, second = make_embedder(tiny_reader), make_embedder(tiny_reader)
    with torch.no_grad():
        for weight in second.parameters():
            weight.add_(torch.randn_like(weight))
    first.training_record, second.training_record = {"tokens": 5}, {"tokens": 7}
    before = {name: weight.clone() for name, weight in first.named_parameters()}
    others = dict(second.named_parameters())
    made = script.average(first, second, share)
    for name, weight in made.named_parameters():
        expected = (1 - share) * before[name] + share * others[name]
        torch.testing.assert_close(weight, expected)
    assert made.training_record == {"tokens": 7}


def test_what_cannot_be_averaged(script: ModuleType, tiny_reader: Reader) -> None:
    first = make_embedder(tiny_reader)
    with pytest.raises(InputError, match="between 0 and 1"):
        script.average(first, first, 1.5)
    other = make_embedder(tiny_reader, chunk_tokens=8)
    with pytest.raises(MismatchError, match="made alike"):
        script.average(first, other, 0.5)
