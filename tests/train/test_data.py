"""Training text becomes instances that depend on seed and number alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from extensible_embedding import Reader
from extensible_embedding.errors import ConfigError, InputError
from extensible_embedding.train.data import (
    Instances,
    TokenFile,
    default_cache,
    read_texts,
    tokenize_file,
)
from extensible_embedding.train.questions import collate

DOCUMENTS = ["one " * 30, "two two " * 40, "short", "three. " * 50]
SHAPES: dict[str, Any] = {
    "num_instances": 40,
    "instance_tokens": [64, 96],
    "chunk_tokens": [8, 16, 32],
    "scale_factors": [2, 4, 16],
}


def parquet(folder: Path, texts: list[str | None]) -> Path:
    path = folder / "data.parquet"
    pq.write_table(pa.table({"text": texts, "other": list(range(len(texts)))}), path)
    return path


@pytest.fixture
def tokens(tiny_reader: Reader, tmp_path: Path) -> TokenFile:
    return tokenize_file(parquet(tmp_path, list(DOCUMENTS)), tiny_reader, tmp_path / "c", None)


def test_every_format_gives_the_same_documents(tmp_path: Path) -> None:
    lines = tmp_path / "data.jsonl"
    texts = [*DOCUMENTS, None, ""]
    lines.write_text("\n".join(json.dumps({"text": text}) for text in texts) + "\n\n")
    plain = tmp_path / "data.txt"
    plain.write_text(DOCUMENTS[0])
    assert list(read_texts(parquet(tmp_path, [*DOCUMENTS, None, ""]))) == DOCUMENTS
    assert list(read_texts(lines)) == DOCUMENTS
    assert list(read_texts(plain)) == DOCUMENTS[:1]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b'{"words": "no text"}\n'),
        ("a.jsonl", b"not json\n"),
        ("a.jsonl", b'["a list"]\n'),
        ("a.parquet", b"not parquet"),
        ("a.txt", b"\xff\xfe\x80"),
    ],
)
def test_what_has_no_text_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="with a field `text`"):
        list(read_texts(tmp_path / name))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"not json", "line 3: Expecting value"),
        (b'{"words": "no text"}', "line 3 is no object with a field `text`"),
        (b'{"text": 7}', "line 3: `text` is of type int, not text"),
        (b'{"text": "\xff"}', "line 3: 'utf-8' codec"),
        (b"[" * 100_000, "line 3: "),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: bytes, words: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n\n' + line + b"\n")
    with pytest.raises(InputError, match=words):
        list(read_texts(tmp_path / "a.jsonl"))


def test_a_column_of_numbers_is_no_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [7, 8]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="row 0: `text` is of type int"):
        list(read_texts(tmp_path / "a.parquet"))


def test_a_parquet_file_without_the_field_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"words": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="with a field `text`"):
        list(read_texts(tmp_path / "a.parquet"))


def test_a_missing_file_is_refused(tiny_reader: Reader, tmp_path: Path) -> None:
    for use in (
        lambda: list(read_texts(tmp_path / "none.txt")),
        lambda: tokenize_file(tmp_path / "none.txt", tiny_reader, tmp_path, None),
    ):
        with pytest.raises(InputError, match="are files, but"):
            use()


def test_tokens_are_those_of_the_documents(tiny_reader: Reader, tokens: TokenFile) -> None:
    parts = [
        tokens.token_ids[start:end]
        for start, end in zip(tokens.starts[:-1], tokens.starts[1:], strict=True)
    ]
    assert [tiny_reader.decode(part.tolist()) for part in parts] == DOCUMENTS


def test_the_second_time_comes_from_the_cache(tiny_reader: Reader, tmp_path: Path) -> None:
    path, seen = parquet(tmp_path, list(DOCUMENTS)), []
    for _ in range(2):
        tokenize_file(path, tiny_reader, tmp_path / "c", lambda name, n: seen.append((name, n)))
    assert seen == [("data.parquet", n) for n in (1, 2, 3, 4)]
    path.unlink()
    parquet(tmp_path, ["other text"])
    other = tokenize_file(path, tiny_reader, tmp_path / "c", None)
    assert tiny_reader.decode(other.token_ids.tolist()) == "other text"


def test_a_broken_read_leaves_no_cache(tiny_reader: Reader, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\nbad\n')
    with pytest.raises(InputError):
        tokenize_file(path, tiny_reader, tmp_path / "c", None)
    assert list((tmp_path / "c").iterdir()) == []


def test_an_empty_file_is_refused(tiny_reader: Reader, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    for _ in range(2):
        with pytest.raises(InputError, match="has none; check `data`"):
            tokenize_file(tmp_path / "a.txt", tiny_reader, tmp_path / "c", None)


def test_an_instance_lies_inside_one_document(tokens: TokenFile) -> None:
    instances = Instances([tokens], **SHAPES)
    whole = tokens.token_ids.tolist()
    documents = [
        whole[start:end] for start, end in zip(tokens.starts[:-1], tokens.starts[1:], strict=True)
    ]
    for number in range(len(instances)):
        shape, ids = instances.shape(number), instances[number].token_ids
        assert ids.shape == (shape.num_chunks, shape.chunk_tokens)
        assert shape.num_chunks >= 2
        assert shape.chunk_tokens in SHAPES["chunk_tokens"]
        assert ids.numel() in SHAPES["instance_tokens"]
        assert instances[number].k == shape.k <= shape.chunk_tokens
        flat = ids.flatten().tolist()
        assert any(_within(flat, document) for document in documents)


def _within(part: list[int], whole: list[int]) -> bool:
    return any(whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1))


def test_instance_i_depends_on_seed_and_i_alone(tokens: TokenFile) -> None:
    one, two = (Instances([tokens], **SHAPES, seed=5) for _ in range(2))
    _ = [one[number] for number in range(7)]
    assert torch.equal(one[7].token_ids, two[7].token_ids)
    assert one.shape(7) == two.shape(7)
    other = Instances([tokens], **SHAPES, seed=6)
    assert any(one.shape(number) != other.shape(number) for number in range(40))


def test_a_batch_shares_its_shape(tokens: TokenFile) -> None:
    instances = Instances([tokens], **SHAPES, batch_size=4)
    for first in range(0, 40, 4):
        batch = collate([instances[first + i] for i in range(4)])
        shape = instances.shape(first)
        assert batch["token_ids"].shape == (4, shape.num_chunks, shape.chunk_tokens)  # type: ignore[attr-defined]
        assert batch["k"] == shape.k
    assert len({instances.shape(number) for number in range(0, 40, 4)}) > 1


def test_every_draw_comes_up(tokens: TokenFile) -> None:
    instances = Instances([tokens], **{**SHAPES, "num_instances": 300})
    shapes = [instances.shape(number) for number in range(300)]
    assert {shape.k for shape in shapes} >= {2, 4, 16}
    assert {shape.chunk_tokens for shape in shapes} == {8, 16, 32}


def test_shares_of_files_are_honoured(tiny_reader: Reader, tmp_path: Path) -> None:
    files = []
    for letter in "ab":
        (tmp_path / f"{letter}.txt").write_text(letter * 500)
        files.append(tokenize_file(tmp_path / f"{letter}.txt", tiny_reader, tmp_path / "c", None))
    sizes = {**SHAPES, "num_instances": 400}
    first = tiny_reader.encode("a")[0]

    def share(weights: list[float] | None) -> float:
        instances = Instances(files, **sizes, weights=weights)
        return float(np.mean([instances[i].token_ids[0, 0] == first for i in range(400)]))

    assert share([1.0, 0.0]) == 1.0
    assert share([3.0, 1.0]) == pytest.approx(0.75, abs=0.08)
    assert share(None) == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("weights", [[1.0, 1.0], [-1.0], [0.0]])
def test_wrong_shares_are_refused(tokens: TokenFile, weights: list[float]) -> None:
    with pytest.raises(ConfigError, match="one share of 0 or more for each of the 1 files"):
        Instances([tokens], **SHAPES, weights=weights)


def test_documents_that_are_too_short_are_refused(tokens: TokenFile) -> None:
    with pytest.raises(ConfigError, match="no document of 'data' has 5000 tokens"):
        Instances([tokens], **{**SHAPES, "instance_tokens": [5000]})


def test_the_default_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "extensible-embedding" / "tokens"
