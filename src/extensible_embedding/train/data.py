"""Training text -> token cache -> instances.

In: parquet, JSONL or text files. Out: instances of N chunks of L tokens with a scale factor k,
each from inside one document. Text is read as a stream, tokenised once and cached as one flat file
of token ids that is memory-mapped; instance i depends on the seed and i alone, so that a resumed
run sees what an uninterrupted one would. Knows nothing of models.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import ConfigError, InputError
from ..folders import whole_folder
from ..reader import Reader

Report = Callable[[str, int], None]
"""Called with (file name, documents tokenised so far)."""


@dataclass(frozen=True, kw_only=True)
class TokenFile:
    """Documents of one file as token ids, memory-mapped."""

    name: str
    token_ids: NDArray[np.uint32]
    """(n,) all documents, one after the other."""
    starts: NDArray[np.int64]
    """(documents + 1,) where each begins, and the end."""


def read_texts(path: Path) -> Iterator[str]:
    """Documents of a .parquet or .jsonl file (field `text`), or one text file, as a stream.

    Raises:
        InputError: the file is missing, or has no field `text`.
    """
    if not path.is_file():
        raise InputError(f"Training data are files, but {str(path)!r} is none; check `data`.")
    try:
        if path.suffix == ".parquet":
            yield from _parquet_texts(path)
        elif path.suffix in (".jsonl", ".json"):
            yield from _jsonl_texts(path)
        else:
            yield path.read_text(encoding="utf-8")
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise InputError(
            "Training data are parquet or JSONL with a field `text`, or UTF-8 text, but "
            f"{str(path)!r} cannot be read so ({error}); convert it first."
        ) from error


def _parquet_texts(path: Path) -> Iterator[str]:
    first = 0
    for batch in pq.ParquetFile(path).iter_batches(batch_size=8, columns=["text"]):
        for number, text in enumerate(batch.column("text").to_pylist(), start=first):
            yield from _text(text, f"row {number}")
        first += len(batch)


def _jsonl_texts(path: Path) -> Iterator[str]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield from _json_text(line, f"line {number}")


def _json_text(line: bytes, place: str) -> Iterator[str]:
    try:
        value = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: {error}") from None
    if not isinstance(value, dict) or "text" not in value:
        raise ValueError(f"{place} is no object with a field `text`")
    yield from _text(value["text"], place)


def _text(value: object, place: str) -> Iterator[str]:
    """The document, if there is one: null and empty texts are left out."""
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{place}: `text` is of type {type(value).__name__}, not text")
    if value:
        yield value


def tokenize_file(path: Path, reader: Reader, cache: Path, report: Report | None) -> TokenFile:
    """Token ids of a file, from the cache if the same file and tokenizer were seen before."""
    folder = cache / cache_key(path, reader)
    if not (folder / "starts.npy").is_file():
        with whole_folder(folder) as temporary:
            starts = [0]
            with (temporary / "tokens.bin").open("wb") as tokens:
                for text in read_texts(path):
                    ids = reader.encode(text).numpy().astype(np.uint32)
                    tokens.write(ids.tobytes())
                    starts.append(starts[-1] + len(ids))
                    if report is not None:
                        report(path.name, len(starts) - 1)
            np.save(temporary / "starts.npy", np.asarray(starts, dtype=np.int64))
    starts_array = np.load(folder / "starts.npy")
    if starts_array[-1] == 0:
        raise InputError(f"Training data hold text, but {str(path)!r} has none; check `data`.")
    ids_map = np.memmap(folder / "tokens.bin", dtype=np.uint32, mode="r")
    return TokenFile(name=path.stem, token_ids=ids_map, starts=starts_array)


def cache_key(path: Path, reader: Reader, purpose: str = "") -> str:
    """Name of the cache folder of a file: another file, tokenizer or purpose has another."""
    if not path.is_file():
        raise InputError(f"Training data are files, but {str(path)!r} is none; check `data`.")
    state = path.stat()
    of_file = f"{path.name} {state.st_size} {state.st_mtime_ns}"
    text = f"{of_file} {reader.tokenizer_fingerprint} {purpose}"
    return f"{path.stem}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


@dataclass(frozen=True, kw_only=True)
class Instance:
    """Token ids of one instance and its scale factor."""

    token_ids: Tensor
    """(N, L)."""
    k: int


@dataclass(frozen=True, kw_only=True)
class InstanceShape:
    """N, L and k of an instance."""

    num_chunks: int
    chunk_tokens: int
    k: int

    def num_predicted(self, one_stream: bool = False) -> int:
        """Tokens that the loss is a mean of: those of all chunks but the first, or of the last."""
        return (1 if one_stream else self.num_chunks - 1) * self.chunk_tokens


@dataclass(frozen=True, kw_only=True)
class FirstFactors:
    """Scale factors with which a run begins: small ones are learned first."""

    scale_factors: list[int]
    until: int
    """Number of the first instance that has the others."""


def factors_of(index: int, factors: list[int], first: FirstFactors | None) -> list[int]:
    """What the scale factor of number `index` is drawn from."""
    return first.scale_factors if first is not None and index < first.until else factors


class Instances(Dataset[Instance]):
    """Instances drawn at random: file, document, place, chunk length and scale factor.

    Instances whose numbers share `i // batch_size` share chunk length and scale factor, so that
    they stack.
    """

    def __init__(
        self,
        files: Sequence[TokenFile],
        *,
        num_instances: int,
        instance_tokens: Sequence[int],
        chunk_tokens: Sequence[int],
        scale_factors: Sequence[int],
        batch_size: int = 1,
        weights: Sequence[float] | None = None,
        seed: int = 0,
        first: FirstFactors | None = None,
    ) -> None:
        self.first = first
        self.files = [_eligible(file, max(instance_tokens)) for file in files]
        self.num_instances, self.batch_size, self.seed = num_instances, batch_size, seed
        self.instance_tokens, self.chunk_tokens = list(instance_tokens), list(chunk_tokens)
        self.scale_factors = list(scale_factors)
        shares = np.asarray(weights or [1.0] * len(files), dtype=np.float64)
        if len(shares) != len(files) or shares.min() < 0 or shares.sum() <= 0:
            raise ConfigError(
                f"`data_weights` has one share of 0 or more for each of the {len(files)} files of "
                f"`data`, but it is {list(shares)}; give as many."
            )
        self.shares = shares / shares.sum()

    def __len__(self) -> int:
        return self.num_instances

    def shape(self, index: int) -> InstanceShape:
        """Chunks and scale factor of instance `index`; its text is not read."""
        draw = np.random.default_rng((self.seed, 1, index // self.batch_size))
        length, chunk = int(draw.choice(self.instance_tokens)), int(draw.choice(self.chunk_tokens))
        k = int(draw.choice(factors_of(index, self.scale_factors, self.first)))
        num_chunks = max(2, length // chunk)
        chunk = min(chunk, length // num_chunks)
        return InstanceShape(num_chunks=num_chunks, chunk_tokens=chunk, k=min(k, chunk))

    def __getitem__(self, index: int) -> Instance:
        return self.instance(index, self.shape(index))

    def instance(self, index: int, shape: InstanceShape) -> Instance:
        """Instance `index` with a shape that may be smaller than its own."""
        place = np.random.default_rng((self.seed, 2, index))
        file, documents = self.files[int(place.choice(len(self.files), p=self.shares))]
        ids = _draw(file, documents, shape.num_chunks * shape.chunk_tokens, place)
        return Instance(token_ids=ids.view(shape.num_chunks, shape.chunk_tokens), k=shape.k)


def _eligible(file: TokenFile, least: int) -> tuple[TokenFile, NDArray[np.int64]]:
    """The file and the numbers of its documents that hold an instance."""
    documents = np.flatnonzero(np.diff(file.starts) >= least)
    if not len(documents):
        raise ConfigError(
            f"An instance lies inside one document, but no document of {file.name!r} has {least} "
            "tokens; give longer documents or a smaller `instance_tokens`."
        )
    return file, documents


def _draw(
    file: TokenFile, documents: NDArray[np.int64], length: int, rng: np.random.Generator
) -> Tensor:
    """`length` token ids from a random place of a document, long documents more often."""
    rooms = np.diff(file.starts)[documents] - length + 1
    document = int(rng.choice(len(documents), p=rooms / rooms.sum()))
    start = int(file.starts[documents[document]]) + int(rng.integers(rooms[document]))
    return torch.from_numpy(file.token_ids[start : start + length].astype(np.int64))


def default_cache() -> Path:
    """Where token caches are kept unless the configuration names a folder."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "extensible-embedding" / "tokens"
