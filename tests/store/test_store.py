"""What is kept is what `compress` makes, however it came in."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from conftest import make_embedder

from extensible_embedding import Context, ExtensibleEmbedder, Reader
from extensible_embedding.errors import CheckpointError, InputError, MismatchError, StorageError
from extensible_embedding.store import files as files_module
from extensible_embedding.store import growth
from extensible_embedding.store.store import ContextStore

from .conftest import NON_ASCII, text_of

CHUNK = 32


@pytest.fixture
def embedder(tiny_reader: Reader) -> ExtensibleEmbedder:
    return make_embedder(tiny_reader, chunk_tokens=CHUNK)


def fresh(embedder: ExtensibleEmbedder, text: str, k: int, kept_k: int = 4) -> Context:
    """As `compress` makes it, with rows in the type that a store keeps."""
    context = embedder.compress(text, k=kept_k, batch_chunks=1)
    rows = context.rows.to(torch.bfloat16)
    return dataclasses.replace(context, rows=rows).at(k)


def assert_same(found: Context, expected: Context) -> None:
    assert found.k == expected.k
    assert torch.equal(found.token_ids, expected.token_ids)
    assert torch.equal(found.rows, expected.rows)


@pytest.mark.parametrize("k", [4, 8, 16, 32])
@pytest.mark.parametrize("num_bytes", [4, 31, 32, 33, 300])
def test_reading_is_computing_afresh_bit_for_bit(
    store: ContextStore, embedder: ExtensibleEmbedder, num_bytes: int, k: int
) -> None:
    text = text_of(num_bytes)
    store.add("novel", text, embedder)
    stored = ContextStore(store.place.name).open("novel")
    assert_same(stored.context(k), fresh(embedder, text, k))
    assert stored.text() == text
    assert stored.num_tokens == num_bytes


def test_the_answer_is_that_of_a_fresh_context(
    store: ContextStore, embedder: ExtensibleEmbedder
) -> None:
    text = text_of(150)
    stored = store.add("novel", text, embedder, row_type="float32").context(8)
    expected = embedder.compress(text, k=4, batch_chunks=1).at(8)
    answers = [
        embedder.reader.answer(context, "Who waits?", k=8, max_new_tokens=8).text
        for context in (stored, expected)
    ]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("pieces", [1, 3, 7, 50])
def test_growing_is_adding_the_whole(
    store: ContextStore, embedder: ExtensibleEmbedder, pieces: int
) -> None:
    text = text_of(500)
    cuts = [round(500 * number / pieces) for number in range(pieces + 1)]
    store.add("log", "", embedder)
    for start, end in zip(cuts, cuts[1:], strict=False):
        stored = store.append("log", text[start:end], embedder)
    assert stored.text() == text
    assert_same(stored.context(), fresh(embedder, text, 4))
    whole = store.add("whole", text, embedder)
    assert whole.manifest.end_chain == stored.manifest.end_chain
    assert torch.equal(stored.row_spans(), whole.row_spans())


def test_a_short_text_grows_past_its_first_row(
    store: ContextStore, embedder: ExtensibleEmbedder
) -> None:
    store.add("log", "a", embedder)
    assert store["log"].num_rows == 1
    store.append("log", "bcdefgh", embedder)
    assert_same(store["log"].context(), fresh(embedder, "abcdefgh", 4))


def test_characters_of_several_tokens_survive_cuts(
    store: ContextStore, embedder: ExtensibleEmbedder
) -> None:
    """Every character may stand across the end of a chunk."""
    for shift in range(8):
        text = "x" * shift + NON_ASCII * 6
        name = f"shift {shift}"
        store.add(name, text[:40], embedder)
        for start in range(40, len(text), 9):
            store.append(name, text[start : start + 9], embedder)
        assert store[name].text() == text
        assert torch.equal(store[name].token_ids(), embedder.reader.encode(text))
        assert_same(store[name].context(), fresh(embedder, text, 4))


def test_spans_of_rows_cover_the_text(store: ContextStore, embedder: ExtensibleEmbedder) -> None:
    text = text_of(70) + NON_ASCII
    stored = store.add("novel", text, embedder)
    spans, data = stored.row_spans(), text.encode()
    assert len(spans) == stored.num_rows
    assert int(spans[0, 0]) == 0
    assert int(spans[-1, 1]) == len(data)
    assert torch.equal(spans[1:, 0], spans[:-1, 1])
    assert data[spans[3, 0] : spans[3, 1]].decode() == text[12:16]


def test_growing_costs_a_page(
    store: ContextStore, embedder: ExtensibleEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks read by the embedder, and bytes written, do not grow with the context."""
    store.add("log", text_of(3000), embedder)
    read: list[int] = []
    compress = ExtensibleEmbedder.compress

    def counted(self: ExtensibleEmbedder, ids: torch.Tensor, **more: object) -> Context:
        read.append(len(ids))
        return compress(self, ids, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(ExtensibleEmbedder, "compress", counted)
    for number in range(20):
        store.append("log", f"{number:02} is a line.\n", embedder)
    assert sum(read) <= 20 * (15 + CHUNK)
    assert len(store["log"].segments) <= 12


def test_segments_are_few_and_merging_changes_no_row(
    store: ContextStore, embedder: ExtensibleEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add("log", "", embedder)
    for number in range(40):
        store.append("log", text_of(200)[number : number + CHUNK], embedder)
    assert len(store["log"].segments) <= 7
    monkeypatch.setattr(growth, "MERGED_TOKENS", 0)
    store.add("unmerged", "", embedder)
    for number in range(40):
        store.append("unmerged", text_of(200)[number : number + CHUNK], embedder)
    assert len(store["unmerged"].segments) == 40
    assert_same(store["log"].context(), store["unmerged"].context())
    assert torch.equal(store["log"].row_spans(), store["unmerged"].row_spans())


def test_a_large_text_becomes_several_segments(
    store: ContextStore, embedder: ExtensibleEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth, "SEGMENT_CHUNKS", 2)
    calls: list[tuple[int, int]] = []
    text = text_of(300)
    stored = store.add("novel", text, embedder, progress=lambda *at: calls.append(at))
    assert [each.num_tokens for each in stored.manifest.segments] == [64, 64, 64, 64, 32, 12]
    assert_same(stored.context(8), fresh(embedder, text, 8))
    assert calls == [(min(300, 32 * number), 300) for number in range(1, 11)]


def test_the_same_text_is_computed_once(
    store: ContextStore, embedder: ExtensibleEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = text_of(100)
    first = store.add("first", text, embedder)
    monkeypatch.setattr(ExtensibleEmbedder, "compress", lambda *a, **b: pytest.fail("again"))
    second = store.add("second", text, embedder, title="Another name")
    assert second.manifest.segments == first.manifest.segments
    store.delete("first")
    assert store["second"].text() == text
    with pytest.raises(pytest.fail.Exception):
        store.add("third", text, embedder, k=8)
    assert "third" not in store


def test_two_names_of_one_content_grow_apart(
    store: ContextStore, embedder: ExtensibleEmbedder
) -> None:
    for name in ("one", "two"):
        store.add(name, text_of(100), embedder)
    store.append("one", " And more.", embedder)
    assert store["one"].text() == text_of(100) + " And more."
    assert store["two"].text() == text_of(100)


@pytest.mark.parametrize("row_type", ["bfloat16", "float16", "float32", "int8"])
def test_types_of_rows(store: ContextStore, embedder: ExtensibleEmbedder, row_type: str) -> None:
    text = text_of(100)
    rows = store.add("novel", text, embedder, row_type=row_type).context().rows
    expected = embedder.compress(text, k=4, batch_chunks=1).rows
    steps = {"bfloat16": 2**-8, "float16": 2**-11, "float32": 0.0, "int8": 0.5 / 127}
    largest = expected.abs().amax(dim=1, keepdim=True)
    assert ((rows.float() - expected).abs() <= 1.001 * steps[row_type] * largest).all()
    store.append("novel", text_of(30), embedder)
    assert store["novel"].text() == text + text_of(30)


@pytest.mark.parametrize("sampling", ["mean", "terminal"])
def test_others_nest_too(store: ContextStore, tiny_reader: Reader, sampling: str) -> None:
    embedder = make_embedder(tiny_reader, chunk_tokens=CHUNK, down_sampling=sampling)
    store.add("novel", text_of(75), embedder)
    assert_same(store["novel"].context(8), fresh(embedder, text_of(75), 8))
    store.append("novel", text_of(30), embedder)
    read = store["novel"].context()
    tokens, _ = store["novel"].places(embedder.reader, read.token_ids)
    assert torch.equal(tokens, read.row_ends())


def test_what_does_not_nest_is_read_as_kept(store: ContextStore, tiny_reader: Reader) -> None:
    embedder = make_embedder(tiny_reader, chunk_tokens=CHUNK, down_sampling="random")
    store.add("novel", text_of(75), embedder)
    assert_same(store["novel"].context(), fresh(embedder, text_of(75), 4))
    with pytest.raises(InputError, match="kept at k=4 .* but k is 8"):
        store["novel"].context(8)


def test_contexts_are_listed_renamed_and_deleted(
    store: ContextStore, embedder: ExtensibleEmbedder
) -> None:
    assert len(store) == 0
    assert list(store) == []
    store.add("b", text_of(40), embedder, metadata={"page": 3, "tags": ["x"]})
    store.add("a", text_of(50), embedder, title="The A")
    assert [(each.name, each.title) for each in store] == [("a", "The A"), ("b", "b")]
    assert store["b"].metadata == {"page": 3, "tags": ["x"]}
    store.rename("b", "c")
    store.rename("c", "C")  # the same key
    assert [each.name for each in store] == ["C", "a"]
    assert store["C"].text() == text_of(40)
    with pytest.raises(InputError, match="already"):
        store.rename("C", "a")
    store.delete("C")
    assert [each.name for each in store] == ["a"]
    for call in (store.open, store.delete):
        with pytest.raises(InputError, match="has no 'C' but 1 others"):
            call("C")


def test_an_empty_context_says_so(store: ContextStore, embedder: ExtensibleEmbedder) -> None:
    stored = store.add("log", "", embedder)
    assert stored.text() == ""
    assert stored.num_rows == len(stored.row_spans()) == len(stored.token_ids()) == 0
    with pytest.raises(InputError, match="'log' is empty; append some"):
        stored.context()


def test_other_makers_are_refused(
    store: ContextStore, embedder: ExtensibleEmbedder, tiny_reader: Reader
) -> None:
    store.add("novel", text_of(40), embedder)
    other = make_embedder(tiny_reader, chunk_tokens=CHUNK)
    with torch.no_grad():
        other.projection.weight.add_(1.0)
    advice = f"another embedder .* `extensible store reembed {store.place.name} novel`"
    with pytest.raises(MismatchError, match=advice):
        store.append("novel", "x", other)
    assert store["novel"].text() == text_of(40)


@pytest.mark.parametrize("k", [1, 0, 33, 2.5, True])
def test_k_that_cannot_be_kept(store: ContextStore, embedder: ExtensibleEmbedder, k: int) -> None:
    with pytest.raises(InputError, match="from 2 to a chunk of 32 tokens"):
        store.add("novel", "text", embedder, k=k)


def test_arguments_that_cannot_be_kept(store: ContextStore, embedder: ExtensibleEmbedder) -> None:
    with pytest.raises(InputError, match="kept as one of bfloat16"):
        store.add("novel", "text", embedder, row_type="int4")
    for value in (float("nan"), {1, 2}, object()):
        with pytest.raises(InputError, match="what JSON can hold"):
            store.add("novel", "text", embedder, metadata={"x": value})
    with pytest.raises(InputError, match="half of"):
        store.add("novel", "a\ud800", embedder)
    store.add("novel", "text", embedder)
    with pytest.raises(InputError, match="has 'novel' already"):
        store.add("Novel", "text", embedder)
    with pytest.raises(InputError, match="would be 'novel'"):
        store.open("NOVEL")
    with pytest.raises(InputError, match="it is empty; give some"):
        store.append("novel", "", embedder)


def test_a_failing_change_leaves_the_store_as_it_was(
    store: ContextStore, embedder: ExtensibleEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add("novel", text_of(100), embedder)
    before = tree(store)
    monkeypatch.setattr(files_module.os, "replace", broken_after(1))
    for change in (
        lambda: store.append("novel", text_of(90), embedder),
        lambda: store.add("other", text_of(90), embedder, k=8),
    ):
        monkeypatch.setattr(files_module.os, "replace", broken_after(1))
        with pytest.raises(StorageError, match="free some space"):
            change()
        assert tree(store) == before


def broken_after(times: int) -> object:
    real, calls = files_module.os.replace, iter(range(times))

    def replace(*paths: object) -> None:
        if next(calls, None) is None:
            raise OSError(28, "No space left on device")
        real(*paths)

    return replace


def tree(store: ContextStore) -> list[str]:
    root = Path(store.place.name)
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_a_clock_that_goes_back(
    store: ContextStore, embedder: ExtensibleEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = store.add("novel", text_of(40), embedder).manifest
    monkeypatch.setattr("time.time", lambda: 12.0)
    second = store.append("novel", "x", embedder).manifest
    assert second.changed >= first.changed >= first.created
    assert second.created == first.created


def test_a_store_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file; give another"):
        ContextStore(tmp_path / "file")
    with pytest.raises(InputError, match="neither"):
        ContextStore("nonsense://place")


def test_a_missing_file_is_named(store: ContextStore, embedder: ExtensibleEmbedder) -> None:
    stored = store.add("novel", text_of(40), embedder)
    (store.place.folder / stored.folder / stored.manifest.segments[0].rows_file).unlink()
    with pytest.raises(CheckpointError, match="'novel' has the file .* is missing; .* repair"):
        store.open("novel")


def test_what_was_opened_stays_as_it_was(store: ContextStore, embedder: ExtensibleEmbedder) -> None:
    text = text_of(70)
    opened = store.add("novel", text, embedder)
    listed = next(iter(store))
    store.append("novel", text_of(50), embedder)
    assert opened.text() == text
    assert_same(opened.context(8), fresh(embedder, text, 8))
    with pytest.raises(CheckpointError, match="is missing; open it again if it was changed"):
        listed.context()
    store.delete("novel")
    assert opened.text() == text


def test_a_file_removed_while_it_is_opened_is_missing(
    store: ContextStore, embedder: ExtensibleEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another process that appends; the library opens a file by name twice."""
    store.add("novel", text_of(70), embedder)
    other, real = ContextStore(store.place.name), torch.UntypedStorage.from_file

    def late(*args: object, **more: object) -> torch.UntypedStorage:
        monkeypatch.setattr(torch.UntypedStorage, "from_file", real)
        other.append("novel", text_of(50), embedder)
        return real(*args, **more)

    monkeypatch.setattr(torch.UntypedStorage, "from_file", late)
    assert store["novel"].text() == text_of(70) + text_of(50)
