"""Equal trainings of variants: trained and measured once, also after a kill."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from extensible_embedding import ExtensibleEmbedder, Reader
from extensible_embedding.bench import ablations
from extensible_embedding.bench.ablations import Unwatched, Yardstick, compared, run_ablations
from extensible_embedding.bench.table import AblationRecord, markdown
from extensible_embedding.bench.variants import BASELINE, choose
from extensible_embedding.errors import ConfigError, InputError
from extensible_embedding.evals.records import LmRecord, write_records
from extensible_embedding.evals.report import write_report
from extensible_embedding.train.config import TrainConfig

CHOSEN = choose(["strided", "random", "one-stream", "one-stream-same-steps"])
BUDGET = 400


class Killed(Exception):
    """Stands for a power cut."""


@pytest.fixture
def base(tmp_path: Path, text: str) -> TrainConfig:
    (tmp_path / "data.txt").write_text(text * 4)
    return TrainConfig(
        output_dir="unused",
        cache_dir=str(tmp_path / "cache"),
        data=[str(tmp_path / "data.txt")],
        num_layers=2,
        reading_chunk_tokens=16,
        scale_factors=[2, 4],
        instance_tokens=[64],
        chunk_tokens=[16],
        max_steps=10,
        learning_rate=1e-3,
        warmup_steps=1,
        save_steps=3,
        logging_steps=1,
        bf16=False,
    )


@pytest.fixture
def yardstick(tmp_path: Path, text: str) -> Yardstick:
    files = []
    for name, part in (("one", text[:300]), ("two", text[100:])):
        pq.write_table(pa.table({"text": [part]}), tmp_path / f"{name}.parquet")
        files.append(tmp_path / f"{name}.parquet")
    return Yardstick(
        data=files, scale_factors=[2, 4], context_tokens=64, target_tokens=16, num_targets=3
    )


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Folders of the trainings that were begun or gone on with."""
    begun: list[str] = []
    run = ablations.train

    def watched(config: TrainConfig, **settings: Any) -> Path:
        begun.append(Path(config.output_dir).name)
        return run(config, **settings)

    monkeypatch.setattr(ablations, "train", watched)
    return begun


def find(records: list[AblationRecord], **fields: object) -> list[AblationRecord]:
    return [r for r in records if all(getattr(r, name) == v for name, v in fields.items())]


def run(base: TrainConfig, out: Path, yardstick: Yardstick, **changed: Any) -> Any:
    asked: dict[str, Any] = {"variants": CHOSEN, "budget_tokens": BUDGET, **changed}
    return run_ablations(base, out, yardstick, **asked)


def test_every_variant_is_trained_equally_and_measured_on_the_same_targets(
    base: TrainConfig,
    yardstick: Yardstick,
    tiny_reader: Reader,
    tmp_path: Path,
    counted: list[str],
) -> None:
    out = tmp_path / "out"
    records = run(base, out, yardstick, reader=tiny_reader)
    assert counted == [BASELINE, "random", "one-stream", "one-stream-same-steps"]
    names = list(dict.fromkeys(record.variant for record in records))
    assert names == [BASELINE, "strided", "random", "two-stream", *counted[2:]]
    assert len(records) == 6 * 2 * 3  # k = 2 and 4, two domains and their mean
    tokens = {record.variant: record.training_tokens for record in records}
    steps = {record.variant: record.training_steps for record in records}
    per_step = 2 * 48  # two instances of four chunks of 16
    assert steps[BASELINE] == steps["strided"] == steps["random"] == -(-BUDGET // per_step)
    assert tokens["random"] == steps["random"] * per_step
    assert BUDGET <= tokens["one-stream"] < BUDGET + 32  # a third of the tokens a step
    assert steps["one-stream-same-steps"] == steps[BASELINE]
    assert tokens["one-stream-same-steps"] == tokens[BASELINE] // 3
    assert all(record.tokens_per_s for record in records)
    for one, other in zip(
        find(records, variant=BASELINE), find(records, variant="strided"), strict=True
    ):
        assert (one.loss_nats, one.recovery) == (other.loss_nats, other.recovery)
    for name in ("random", "one-stream"):
        assert find(records, variant=name)[0].loss_nats != records[0].loss_nats
    embedder = ExtensibleEmbedder.from_pretrained(out / "random" / "embedder", tiny_reader)
    assert embedder.config.down_sampling == "random"
    assert not list(out.glob("*/checkpoint-*"))
    again = run(base, out, yardstick, reader=tiny_reader)
    assert again == records
    assert len(counted) == 4


def lm(domain: str, method: str, k: int, *losses: float) -> LmRecord:
    nothing = dict.fromkeys((field.name for field in dataclasses.fields(LmRecord)), None)
    context_tokens = 0 if method == "none" else 64
    fields = {"context_tokens": context_tokens, "target_loss_nats": list(losses), "note": ""}
    return LmRecord(**{**nothing, "domain": domain, "method": method, "k": k, **fields})  # type: ignore[arg-type]


def measured(books: list[float], code: list[float]) -> list[LmRecord]:
    """Raw context is worth 1 nat in books and 2 in code, on every target."""
    return [
        lm("books", "none", 0, 4, 3, 5),
        lm("books", "raw", 1, 3, 2, 4),
        lm("books", "extensible", 4, *books),
        lm("code", "none", 0, 3, 4),
        lm("code", "raw", 1, 1, 2),
        lm("code", "extensible", 4, *code),
        lm("mean", "extensible", 4),
    ]


def test_differences_are_paired_by_target() -> None:
    """By hand: books gain 0.1 nats of 1 on every target, code loses 0.2 or 0.4 of 2."""
    before = measured([3.5, 2.9, 4.1], [2.0, 2.5])
    found = measured([3.4, 2.8, 4.0], [2.2, 2.9])
    books, code, mean = (
        compared(found, before, record, seed=0) for record in found if record.method == "extensible"
    )
    assert books[0] == pytest.approx(0.1)
    assert books[1:] == pytest.approx((0.1, 0.1))  # losses differ by far more than that
    assert code[0] == pytest.approx(-0.15)
    assert code[1:] == pytest.approx((-0.2, -0.1))
    assert mean[0] == pytest.approx(-0.025)
    assert mean[1:] == pytest.approx((-0.05, 0.0))
    assert compared(found, found, found[-1], seed=0) == (0, 0, 0)


def test_without_a_recovery_there_is_no_difference() -> None:
    none = [lm("a", "none", 0, 1, 2), lm("a", "raw", 1, 2, 3), lm("a", "extensible", 4, 1, 1)]
    assert compared(none, none, none[-1], seed=0) == (None, None, None)


@pytest.mark.parametrize("killed_at", [1, 4])
def test_a_killed_run_goes_on_where_it_was(
    base: TrainConfig,
    yardstick: Yardstick,
    tiny_reader: Reader,
    tmp_path: Path,
    counted: list[str],
    killed_at: int,
) -> None:
    variants = choose(["mean"])
    expected = run(base, tmp_path / "whole", yardstick, reader=tiny_reader, variants=variants)
    counted.clear()
    begun: list[int] = []

    class Kill(Unwatched):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            begun.append(state.global_step)

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == killed_at and len(counted) == 2 and len(begun) == 2:
                raise Killed

    @contextmanager
    def watch(name: str) -> Iterator[Kill]:
        yield Kill()

    asked = {"reader": tiny_reader, "variants": variants, "training": watch}
    out = tmp_path / "out"
    with pytest.raises(Killed):
        run(base, out, yardstick, **asked)
    assert counted == [BASELINE, "mean"]
    found = run(base, out, yardstick, **asked)
    assert counted == [BASELINE, "mean", "mean"]
    assert begun == [0, 0, killed_at // 3 * 3]  # from the last checkpoint

    def figures(records: list[AblationRecord]) -> list[AblationRecord]:
        return [dataclasses.replace(record, tokens_per_s=None) for record in records]

    assert figures(found) == figures(expected)


def test_a_run_killed_while_it_is_measured_is_not_trained_again(
    base: TrainConfig,
    yardstick: Yardstick,
    tiny_reader: Reader,
    tmp_path: Path,
    counted: list[str],
) -> None:
    seen: list[int] = []

    @contextmanager
    def watch(name: str) -> Iterator[Any]:
        def progress(done: int, total: int) -> None:
            seen.append(done)
            if len(seen) == 4:
                raise Killed

        yield progress

    asked = {"reader": tiny_reader, "variants": choose(["strided"]), "measuring": watch}
    with pytest.raises(Killed):
        run(base, tmp_path / "out", yardstick, **asked)
    assert (tmp_path / "out" / BASELINE / "lm.journal").is_file()
    assert run(base, tmp_path / "out", yardstick, **asked)
    assert counted == [BASELINE]


def test_records_so_far_are_given_after_every_run(
    base: TrainConfig, yardstick: Yardstick, tiny_reader: Reader, tmp_path: Path
) -> None:
    seen: list[list[str]] = []
    run(
        base,
        tmp_path / "out",
        yardstick,
        reader=tiny_reader,
        variants=choose(["mean", "residual"]),
        finished=lambda records: seen.append(list(dict.fromkeys(r.variant for r in records))),
    )
    before = [BASELINE, "strided", "residual"]
    assert seen == [before, [*before[:2], "mean", "residual"]]


def test_variants_of_an_earlier_call_stay_in_the_table(
    base: TrainConfig, yardstick: Yardstick, tiny_reader: Reader, tmp_path: Path
) -> None:
    asked = {"reader": tiny_reader, "budget_tokens": 90}
    first = run(base, tmp_path / "out", yardstick, variants=choose(["mean"]), **asked)
    both = run(base, tmp_path / "out", yardstick, variants=choose(["plain"]), **asked)
    assert list(dict.fromkeys(record.variant for record in both)) == [
        BASELINE, "strided", "mean", "residual", "plain",
    ]  # fmt: skip
    assert both[: len(first)] == first


def test_other_settings_need_another_folder(
    base: TrainConfig, yardstick: Yardstick, tiny_reader: Reader, tmp_path: Path
) -> None:
    asked = {"reader": tiny_reader, "variants": choose(["strided"])}
    out = tmp_path / "out"
    first = run(base, out, yardstick, **asked)
    faster = dataclasses.replace(base, save_steps=7, logging_steps=2)
    assert run(faster, out, yardstick, **asked) == first
    more = dataclasses.replace(yardstick, num_targets=4)
    for changed, message in (
        ((dataclasses.replace(base, seed=1), yardstick, BUDGET), "begun with seed 0"),
        ((base, more, BUDGET), "begun with evaluation num_targets 3"),
        ((base, yardstick, BUDGET + 1), "begun with budget_tokens 400"),
    ):
        with pytest.raises(InputError, match=message):
            run(changed[0], out, changed[1], budget_tokens=changed[2], **asked)


def test_what_cannot_be_measured_is_told_before_training(
    base: TrainConfig,
    yardstick: Yardstick,
    tiny_reader: Reader,
    tmp_path: Path,
    counted: list[str],
) -> None:
    def refused(message: str, *, config: TrainConfig = base, **changed: Any) -> None:
        kind = ConfigError if "init_from" in message else InputError
        with pytest.raises(kind, match=message):
            run(
                config,
                tmp_path / "out",
                dataclasses.replace(yardstick, **changed),
                reader=tiny_reader,
            )

    refused("init_from", config=dataclasses.replace(base, init_from="some"))
    refused("'gone.txt' is none; check `data`", config=dataclasses.replace(base, data=["gone.txt"]))
    refused("'gone.parquet' is none", data=[Path("gone.parquet")])
    refused("no document of 'one' is so long", context_tokens=400)
    refused("reads chunks of 16 tokens and k is 32", scale_factors=[32])
    with pytest.raises(InputError, match="'layers-8' takes 8"):
        run(
            base,
            tmp_path / "out",
            yardstick,
            reader=tiny_reader,
            variants=choose(["layers-8"]),
        )
    assert not counted


def test_one_table_and_one_figure(
    base: TrainConfig, yardstick: Yardstick, tiny_reader: Reader, tmp_path: Path
) -> None:
    variants = choose(["mean", "plain"])
    records = run(base, tmp_path / "out", yardstick, reader=tiny_reader, variants=variants)
    lines = markdown(records).splitlines()
    assert lines[0].startswith("| group | variant | tokens | steps | tokens/s | recovery, k=2 |")
    assert [line.split(" | ")[1] for line in lines[2:]] == [
        BASELINE, "strided", "mean", "residual", "plain",
    ]  # fmt: skip
    assert len({line.count("|") for line in lines}) == 1
    write_records(records, tmp_path / "ablations.jsonl", configuration={"seed": 0})
    page = write_report(tmp_path).read_text()
    assert page.count("<tr>") == 1 + len(records)
    drawn = [record for record in records if record.recovery is not None]
    assert page.count("<svg") == (1 if drawn else 0)
