"""Documents -> targets: where a loss is measured, the same for every method.

In: parquet files of whole documents. Out: token ids of the longest context and the target after it,
drawn inside the documents of a domain, or over all of them joined to one text where a context shall
be longer than any; which ones depends on the seed and the domain's name alone. Knows nothing of
methods and scores.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from ..errors import InputError
from ..reader import Reader
from ..store.files import hash_file
from ..text import read_document
from .records import MEAN

_GENEROUS_CHARS_PER_TOKEN = 8
_USUAL_CHARS_PER_TOKEN = 4
_PIECE_CHARS = 1 << 20
_BETWEEN_DOCUMENTS = "\n\n"
_GOLDEN = (5**0.5 - 1) / 2


def data_identity(data: Sequence[Path]) -> list[tuple[str, str]]:
    """What tells texts apart, wherever they lie: name and SHA-256 of each file."""
    return [(Path(path).name, hash_file(Path(path))) for path in data]


def read_domains(data: Sequence[Path]) -> dict[str, list[str]]:
    """Documents of parquet files by domain.

    Raises:
        InputError: a file is missing, not parquet, has no column `text`, a domain has the name of
            the mean of all, or two files would be one domain for their names alone.
    """
    domains: dict[str, list[str]] = {}
    _check_names(data)
    for path in data:
        for domain, text in _documents(Path(path)):
            if domain == MEAN:
                raise InputError(
                    f"{MEAN!r} is the name of the average over domains, but {str(path)!r} has it "
                    "for a domain; rename the file or the domain."
                )
            domains.setdefault(domain, []).append(text)
    if not domains:
        raise InputError("An evaluation needs documents, but there are none; give files with text.")
    return domains


def _check_names(data: Sequence[Path]) -> None:
    named: dict[str, Path] = {}
    for path in map(Path, data):
        other = named.setdefault(path.stem, path)
        if other.resolve() != path.resolve():
            raise InputError(
                f"Texts are told apart by their files' names, but {str(other)!r} and {str(path)!r} "
                "share one; rename one of them."
            )


def _documents(path: Path) -> Iterator[tuple[str, str]]:
    """(domain, text) of every document of a file."""
    try:
        names = pq.read_schema(path).names
        table = pq.read_table(path, columns=[n for n in ("text", "domain") if n in names])
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"Evaluation data are parquet files, but {str(path)!r} cannot be read as one "
            f"({error}); check the path."
        ) from error
    if "text" not in names:
        raise InputError(
            f"Evaluation data have a column `text`, but {str(path)!r} has {', '.join(names)}; "
            "rename the column that holds the text."
        )
    labels = table["domain"].to_pylist() if "domain" in names else [None] * len(table)
    for label, text in zip(labels, table["text"].to_pylist(), strict=True):
        if text is not None and not isinstance(text, str):
            raise InputError(
                f"The column `text` holds texts, but that of {str(path)!r} holds values of type "
                f"{type(text).__name__}; make them text."
            )
        yield str(path.stem if label in (None, "") else label), text or ""


def read_tokens(reader: Reader, data: Sequence[Path], most: int) -> Tensor:
    """Token ids of texts, one after the other, `most` at most.

    Args:
        reader: its tokenizer.
        data: parquet files with a column `text`, or documents of any kind that `text` reads.
        most: more are not tokenised.

    Raises:
        InputError: a file cannot be read, or there is no text.
    """
    read: list[Tensor] = []
    for path in data:
        if Path(path).suffix == ".parquet":
            texts = [text for _, text in _documents(Path(path))]
        else:
            texts = [read_document(path).text]
        for text in texts:
            missing = most - sum(map(len, read))
            if missing > 0:
                read.append(reader.encode(text[: missing * _GENEROUS_CHARS_PER_TOKEN])[:missing])
    ids = torch.cat([torch.empty(0, dtype=torch.long), *read])
    reader.check_ids(ids)
    return ids


def draw_targets(
    reader: Reader, domain: str, texts: Sequence[str], span: int, num_targets: int, seed: int
) -> list[Tensor]:
    """Token ids (span,) of each target with its longest context; every document in turn.

    A document that is hardly longer gives the same ones again: it is left out from then on.
    """
    _check_count(num_targets)
    rng = _rng(domain, seed)
    waiting = [texts[number] for number in rng.permutation(len(texts))]
    targets: list[Tensor] = []
    while waiting and len(targets) < num_targets:
        text = waiting.pop(0)
        ids = _draw_span(reader, text, span, float(rng.random()))
        if ids is not None and not any(torch.equal(ids, each) for each in targets):
            targets.append(ids)
            waiting.append(text)
    if not targets:
        raise InputError(
            f"A document holds the longest context and a target, {span} tokens, but no document of "
            f"{domain!r} is so long; give longer documents or less context."
        )
    return targets


def draw_joined_targets(
    reader: Reader, domain: str, texts: Sequence[str], span: int, num_targets: int, seed: int
) -> list[Tensor]:
    """Token ids (span,) of each target with its longest context, from all documents as one text.

    The documents follow each other in the order of the files, a blank line between. Each place is
    a golden section of the text after the one before, so that any number of them is spread over
    all of it, and more targets begin with the same ones.
    """
    _check_count(num_targets)
    ids = joined_ids(reader, texts)
    if len(ids) < span:
        raise InputError(
            f"The documents of a domain hold the longest context and a target, {span} tokens, but "
            f"those of {domain!r} hold {len(ids)} together; give more text or less context."
        )
    first, last = float(_rng(domain, seed).random()), len(ids) - span
    places = [(first + number * _GOLDEN) % 1 for number in range(num_targets)]
    return [ids[start : start + span] for start in (round(place * last) for place in places)]


def joined_ids(reader: Reader, texts: Sequence[str]) -> Tensor:
    """Token ids (n,) of documents that follow each other; tokenised piece by piece, once."""
    between = reader.encode(_BETWEEN_DOCUMENTS)
    parts: list[Tensor] = []
    for text in filter(None, texts):
        parts += [between] if parts else []
        parts += map(reader.encode, _pieces(text))
    return torch.cat([*parts, between[:0]])


def _pieces(text: str) -> Iterator[str]:
    """A text in pieces that begin at a blank, so that no document is too long to tokenise."""
    start, blank = 0, re.compile(r"\s")
    while start < len(text):
        found = blank.search(text, start + _PIECE_CHARS)
        end = found.start() if found else len(text)
        yield text[start:end]
        start = end


def _check_count(num_targets: int) -> None:
    if num_targets < 1:
        raise InputError(f"num_targets is 1 or more, but it is {num_targets}; give at least 1.")


def _rng(domain: str, seed: int) -> np.random.Generator:
    return np.random.default_rng((seed, zlib.crc32(domain.encode())))


def _draw_span(reader: Reader, text: str, span: int, place: float) -> Tensor | None:
    """`span` token ids from a place in [0, 1) of a document; None if it is too short.

    Only a slice of the text is tokenised: whole books take seconds. Where too little follows the
    place, it moves towards the beginning.
    """
    latest = max(0, len(text) - span * _USUAL_CHARS_PER_TOKEN)
    while True:
        start = int(place * (latest + 1))
        ids = _ids_from(reader, text, start, span)
        if ids is not None or start == 0:
            return ids
        latest //= 2


def _ids_from(reader: Reader, text: str, start: int, span: int) -> Tensor | None:
    """The first `span` token ids after a place, from the next blank on."""
    blank = re.compile(r"\s").search(text, start, start + 200) if start else None
    start = blank.start() if blank else start
    num_chars = span * _GENEROUS_CHARS_PER_TOKEN
    while True:
        ids = reader.encode(text[start : start + num_chars])
        at_end = start + num_chars >= len(text)
        if len(ids) > span or at_end:  # the last token of a cut text may be a part of one
            return ids[:span] if len(ids) >= span else None
        num_chars *= 2
