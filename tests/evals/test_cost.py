"""The cost benchmark: its settings, what it measures in turn, and how it goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from extensible_embedding import Context, ExtensibleEmbedder
from extensible_embedding.errors import InputError
from extensible_embedding.evals import cost
from extensible_embedding.evals.cost import measure_cost
from extensible_embedding.evals.cost_readings import reading_maker
from extensible_embedding.evals.cost_settings import OFFLINE, ONLINE, STREAM, CostSetting
from extensible_embedding.evals.flops import compress_flops, read_flops, shape_of
from extensible_embedding.evals.memory import ModelSource
from extensible_embedding.evals.methods import METHODS, WITH_K, CannotRunError, EmbedsReading
from extensible_embedding.evals.records import CostRecord

ASKED: dict[str, Any] = {
    "scale_factors": [4, 8],
    "context_tokens": [128, 1024],
    "new_tokens": 3,
    "num_repeats": 2,
}
Measure = Callable[..., list[CostRecord]]


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(97, 123, (300,), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def measure(tiny_embedder: ExtensibleEmbedder, ids: Tensor) -> Measure:
    return lambda **changed: measure_cost(tiny_embedder, ids, **{**ASKED, **changed})


def find(records: list[CostRecord], **fields: object) -> list[CostRecord]:
    return [r for r in records if all(getattr(r, name) == v for name, v in fields.items())]


def test_there_is_a_record_for_every_length_mode_and_k(measure: Measure) -> None:
    records = measure()
    assert [(r.method, r.mode, r.k) for r in records[:7]] == [
        ("raw", "online", 1),
        *(("extensible", mode, k) for mode in ("online", "offline", "stream") for k in (4, 8)),
    ]
    assert [r.context_tokens for r in records] == [128] * 7 + [1024] * 7


def test_what_runs_has_all_numbers(measure: Measure, tiny_embedder: ExtensibleEmbedder) -> None:
    shape = shape_of(tiny_embedder.reader.model.config)
    raw_flops = read_flops(shape, 129)
    made = compress_flops(shape, tiny_embedder.config, 128, 8)
    rows_flops = read_flops(shape, 17)
    raw, online, offline = (
        find(measure(), context_tokens=128, mode=mode, k=k)[0]
        for mode, k in (("online", 1), ("online", 8), ("offline", 8))
    )
    assert raw.speedup == raw.flop_bound == raw.cache_saving == 1
    assert (raw.rows, online.rows, offline.rows) == (129, 17, 17)
    assert (online.flops, offline.flops) == (made + rows_flops, rows_flops)
    assert online.flop_bound == pytest.approx(raw_flops / (made + rows_flops))
    assert online.layer_bound == pytest.approx(1 / (2 / 4 + 1 / 8))
    assert offline.layer_bound == 8
    assert online.cache_saving == offline.cache_saving == 129 / 17
    assert raw.load_s is None
    assert offline.load_s is not None
    for record in (raw, online, offline):
        assert record.num_repeats == len(record.ttft_samples_s) == 2
        assert record.ttft_low <= record.ttft_s <= record.ttft_high
        assert record.speedup_low <= record.speedup <= record.speedup_high
        assert record.make_s + record.read_s == pytest.approx(record.ttft_s)
        assert record.context_tokens_per_s == pytest.approx(128 / record.ttft_s)
        assert record.new_tokens_per_s > 0
        assert record.note == ""


def test_what_does_not_fit_says_why_and_has_no_numbers(measure: Measure) -> None:
    """The window holds 512 rows; one is the head's, three are for new tokens."""
    records = measure(context_tokens=[5000], raw_limit=2000, methods=["raw", "extensible", "pi"])
    raw, *rows, scaled = find(records, mode="online")
    assert raw.note == "left out: the reader would read every token, of 2,000 at most"
    assert scaled.note == raw.note
    assert [r.note for r in rows] == [
        f"{n:,} rows, but the window holds 508 of them" for n in (1250, 625)
    ]
    for record in (raw, *rows, scaled):
        assert (record.ttft_s, record.flops, record.cache_bytes, record.rows) == (None,) * 4
        assert (record.speedup, record.num_repeats) == (None, 0)


def test_raw_reading_ends_where_the_window_does(measure: Measure) -> None:
    (raw,) = find(measure(context_tokens=[509]), method="raw")
    assert raw.note.startswith("Raw context must fit in 508 rows, but it has 509 tokens")
    assert find(measure(context_tokens=[508]), method="raw")[0].note == ""


def test_a_stream_reads_any_length_and_says_what_it_dropped(measure: Measure) -> None:
    stream = find(measure(context_tokens=[9000]), mode="stream", k=4)[0]
    assert stream.rows is not None
    assert stream.rows <= 509
    assert stream.k_read == 16
    assert "tokens were dropped" in stream.note
    assert stream.speedup is None
    assert stream.flop_bound is not None
    assert stream.flop_bound > 1


def test_a_stream_that_cannot_begin_says_why(measure: Measure) -> None:
    (record,) = measure(methods=["extensible"], modes=[STREAM], scale_factors=[32],
                        context_tokens=[64])  # fmt: skip
    assert "k of at most its chunk of 16 tokens" in record.note
    (record,) = measure(methods=["extensible"], modes=[ONLINE], scale_factors=[32],
                        context_tokens=[64])  # fmt: skip
    assert record.note == "k is at most 16, the tokens of a chunk"


def test_equal_windows_and_a_k_that_the_method_chooses(measure: Measure) -> None:
    methods = ["truncate", "retrieve", "mean-pool", "extensible", "extensible-mixed"]
    records = measure(
        methods=methods, windows=[64], scale_factors=[], context_tokens=[128], modes=[ONLINE]
    )
    assert [r.method for r in records] == methods
    assert all(r.rows is not None and r.rows <= 61 for r in records)
    assert all(r.speedup is not None for r in records)
    assert [r.k for r in records[:3:2]] == [1, records[3].k]
    assert records[3].k_read == records[3].k > 1


IN_WINDOWS = [name for name in METHODS if not (name in WITH_K and WITH_K[name].for_recovery)]


def test_every_method_has_its_cost_or_says_why_not(measure: Measure) -> None:
    records = measure(
        methods=IN_WINDOWS, windows=[128], scale_factors=[], context_tokens=[300], modes=[ONLINE]
    )
    assert [r.method for r in records] == IN_WINDOWS
    for record in records:
        assert (record.ttft_s is None) == (record.rows is None) == (record.note != "")
    ran = [r.method for r in records if r.ttft_s is not None]
    left_out = set(IN_WINDOWS) - set(ran)
    assert left_out <= {name for name in METHODS if "press" in name or "-2" in name}


def embeds(embedder: ExtensibleEmbedder, setting: CostSetting, ids: Tensor, folder: Path) -> Tensor:
    reading = reading_maker(embedder, setting, ids, 3, folder)()
    assert isinstance(reading, EmbedsReading)
    return reading.embeds


@pytest.mark.parametrize("window", [None, 64])
def test_saved_rows_are_read_as_if_just_made(
    tiny_embedder: ExtensibleEmbedder,
    ids: Tensor,
    tmp_path: Path,
    window: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = [CostSetting("extensible", mode, 8, 300, window) for mode in (ONLINE, OFFLINE)]
    online, offline = (embeds(tiny_embedder, each, ids, tmp_path / "rows") for each in settings)
    assert torch.equal(online, offline)
    assert Context.is_saved_at(tmp_path / "rows")
    monkeypatch.setattr(ExtensibleEmbedder, "compress", None)
    assert torch.equal(embeds(tiny_embedder, settings[1], ids, tmp_path / "rows"), online)


def test_every_round_begins_with_another_setting(
    measure: Measure, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int]] = []
    real = cost.reading_maker

    def maker(embedder: Any, setting: CostSetting, *rest: Any) -> Any:
        make = real(embedder, setting, *rest)

        def noted() -> Any:
            seen.append((setting.method, setting.k))
            return make()

        return noted

    monkeypatch.setattr(cost, "reading_maker", maker)
    measure(context_tokens=[64], modes=[ONLINE], num_repeats=3)
    raw, four, eight = ("raw", 1), ("extensible", 4), ("extensible", 8)
    assert seen == [raw, four, eight, four, eight, raw, eight, raw, four]


def test_a_stopped_benchmark_goes_on(measure: Measure, tmp_path: Path) -> None:
    journal = tmp_path / "cost.journal"
    first = measure(journal=journal)
    lines = journal.read_text().splitlines()
    assert len(lines) == 1 + 2 * 2
    assert measure(journal=journal) == first
    journal.write_text("\n".join(lines[:3]) + "\n")
    second = measure(journal=journal)
    assert [r.ttft_samples_s[0] for r in second if r.ttft_s] == [
        r.ttft_samples_s[0] for r in first if r.ttft_s
    ]
    assert len(journal.read_text().splitlines()) == len(lines)
    with pytest.raises(InputError, match="begun with window|begun with raw_limit"):
        measure(journal=journal, raw_limit=10)


def test_when_the_time_is_up_nothing_more_begins(measure: Measure) -> None:
    steps: list[tuple[int, int]] = []
    records = measure(budget_minutes=0, progress=lambda done, total: steps.append((done, total)))
    assert steps == []
    assert {r.note for r in records} == {"not measured: the time was up"}
    measure(progress=lambda done, total: steps.append((done, total)))
    assert steps == [(7, 28), (14, 28), (21, 28), (28, 28)]


def test_peak_memory_is_measured_once_for_what_runs(
    measure: Measure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[CostSetting] = []

    def peak(source: Any, setting: CostSetting, ids_file: Path, new: int, folder: Any) -> int:
        assert len(torch.load(ids_file)) == 1024
        assert setting.mode != OFFLINE or Context.is_saved_at(folder)
        seen.append(setting)
        if setting.mode == STREAM:
            raise CannotRunError("its process was killed by signal 9")
        return 1000 + setting.k

    monkeypatch.setattr(cost, "peak_memory", peak)
    source, journal = ModelSource(reader="", embedder=""), tmp_path / "cost.journal"
    records = measure(source=source, journal=journal)
    assert [r.peak_bytes for r in records[:5]] == [1001, 1004, 1008, 1004, 1008]
    stream = find(records, mode="stream")[0]
    assert stream.peak_bytes is None
    assert stream.note == "peak memory: its process was killed by signal 9"
    assert stream.ttft_s is not None
    ran = [(r.method, r.mode, r.k, r.context_tokens) for r in records if r.ttft_s]
    assert [(s.method, s.mode, s.k, s.context_tokens) for s in seen] == ran
    assert measure(source=source, journal=journal) == records
    assert len(seen) == len(ran)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"methods": ["magic"]}, "'magic' is none of them"),
        ({"modes": ["slow"]}, "Modes are .*'slow' is none of them"),
        ({"modes": []}, "Modes are .*none is given"),
        ({"scale_factors": []}, "Without windows, scale factors .* there are none"),
        ({"scale_factors": [0]}, "A scale factor k is a whole number"),
        ({"context_tokens": []}, "context_tokens is 1 or more"),
        ({"num_repeats": 0}, "num_repeats is 1 or more"),
        ({"methods": ["extensible"], "modes": ["stream"], "scale_factors": [1]}, "k is 2 or more"),
    ],
)
def test_what_is_refused(measure: Measure, changed: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        measure(**changed)


def test_lines_of_a_journal_are_plain(measure: Measure, tmp_path: Path) -> None:
    measure(journal=tmp_path / "j", context_tokens=[64], modes=[ONLINE], scale_factors=[4])
    first = json.loads((tmp_path / "j").read_text().splitlines()[1])
    assert first["key"] == ["times", 0, 64, 3]
    assert set(first["value"]) == {"raw online k=1", "extensible online k=4"}


def test_every_round_makes_its_reading_anew(
    tiny_embedder: ExtensibleEmbedder, ids: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that a method kept of the last round would be free in this one."""
    read: list[int] = []
    outputs = tiny_embedder.chunk_outputs

    def counted(*arguments: Any) -> list[Tensor]:
        read.append(1)
        return outputs(*arguments)

    monkeypatch.setattr(tiny_embedder, "chunk_outputs", counted)
    setting = CostSetting("extensible-adaptive", ONLINE, 8, 300, 100)
    make = reading_maker(tiny_embedder, setting, ids, 3)
    make()
    first = len(read)
    make()
    assert first > 0
    assert len(read) == 2 * first


def test_a_window_beyond_the_readers_is_refused(measure: Measure) -> None:
    with pytest.raises(InputError, match="at most the reader's window of 512 rows, but .* 600"):
        measure(windows=[600])
