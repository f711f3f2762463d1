"""Speed of training: every way takes the same step, and shares are of one run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import make_embedder
from typer.testing import CliRunner

from extensible_embedding import ExtensibleEmbedder, Reader
from extensible_embedding.bench import train_speed
from extensible_embedding.bench.train_speed import WAYS, InstanceShape, measure_train_speed
from extensible_embedding.cli import app
from extensible_embedding.errors import InputError
from extensible_embedding.train.speed import compiled
from extensible_embedding.train.two_stream import TwoStreamModel

SHAPES = [InstanceShape(4, 16, 4), InstanceShape(2, 8, 2)]


@pytest.fixture(autouse=True)
def _briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_speed, "_MATMUL_S", 0.01)


def test_every_way_has_a_record_at_every_shape(tiny_embedder: ExtensibleEmbedder) -> None:
    seen: list[tuple[int, int]] = []
    records = measure_train_speed(
        tiny_embedder,
        shapes=SHAPES,
        num_rounds=2,
        compile_parts=False,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert [(each.way, each.num_chunks) for each in records] == [
        (way, shape.num_chunks) for shape in SHAPES for way in WAYS
    ]
    assert seen == [(number, 12) for number in range(1, 13)]
    for each, shape in zip(records, [shape for shape in SHAPES for _ in WAYS], strict=True):
        predicted = 2 * (shape.num_chunks - 1) * shape.chunk_tokens
        assert each.predicted_tokens_per_s == pytest.approx(predicted / each.step_s)
        assert each.share == pytest.approx(each.flops_per_s / each.matmul_flops_per_s)
    assert [each.versus_dense for each in records if each.way == "dense"] == [1.0, 1.0]
    assert [each.versus_per_chunk for each in records if each.way == "per-chunk"] == [1.0, 1.0]
    assert all(weight.grad is None for weight in tiny_embedder.parameters())


def test_a_pass_for_each_chunk_takes_more_operations(tiny_embedder: ExtensibleEmbedder) -> None:
    records = measure_train_speed(
        tiny_embedder, shapes=[InstanceShape(8, 16, 2)], num_rounds=1, compile_parts=False
    )
    flops = {each.way: each.flops for each in records}
    assert flops["per-chunk"] > 1.2 * flops["two-stream"]


def test_a_way_that_is_not_measured_is_not_compared_with(tiny_embedder: ExtensibleEmbedder) -> None:
    (record,) = measure_train_speed(
        tiny_embedder, shapes=SHAPES[:1], ways=["two-stream"], num_rounds=1, compile_parts=False
    )
    assert record.versus_dense is record.versus_per_chunk is None


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"ways": ["fast"]}, "'fast' is none of them"),
        ({"ways": []}, "none is given"),
        ({"batch_size": 0}, "there are 0, 1 and 2"),
        ({"shapes": [InstanceShape(1, 16, 4)]}, "1 chunks of 16 tokens at k=4"),
        ({"shapes": [InstanceShape(2, 16, 17)]}, "2 chunks of 16 tokens at k=17"),
    ],
)
def test_what_is_refused(
    tiny_embedder: ExtensibleEmbedder, changed: dict[str, object], words: str
) -> None:
    settings: dict[str, object] = {"shapes": SHAPES, "num_rounds": 1, **changed}
    with pytest.raises(InputError, match=words):
        measure_train_speed(tiny_embedder, **settings)  # type: ignore[arg-type]


def test_compiled_parts_can_be_put_aside(
    tiny_embedder: ExtensibleEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **_: setattr(self, "_compiled_call_impl", int)
    )
    model = TwoStreamModel(tiny_embedder)

    def num_compiled() -> int:
        return sum(part._compiled_call_impl is not None for part in model.embedder.modules())

    with compiled(model) as eager:
        inside = num_compiled()
        with eager():
            assert num_compiled() == 0
        assert num_compiled() == inside > 0
    assert num_compiled() == 0


def test_the_command_writes_its_records(
    tiny_reader: Reader, tiny_reader_folder: Path, tmp_path: Path
) -> None:
    make_embedder(tiny_reader).save_pretrained(tmp_path / "embedder")
    models = ["--reader", str(tiny_reader_folder), "--embedder", str(tmp_path / "embedder")]
    asked = ["--shapes", "3x16x4", "--rounds", "1", "--no-compile"]
    out = tmp_path / "speed.json"
    done = CliRunner().invoke(app, ["bench", "train", *asked, *models, "--json", str(out)])
    assert done.exit_code == 0, done.output
    assert "per-chunk" in done.stdout
    records = json.loads(out.read_text())["records"]
    assert [each["way"] for each in records] == list(WAYS)
    assert records[0]["versus_dense"] > 0
    refused = CliRunner().invoke(app, ["bench", "train", "--shapes", "3x16", *models])
    assert refused.exit_code == 2
    assert "one is '3x16'" in refused.stderr
