"""Targets of documents that are joined to one text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from extensible_embedding import ExtensibleEmbedder, Reader
from extensible_embedding.errors import InputError
from extensible_embedding.evals import targets
from extensible_embedding.evals.lm import evaluate_lm
from extensible_embedding.evals.targets import (
    data_identity,
    draw_joined_targets,
    draw_targets,
    joined_ids,
    read_domains,
)

TEXTS = ["one two three " * 20, "", "four five six " * 30, "seven"]
ASKED: dict[str, Any] = {
    "methods": ["truncate", "extensible"],
    "scale_factors": [],
    "context_tokens": [700],
    "windows": [64],
    "target_tokens": 16,
    "num_targets": 3,
}


def test_documents_follow_each_other_with_a_blank_line_between(tiny_reader: Reader) -> None:
    text = tiny_reader.decode(joined_ids(tiny_reader, TEXTS))
    assert text == "\n\n".join(filter(None, TEXTS))


def test_pieces_are_tokenised_as_the_whole(
    tiny_reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = joined_ids(tiny_reader, TEXTS)
    monkeypatch.setattr(targets, "_PIECE_CHARS", 50)
    longest = 0
    encode = tiny_reader.encode

    def watched(text: str) -> torch.Tensor:
        nonlocal longest
        longest = max(longest, len(text))
        return encode(text)

    monkeypatch.setattr(tiny_reader, "encode", watched)
    assert torch.equal(joined_ids(tiny_reader, TEXTS), whole)
    assert longest < 60


def test_places_are_spread_and_more_of_them_begin_with_the_same(tiny_reader: Reader) -> None:
    text = "".join(f"{number:05d} " for number in range(1000))

    def starts(num_targets: int, seed: int = 0) -> list[int]:
        drawn = draw_joined_targets(tiny_reader, "d", [text], 606, num_targets, seed)
        assert all(len(ids) == 606 for ids in drawn)
        return [int(tiny_reader.decode(ids).split()[1]) for ids in drawn]

    assert starts(3) == starts(8)[:3]
    assert starts(3) != starts(3, seed=1)
    places = sorted(starts(8))
    gaps = [after - before for before, after in zip(places, places[1:], strict=False)]
    assert max(gaps) < 2 * 900 / 8  # the largest gap is at most twice the mean


def test_too_little_text_is_told(tiny_reader: Reader) -> None:
    with pytest.raises(InputError, match="300 tokens, but those of 'd' hold 9 together"):
        draw_joined_targets(tiny_reader, "d", ["abc", "defg"], 300, 1, seed=0)
    with pytest.raises(InputError, match="num_targets is 1 or more"):
        draw_joined_targets(tiny_reader, "d", ["abc"], 1, 0, seed=0)


def test_contexts_longer_than_any_document(
    tiny_embedder: ExtensibleEmbedder, tmp_path: Path
) -> None:
    data, journal = [tmp_path / "d.parquet"], tmp_path / "j"
    pq.write_table(pa.table({"text": [*TEXTS, *TEXTS]}), data[0])
    with pytest.raises(InputError, match="no document of 'd' is so long"):
        evaluate_lm(tiny_embedder, data, **ASKED)
    records = evaluate_lm(tiny_embedder, data, concatenate=True, journal=journal, **ASKED)
    assert all(record.concatenated and record.num_targets == 3 for record in records)
    assert [record.method for record in records] == ["truncate", "extensible"]
    more = {**ASKED, "num_targets": 5}
    again = evaluate_lm(tiny_embedder, data, concatenate=True, journal=journal, **more)
    assert again[0].target_loss_nats[:3] == records[0].target_loss_nats


def test_a_journal_is_of_joined_documents_or_of_single_ones(
    tiny_embedder: ExtensibleEmbedder, tmp_path: Path
) -> None:
    data, journal = [tmp_path / "d.parquet"], tmp_path / "j"
    pq.write_table(pa.table({"text": TEXTS}), data[0])
    short = {**ASKED, "context_tokens": [100], "num_targets": 1}
    assert not evaluate_lm(tiny_embedder, data, **short)[0].concatenated
    evaluate_lm(tiny_embedder, data, concatenate=True, journal=journal, **short)
    with pytest.raises(InputError, match="begun with concatenate True, but now it is None"):
        evaluate_lm(tiny_embedder, data, journal=journal, **short)


def test_a_domain_named_as_the_mean_of_all_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a text"]}), tmp_path / "mean.parquet")
    with pytest.raises(InputError, match="'mean' is the name of the average over domains"):
        read_domains([tmp_path / "mean.parquet"])


def test_a_target_is_drawn_once(tiny_reader: Reader) -> None:
    short, long = "a short one " * 6, "".join(f"{number:03d} " for number in range(300))
    span = len(tiny_reader.encode(short))
    drawn = draw_targets(tiny_reader, "d", [short, long], span, 12, 0)
    assert len(drawn) == 12
    assert len({tuple(ids.tolist()) for ids in drawn}) == 12
    alone = draw_targets(tiny_reader, "d", [short], span, 12, 0)
    assert [tiny_reader.decode(ids) for ids in alone] == [short]


def test_files_of_one_name_are_no_single_domain(tmp_path: Path) -> None:
    files = [tmp_path / folder / "books.parquet" for folder in "ab"]
    for file in files:
        file.parent.mkdir()
        pq.write_table(pa.table({"text": [str(file)]}), file)
    with pytest.raises(InputError, match="share one; rename"):
        read_domains(files)
    assert len(read_domains([files[0], files[0]])["books"]) == 2


def test_data_are_told_apart_by_their_content(tmp_path: Path) -> None:
    file = tmp_path / "books.parquet"
    file.write_bytes(b"one")
    before = data_identity([file])
    assert before == data_identity([file])
    file.write_bytes(b"two")
    assert before != data_identity([file])


@pytest.mark.parametrize("values", [[1, 2], [["a"], ["b"]], [b"text", b"more"]])
def test_values_that_are_no_text_are_refused(tmp_path: Path, values: list[object]) -> None:
    """Their Python form would be measured as if somebody had written it."""
    pq.write_table(pa.table({"text": values}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="holds texts, but that of .*a.parquet' holds values of"):
        read_domains([tmp_path / "a.parquet"])


def test_a_domain_may_be_a_number(tmp_path: Path) -> None:
    table = pa.table({"text": ["a", "b", "c"], "domain": [0, 1, None]})
    pq.write_table(table, tmp_path / "file.parquet")
    assert read_domains([tmp_path / "file.parquet"]) == {"0": ["a"], "1": ["b"], "file": ["c"]}
