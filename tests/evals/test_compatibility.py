"""Recovery that is kept on another reader, and the verdict."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_tokenizer
from repeating import repeating_embedder, repeating_reader, repeating_texts
from test_kinship import changed, resized

from extensible_embedding import ExtensibleEmbedder, Reader
from extensible_embedding.checkpoint import own_weights
from extensible_embedding.errors import InputError
from extensible_embedding.evals import compatibility
from extensible_embedding.evals.compatibility import (
    INCOMPATIBLE,
    KEEP,
    RETRAIN,
    Compatibility,
    KeptRecovery,
    Plan,
    check_compatibility,
    judge,
)
from extensible_embedding.evals.kinship import ANOTHER, DERIVATIVE, OWN
from extensible_embedding.evals.scoring import NONE, Losses, Setting, kept_share

ROWS = Setting("extensible", 4, 64)
RAW = Setting("raw", 1, 64)


@pytest.fixture(scope="module")
def own_reader() -> Reader:
    return repeating_reader()


@pytest.fixture
def embedder(own_reader: Reader) -> ExtensibleEmbedder:
    return repeating_embedder(own_reader)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(
        data=[repeating_texts(tmp_path / f"{name}.parquet") for name in ("one", "two")],
        scale_factors=[2, 4],
        context_tokens=32,
        target_tokens=8,
        num_targets=8,
    )


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the readers that were measured."""
    names: list[str] = []
    evaluate = compatibility.evaluate_lm

    def count(embedder: ExtensibleEmbedder, *arguments: Any, **settings: Any) -> Any:
        names.append(embedder.reader.name)
        return evaluate(embedder, *arguments, **settings)

    monkeypatch.setattr(compatibility, "evaluate_lm", count)
    return names


def fine_tuned(reader: Reader, by: float = 0.003) -> Reader:
    """All weights moved a little."""

    def move(model: torch.nn.Module) -> None:
        torch.manual_seed(3)
        for weight in model.parameters():
            weight.add_(by * torch.randn_like(weight))

    return changed(reader, move)


def test_the_own_reader_is_measured_once_and_keeps_all(
    embedder: ExtensibleEmbedder, plan: Plan, measured: list[str]
) -> None:
    same = Reader(copy.deepcopy(embedder.reader.model), byte_tokenizer(), name="copy")
    found = check_compatibility(embedder, same, plan)
    assert (found.verdict, found.certain, found.kinship.relation) == (KEEP, True, OWN)
    assert measured == ["repeating"]
    assert {each.share for each in found.kept} == {1.0}
    assert {each.share_low for each in found.kept} == {1.0}


def test_a_fine_tune_keeps_the_embedder_whose_weights_do_not_change(
    embedder: ExtensibleEmbedder, plan: Plan, measured: list[str]
) -> None:
    before = {name: weight.clone() for name, weight in own_weights(embedder).items()}
    done: list[tuple[int, int]] = []
    tuned = fine_tuned(embedder.reader)
    found = check_compatibility(
        embedder, tuned, plan, progress=lambda one, total: done.append((one, total))
    )
    assert (found.verdict, found.kinship.relation) == (KEEP, DERIVATIVE)
    assert measured == ["repeating", "changed"]
    assert [(each.domain, each.k) for each in found.kept] == [
        (domain, k) for domain in ("one", "two", "mean") for k in (2, 4)
    ]
    assert found.kept[0].share == pytest.approx(
        (found.kept[0].recovery or 0) / (found.kept[0].own_recovery or 1)
    )
    assert [each.target_loss_nats for each in found.records] != [
        each.target_loss_nats for each in found.own_records
    ]
    assert done[-1] == (32, 32)
    assert [one for one, _ in done] == list(range(1, 33))
    assert found.embedder_fingerprint == embedder.fingerprint
    assert all(torch.equal(weight, before[name]) for name, weight in own_weights(embedder).items())


def test_below_the_rule_it_is_to_be_trained_again(
    embedder: ExtensibleEmbedder, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compatibility, "KEEP_SHARE", 5.0)
    found = check_compatibility(embedder, fine_tuned(embedder.reader), plan)
    assert (found.verdict, found.certain) == (RETRAIN, True)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"hidden_size": 64, "head_dim": 16}, "of its own hidden size, 32, but 'resized' has 64"),
        ({"vocab_size": 300}, "of its own vocab size, 260, but 'resized' has 300"),
        ({"intermediate_size": 80}, "shaped like its own, but those of 'resized' are not"),
        ({"num_hidden_layers": 1}, "shaped like its own, but those of 'resized' are not"),
    ],
)
def test_rows_that_do_not_fit_are_not_measured(
    embedder: ExtensibleEmbedder,
    plan: Plan,
    measured: list[str],
    sizes: dict[str, int],
    words: str,
) -> None:
    found = check_compatibility(embedder, resized(embedder.reader, **sizes), plan)
    assert (found.verdict, found.certain, found.kinship.relation) == (INCOMPATIBLE, True, ANOTHER)
    assert words in found.reason
    assert measured == []
    assert not found.kept


def test_another_tokenizer_is_incompatible(embedder: ExtensibleEmbedder, plan: Plan) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["return"])
    found = check_compatibility(embedder, Reader(embedder.reader.model, tokenizer, name="o"), plan)
    assert found.verdict == INCOMPATIBLE
    assert "tokenizer, but 'o' has another than 'repeating'; train" in found.reason


def test_without_recovery_there_is_no_verdict() -> None:
    kept = made(share=None, own_recovery=-0.25, recovery=None)
    with pytest.raises(InputError, match=r"at k=4 recovery is -0\.25 on .* and none on this one"):
        judge([kept])


def made(**fields: Any) -> KeptRecovery:
    values: dict[str, Any] = {field.name: None for field in dataclasses.fields(KeptRecovery)} | {
        "domain": "mean",
        "k": 4,
        "num_targets": 8,
    }
    return KeptRecovery(**values | fields)


@pytest.mark.parametrize(
    ("shares", "verdict", "certain"),
    [
        ([(0.97, 0.91, 1.0), (0.95, 0.90, 1.1)], KEEP, True),
        ([(0.97, 0.91, 1.0), (0.90, 0.85, 1.1)], KEEP, False),
        ([(0.97, None, None)], KEEP, False),
        ([(0.97, 0.91, 1.0), (0.89, 0.85, 0.95)], RETRAIN, False),
        ([(0.97, 0.91, 1.0), (0.80, 0.70, 0.89)], RETRAIN, True),
        ([(-0.2, None, None)], RETRAIN, False),
    ],
)
def test_the_rule(
    shares: list[tuple[float, float | None, float | None]], verdict: str, certain: bool
) -> None:
    """The worst scale factor of the mean decides; single domains do not."""
    kept = [made(domain="code", share=0.1, share_low=0.0, share_high=0.2)]
    for k, (share, low, high) in enumerate(shares, start=2):
        kept.append(made(k=k, share=share, share_low=low, share_high=high))
    found = judge(kept)
    assert found[:2] == (verdict, certain)
    assert f"at k={len(shares) + 1} the recovery on this reader is {shares[-1][0]:.2f}" in found[2]
    assert ("more targets would tell" in found[2]) == (not certain)


def losses_of(none: list[float], raw: list[float], rows: list[float]) -> Losses:
    return {NONE: np.array(none), RAW: np.array(raw), ROWS: np.array(rows)}


BOOKS = losses_of([4.0, 3.0, 3.5], [3.0, 2.5, 3.0], [3.5, 2.7, 3.3])
HALF = losses_of([4.0, 3.0, 3.5], [3.0, 2.5, 3.0], [3.75, 2.85, 3.4])
CODE = losses_of([2.0, 2.5], [1.0, 1.5], [1.5, 2.0])


def test_shares_follow_from_the_losses() -> None:
    """By hand: half of what rows win on books, all on code, whose recovery is a half on both."""
    shares = kept_share({"books": BOOKS, "code": CODE}, {"books": HALF, "code": CODE}, ROWS, 0)
    assert list(shares) == ["books", "code", "mean"]
    assert shares["books"] == pytest.approx((0.5, 0.5, 0.5))  # of every target: no spread
    assert shares["code"] == pytest.approx((1, 1, 1))
    assert shares["mean"][0] == pytest.approx((0.25 + 0.5) / (0.5 + 0.5))
    assert shares["mean"][1] < shares["mean"][0] < shares["mean"][2]  # type: ignore[operator]


def test_there_is_no_share_of_nothing() -> None:
    harmful = losses_of([4.0, 3.0], [3.0, 2.5], [4.5, 3.5])
    useless = losses_of([4.0, 3.0], [4.0, 3.0], [3.5, 2.7])
    fine = losses_of([4.0, 3.0], [3.0, 2.5], [3.5, 2.7])
    for own, found in ((harmful, fine), (useless, fine), (fine, useless)):
        assert kept_share({"one": own}, {"one": found}, ROWS, 0)["one"] == (None, None, None)
    share = kept_share({"one": fine}, {"one": harmful}, ROWS, 0)["one"][0]
    assert share is not None
    assert share < 0


def test_journals_are_kept_by_reader_and_the_own_one_is_shared(
    embedder: ExtensibleEmbedder, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = dataclasses.replace(plan, journals=tmp_path / "journals")
    first = check_compatibility(embedder, fine_tuned(embedder.reader), kept)
    names = {path.name for path in (tmp_path / "journals").iterdir()}
    assert len(names) == 2
    assert first == check_compatibility(embedder, fine_tuned(embedder.reader), plan)
    check_compatibility(embedder, fine_tuned(embedder.reader, by=0.004), kept)
    assert len(list((tmp_path / "journals").iterdir())) == 3

    def never(*arguments: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("extensible_embedding.evals.lm._Run._loss", never)
    assert first == again(embedder, kept)
    with pytest.raises(AssertionError, match="measured again"):
        again(embedder, dataclasses.replace(kept, seed=1))


def again(embedder: ExtensibleEmbedder, plan: Plan) -> Compatibility:
    return check_compatibility(embedder, fine_tuned(embedder.reader), plan)


def test_another_model_of_the_same_sizes_is_measured(
    embedder: ExtensibleEmbedder, plan: Plan
) -> None:
    found = check_compatibility(embedder, repeating_reader(seed=5), plan)
    assert found.kinship.relation == ANOTHER
    assert found.verdict in (KEEP, RETRAIN)
    assert len(found.records) == len(found.own_records)


def test_raw_text_tells_nothing_of_an_embedder(
    embedder: ExtensibleEmbedder, own_reader: Reader, plan: Plan
) -> None:
    with pytest.raises(InputError, match="k is 2 or more, but it is 1"):
        check_compatibility(embedder, own_reader, dataclasses.replace(plan, scale_factors=[1, 2]))
