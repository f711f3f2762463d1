from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from extensible_embedding import ExtensibleEmbedder, Reader
from extensible_embedding.errors import InputError, StorageError
from extensible_embedding.evals.lm import evaluate_lm
from extensible_embedding.evals.records import LmRecord, read_records, write_records
from extensible_embedding.evals.scoring import NONE, Losses, Setting, score
from extensible_embedding.evals.targets import draw_targets
from extensible_embedding.prompt import language_head

ASKED: dict[str, Any] = {
    "scale_factors": [1, 2, 4],
    "context_tokens": [32, 64],
    "target_tokens": 16,
    "num_targets": 5,
    "seed": 3,
}
Evaluate = Callable[..., list[LmRecord]]


def words(seed: int, num_chars: int) -> str:
    letters = np.random.default_rng(seed).choice(list("abcdefgh   \n"), num_chars)
    return "".join(letters)


def parquet(path: Path, **columns: list[str]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> list[Path]:
    books = [words(seed, 900) for seed in range(3)]
    code = [words(seed + 10, 700) for seed in range(2)]
    return [
        parquet(tmp_path / "books-eval.parquet", text=books, domain=["books"] * 3),
        parquet(tmp_path / "code.parquet", text=code),
    ]


@pytest.fixture
def evaluate(tiny_embedder: ExtensibleEmbedder, data: list[Path]) -> Evaluate:
    return lambda **changed: evaluate_lm(tiny_embedder, data, **{**ASKED, **changed})


def find(records: list[LmRecord], **fields: object) -> list[LmRecord]:
    return [r for r in records if all(getattr(r, name) == v for name, v in fields.items())]


def test_there_is_one_record_for_each_domain_method_k_and_length(evaluate: Evaluate) -> None:
    records = evaluate()
    assert [r.domain for r in records[::9]] == ["books", "code", "mean"]  # 1 + 2 * (1 + 3) each
    assert [(r.method, r.k, r.context_tokens) for r in records[:5]] == [
        ("none", 0, 0),
        ("raw", 1, 32),
        ("extensible", 1, 32),
        ("extensible", 2, 32),
        ("extensible", 4, 32),
    ]


def test_the_same_seed_gives_the_same_records_and_another_does_not(evaluate: Evaluate) -> None:
    assert evaluate() == evaluate()
    assert evaluate()[0].loss_nats != evaluate(seed=4)[0].loss_nats


def test_targets_do_not_depend_on_methods_and_scale_factors(evaluate: Evaluate) -> None:
    records = evaluate()
    assert evaluate(methods=["raw"]) == find(records, method="raw")
    assert evaluate(methods=["extensible"], scale_factors=[2]) == find(records, k=2)


RAW, ROWS = Setting("raw", 1, 64), Setting("extensible", 4, 64)


def losses_of(none: list[float], raw: list[float], rows: list[float]) -> Losses:
    return {NONE: np.array(none), RAW: np.array(raw), ROWS: np.array(rows)}


def scored(**domains: Losses) -> list[LmRecord]:
    return score(domains, [NONE, RAW, ROWS], seed=0)


BOOKS = losses_of([4.0, 3.0, 3.5], [3.0, 2.5, 3.0], [3.5, 2.7, 3.3])
CODE = losses_of([2.0, 2.5], [1.0, 1.5], [1.8, 2.4])


def test_raw_recovers_all_and_no_context_nothing() -> None:
    for record in scored(books=BOOKS, code=CODE):
        if record.method != "extensible":
            fixed = float(record.method == "raw")
            assert (record.recovery, record.recovery_low, record.recovery_high) == (fixed,) * 3


def test_raw_rows_are_as_good_as_raw_text(evaluate: Evaluate) -> None:
    records = evaluate()
    raw, rows = find(records, method="raw"), find(records, method="extensible", k=1)
    for one, other in zip(raw, rows, strict=True):
        assert one.target_loss_nats == pytest.approx(other.target_loss_nats, abs=1e-5)


def test_recovery_and_intervals_follow_from_the_losses() -> None:
    """By hand: means 3.5, 2.8333, 3.1667, so half of what raw context wins."""
    _, raw, record = scored(books=BOOKS)
    assert record.loss_nats == pytest.approx(9.5 / 3)
    assert record.perplexity == pytest.approx(np.exp(9.5 / 3))
    assert record.recovery == pytest.approx((10.5 - 9.5) / (10.5 - 8.5))
    assert raw.loss_low <= raw.loss_nats <= raw.loss_high
    assert record.recovery_low is not None
    assert record.recovery_high is not None
    assert 0.4 <= record.recovery_low <= 0.5 <= record.recovery_high <= 0.6
    assert record.target_loss_nats == [3.5, 2.7, 3.3]


def test_mean_records_weigh_domains_equally() -> None:
    records = scored(books=BOOKS, code=CODE)
    books, code, mean = find(records, method="extensible")
    assert mean.domain == "mean"
    assert mean.loss_nats == pytest.approx((books.loss_nats + code.loss_nats) / 2)
    assert mean.recovery == pytest.approx((0.5 + 0.15) / 2)
    assert mean.num_targets == 5


def test_there_is_no_recovery_where_raw_text_does_not_help() -> None:
    """A quotient of two losses to the worse must not read as a success."""
    record = scored(books=losses_of([2.0] * 4, [2.1] * 4, [2.5] * 4))[-1]
    assert (record.recovery, record.recovery_low, record.recovery_high) == (None,) * 3


def test_there_is_no_interval_where_raw_text_hardly_helps() -> None:
    record = scored(books=losses_of([2.0, 2.0], [1.0, 2.9], [1.9, 1.9]))[-1]
    assert record.recovery == pytest.approx(2.0)
    assert record.recovery_low is None


def test_one_domain_has_no_mean(tiny_embedder: ExtensibleEmbedder, data: list[Path]) -> None:
    assert {r.domain for r in evaluate_lm(tiny_embedder, data[1:], **ASKED)} == {"code"}


def test_losses_match_a_plain_reading_of_the_target(
    tiny_embedder: ExtensibleEmbedder, tmp_path: Path
) -> None:
    reader, text = tiny_embedder.reader, words(1, 80)  # as long as a context and its target
    path = parquet(tmp_path / "one.parquet", text=[text])
    records = evaluate_lm(
        tiny_embedder, [path], **{**ASKED, "num_targets": 1, "context_tokens": [64]}
    )
    ids, head = reader.encode(text), language_head(reader)
    rows = tiny_embedder.compress(ids[:64], k=4).rows
    whole = torch.cat([reader.embed_tokens(head), rows, reader.embed_tokens(ids[64:])])
    with torch.inference_mode():
        logits = reader.model(inputs_embeds=whole[None]).logits[0, -17:-1]
    expected = torch.nn.functional.cross_entropy(logits, ids[64:]).item()
    assert find(records, k=4)[0].loss_nats == pytest.approx(expected, abs=1e-5)
    raw = torch.cat([head, ids])[None]
    with torch.inference_mode():
        logits = reader.model(raw).logits[0, -17:-1]
    expected = torch.nn.functional.cross_entropy(logits, ids[64:]).item()
    assert find(records, method="raw")[0].loss_nats == pytest.approx(expected, abs=1e-5)


def test_drawn_tokens_are_whole_and_spread_over_documents(tiny_reader: Reader) -> None:
    texts = [*("".join(f"{each}{n} " for n in range(200)) for each in "xy"), "too short"]
    drawn = draw_targets(tiny_reader, "d", texts, 80, 6, seed=0)
    letters = ["x" if "x" in tiny_reader.decode(ids) else "y" for ids in drawn]
    assert sorted(letters) == ["x", "x", "x", "y", "y", "y"]
    assert all(len(ids) == 80 for ids in drawn)


def test_progress_counts_targets(evaluate: Evaluate) -> None:
    seen: list[tuple[int, int]] = []
    evaluate(methods=["none"], progress=lambda done, total: seen.append((done, total)))
    assert seen == [(number, 10) for number in range(1, 11)]


def test_the_embedder_keeps_its_mode(tiny_embedder: ExtensibleEmbedder, data: list[Path]) -> None:
    tiny_embedder.train()
    evaluate_lm(tiny_embedder, data, **ASKED)
    assert tiny_embedder.training


def test_rows_of_a_context_beyond_the_window_have_no_recovery(
    tiny_embedder: ExtensibleEmbedder, tmp_path: Path
) -> None:
    path = parquet(tmp_path / "long.parquet", text=[words(2, 2000)])
    asked = {**ASKED, "context_tokens": [600], "scale_factors": [4]}
    (record,) = evaluate_lm(tiny_embedder, [path], methods=["extensible"], **asked)
    assert record.recovery is record.recovery_low is None
    with pytest.raises(InputError, match="window of 512 rows, but 600 context tokens"):
        evaluate_lm(tiny_embedder, [path], methods=["raw"], **asked)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"methods": ["raw", "magic"]},
            "one or more of none, .*, but 'magic' is none",
        ),
        ({"methods": []}, "none is given"),
        ({"scale_factors": []}, "needs scale factors"),
        ({"scale_factors": [0]}, "k is 0"),
        ({"context_tokens": []}, "context_tokens is 1 or more"),
        ({"target_tokens": 0}, "target_tokens is 1 or more"),
        ({"num_targets": 0}, "num_targets is 1 or more"),
        ({"context_tokens": [400], "target_tokens": 100_000}, "must fit a window"),
        ({"context_tokens": [490], "num_targets": 1, "target_tokens": 21}, None),
    ],
)
def test_bad_arguments_are_refused(
    evaluate: Evaluate, changed: dict[str, Any], message: str | None
) -> None:
    if message is None:  # the window is filled to the last row
        assert evaluate(**changed)
        return
    with pytest.raises(InputError, match=message):
        evaluate(**changed)


def test_bad_data_are_refused(tiny_embedder: ExtensibleEmbedder, tmp_path: Path) -> None:
    other = parquet(tmp_path / "other.parquet", body=["a"])
    short = parquet(tmp_path / "short.parquet", text=["too short"])
    empty = parquet(tmp_path / "empty.parquet", text=[])
    plain = tmp_path / "plain.parquet"
    plain.write_text("not parquet")
    for path, message in (
        (other, "column `text`, but .* has body"),
        (short, "80 tokens, but no document of 'short'"),
        (empty, "there are none"),
        (plain, "cannot be read as one"),
        (tmp_path / "missing.parquet", "cannot be read as one"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate_lm(tiny_embedder, [path], **ASKED)


def test_written_records_hold_what_is_needed_to_score_again(
    evaluate: Evaluate, tmp_path: Path
) -> None:
    records = evaluate()
    out = tmp_path / "new" / "lm.json"
    write_records(records, out, configuration={"seed": 3, "data": [Path("a.parquet")]})
    report = json.loads(out.read_text())
    assert report["configuration"] == {"seed": 3, "data": ["a.parquet"]}
    assert set(report) >= {"versions", "hardware", "date", "git_commit"}
    losses = {
        (row["domain"], row["method"], row["k"], row["context_tokens"]): row["target_loss_nats"]
        for row in report["target_loss_nats"]
    }
    for record, row in zip(records, report["records"], strict=True):
        key = (record.domain, record.method, record.k, record.context_tokens)
        again = losses.get(key, record.target_loss_nats)  # a mean repeats what its domains hold
        assert LmRecord(**row, target_loss_nats=again) == record
    assert [path.name for path in out.parent.iterdir()] == ["lm.json"]


def test_json_lines_begin_with_the_run(evaluate: Evaluate, tmp_path: Path) -> None:
    records, out = evaluate(), tmp_path / "lm.jsonl"
    write_records(records, out, configuration={"seed": 3})
    first, *lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert first["run"]["configuration"] == {"seed": 3}
    assert set(first["run"]) == {"configuration", "versions", "hardware", "date", "git_commit"}
    assert [LmRecord(**line) for line in lines] == records
    write_records(records, tmp_path / "lm.json", configuration={"seed": 3})
    one, other = read_records(out), read_records(tmp_path / "lm.json")
    assert one["versions"] == other["versions"]
    without = [{k: v for k, v in row.items() if k != "target_loss_nats"} for row in one["records"]]
    assert without == other["records"]


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.json", "[]"), ("b.json", "{"), ("c.jsonl", ""), ("d.jsonl", "{}\n"), ("e.jsonl", "[1]")],
)
def test_files_that_are_no_results_are_refused(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=f"{name}' is none .*; move it elsewhere"):
        read_records(tmp_path / name)


def test_a_place_that_cannot_be_written_is_told(evaluate: Evaluate, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written"):
        write_records([], tmp_path / "file" / "lm.json")


def test_equal_windows_compare_with_the_most_recent_tokens(evaluate: Evaluate) -> None:
    methods = ["truncate", "streaming-llm", "retrieve", "extensible", "mean-pool", "none"]
    records = evaluate(methods=methods, windows=[40, 48], scale_factors=[])
    found = find(records, domain="books", window=40, context_tokens=64)
    assert [record.method for record in found] == methods[:5]
    truncate, rows = found[0], find(found, method="extensible")[0]
    assert truncate.versus_truncate == 0.0
    assert truncate.loss_nats is not None
    assert rows.loss_nats is not None
    assert rows.versus_truncate == pytest.approx(np.exp(rows.loss_nats - truncate.loss_nats) - 1)
    assert rows.k > 1
    assert rows.recovery is None
    assert len(records) == 3 * (5 * 2 * 2 + 1)


def test_with_room_for_all_every_method_reads_it_raw(evaluate: Evaluate) -> None:
    records = evaluate(methods=["raw", "truncate", "extensible"], windows=[200], scale_factors=[])
    for length in (32, 64):
        losses = {r.loss_nats for r in find(records, domain="code", context_tokens=length)}
        assert len(losses) == 1


def test_a_stopped_evaluation_goes_on_from_its_journal(evaluate: Evaluate, tmp_path: Path) -> None:
    journal, whole = tmp_path / "j.jsonl", evaluate()

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(journal=journal, progress=stop)
    before = journal.read_text()
    assert evaluate(journal=journal) == whole
    assert journal.read_text().startswith(before)
    with pytest.raises(InputError, match="begun with seed"):
        evaluate(journal=journal, seed=9)


def test_a_budget_measures_fewer_targets_of_every_domain(evaluate: Evaluate) -> None:
    records = evaluate(budget_minutes=0)
    assert {record.num_targets for record in find(records, domain="books")} == {1}
    assert {record.num_targets for record in find(records, domain="mean")} == {2}


def test_methods_of_a_window_need_one(evaluate: Evaluate) -> None:
    with pytest.raises(InputError, match="'truncate' reads what fits a window, so it needs one"):
        evaluate(methods=["truncate"])


def adapted(embedder: ExtensibleEmbedder) -> ExtensibleEmbedder:
    """The same embedder with a reader whose token embeddings alone are the same."""
    reader = Reader(copy.deepcopy(embedder.reader.model), embedder.reader.tokenizer, name="adapted")
    reader.model.model.layers[3].mlp.up_proj.weight.data.mul_(1.5)
    assert reader.fingerprint == embedder.reader.fingerprint
    other = ExtensibleEmbedder(embedder.config, reader, copy_weights=False)
    other.load_state_dict(embedder.state_dict())
    return other.eval()


def test_a_journal_of_another_reader_with_the_same_token_embeddings_is_refused(
    tiny_embedder: ExtensibleEmbedder, data: list[Path], tmp_path: Path
) -> None:
    """An adapter or a quantised copy: the fingerprint does not see them."""
    journal = tmp_path / "j.jsonl"
    evaluate_lm(tiny_embedder, data, **ASKED, journal=journal)
    with pytest.raises(InputError, match="begun with reader weights"):
        evaluate_lm(adapted(tiny_embedder), data, **ASKED, journal=journal)


def test_a_journal_of_another_window_is_refused(
    tiny_embedder: ExtensibleEmbedder, data: list[Path], tmp_path: Path
) -> None:
    journal = tmp_path / "j.jsonl"
    evaluate_lm(tiny_embedder, data, **ASKED, journal=journal)
    reader = Reader(tiny_embedder.reader.model, tiny_embedder.reader.tokenizer, window=300)
    other = ExtensibleEmbedder(tiny_embedder.config, reader, copy_weights=False)
    other.load_state_dict(tiny_embedder.state_dict())
    with pytest.raises(InputError, match="begun with window 512, but now it is 300"):
        evaluate_lm(other.eval(), data, **ASKED, journal=journal)


def test_what_is_compared_was_measured_on_the_same_targets(
    evaluate: Evaluate, tmp_path: Path
) -> None:
    """A run with one more method goes on from a journal and is cut off by its budget."""
    shape = {"windows": [60], "scale_factors": [], "journal": tmp_path / "j.jsonl"}
    evaluate(**shape, methods=["truncate"])
    records = evaluate(**shape, methods=["truncate", "extensible"], budget_minutes=1e-9)
    assert {record.num_targets for record in records if record.domain != "mean"} == {1}


def test_one_target_has_no_interval(evaluate: Evaluate) -> None:
    for record in evaluate(num_targets=1):
        assert record.loss_nats is not None
        assert record.loss_low is record.loss_high is record.versus_low is None
        assert record.method == "none" or record.recovery_low is None


def test_a_window_beyond_the_readers_is_refused(evaluate: Evaluate) -> None:
    with pytest.raises(InputError, match="at most the reader's window of 512 rows, but .* 600"):
        evaluate(windows=[64, 600])
