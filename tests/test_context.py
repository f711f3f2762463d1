"""A context keeps its rows and their provenance, on disk and at other scale factors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from extensible_embedding import Context, InputError
from extensible_embedding.context import MANIFEST, TENSORS
from extensible_embedding.downsampling import DOWN_SAMPLINGS, down_sampling


def make_context(
    *, n: int = 39, k: int = 4, sampling: str = "strided", dtype: torch.dtype = torch.float32
) -> Context:
    torch.manual_seed(0)
    outputs = torch.randn(n, 6).split(16)
    rows = torch.cat([down_sampling(sampling).rows(chunk, k) for chunk in outputs])
    return Context(
        rows=rows.to(dtype),
        token_ids=torch.arange(n),
        k=k,
        chunk_tokens=16,
        down_sampling=sampling,
        embedder_fingerprint="e" * 16,
        reader_fingerprint="r" * 16,
        max_k=32,
        title='A "title", na\u00efve \u3042 \ud835',
    )


def same(one: Context, other: Context) -> bool:
    fields = [field for field in Context.__dataclass_fields__ if field not in ("rows", "token_ids")]
    return (
        torch.equal(one.rows, other.rows)
        and one.rows.dtype == other.rows.dtype
        and torch.equal(one.token_ids, other.token_ids)
        and all(getattr(one, field) == getattr(other, field) for field in fields)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_save_and_load(tmp_path: Path, dtype: torch.dtype) -> None:
    context = make_context(dtype=dtype)
    assert not Context.is_saved_at(tmp_path / "c")
    context.save(tmp_path / "c")
    assert Context.is_saved_at(tmp_path / "c")
    assert same(Context.load(tmp_path / "c"), context)
    assert sorted(file.name for file in (tmp_path / "c").iterdir()) == [MANIFEST, TENSORS]
    assert [folder.name for folder in tmp_path.iterdir()] == ["c"]


def test_the_manifest_says_how_much_there_is(tmp_path: Path) -> None:
    make_context().save(tmp_path)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    sizes = {name: manifest[name] for name in ("num_tokens", "num_rows", "row_width", "k")}
    assert sizes == {"num_tokens": 39, "num_rows": 10, "row_width": 6, "k": 4}


def test_a_save_replaces_an_older_one_also_through_a_link(tmp_path: Path) -> None:
    make_context().save(tmp_path / "c")
    (tmp_path / "link").symlink_to(tmp_path / "c")
    newer = make_context(n=7)
    newer.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert same(Context.load(tmp_path / "c"), newer)
    assert {folder.name for folder in tmp_path.iterdir()} == {"c", "link"}


def test_part_of_a_context_is_saved_alone(tmp_path: Path) -> None:
    whole = make_context(n=32)
    part = Context(
        **{**vars(whole), "rows": whole.rows[4:], "token_ids": whole.token_ids[16:]},
    )
    part.save(tmp_path)
    assert same(Context.load(tmp_path), part)
    assert (tmp_path / TENSORS).stat().st_size < 4 * 6 * 4 + 16 * 8 + 300


@pytest.mark.parametrize("sampling", ["strided", "mean", "terminal"])
@pytest.mark.parametrize("k", [4, 6, 8, 14, 16])
def test_at_gives_what_compressing_at_that_k_would(sampling: str, k: int) -> None:
    read = make_context(k=2, sampling=sampling).at(k)
    made = make_context(k=k, sampling=sampling)
    torch.testing.assert_close(read.rows, made.rows)
    assert (read.k, len(read.rows)) == (k, read.rows_at(k))
    assert torch.equal(read.row_ends(), made.row_ends())


def test_at_nests() -> None:
    context = make_context(k=2)
    assert context.at(2) is context
    assert torch.equal(context.at(4).at(8).rows, context.at(8).rows)


@pytest.mark.parametrize(
    ("context", "k"),
    [
        (make_context(), 6),
        (make_context(), 2),
        (make_context(), 1),
        (make_context(), 32),
        (make_context(k=1), 2),
        (make_context(sampling="random"), 8),
    ],
)
def test_at_refuses_what_does_not_nest(context: Context, k: int) -> None:
    with pytest.raises(InputError, match=rf"\b{k}\b.*; compress the text again"):
        context.at(k)


@pytest.mark.parametrize("k", [0, -1, True, 2.0, "2", None])
def test_a_scale_factor_is_a_whole_number(k: object) -> None:
    for call in (make_context().at, make_context().rows_at):
        with pytest.raises(InputError, match="1 or more, but k is") as caught:
            call(k)  # type: ignore[arg-type]
        assert repr(k) in str(caught.value)


@pytest.mark.parametrize("n", [1, 15, 16, 17, 39])
@pytest.mark.parametrize("k", [1, 3, 4, 16])
@pytest.mark.parametrize("sampling", DOWN_SAMPLINGS)
def test_every_token_belongs_to_one_row(n: int, k: int, sampling: str) -> None:
    context = make_context(n=n, k=k, sampling=sampling)
    ends = context.row_ends().tolist()
    assert len(ends) == context.num_rows == context.rows_at(k)
    spans = list(zip([0, *ends[:-1]], ends, strict=True))
    assert [token for start, end in spans for token in range(start, end)] == list(range(n))
    longest = k if sampling in ("strided", "mean") else 16
    assert all(1 <= end - start <= longest for start, end in spans)
    assert all(start // 16 == (end - 1) // 16 for start, end in spans)


def test_rows_at_counts_rows_of_each_chunk() -> None:
    context = make_context(n=39, k=4)
    assert [context.rows_at(k) for k in (1, 2, 4, 8, 16, 100)] == [39, 20, 10, 5, 3, 3]
