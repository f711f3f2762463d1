"""Language modelling: the loss of the tokens that follow a context, read in three ways.

In: an embedder with its reader, and parquet files of whole documents. Out: one record for every
domain, method, scale factor and context length. A target is the tokens right after a context:

    none          [head]                              [target]
    raw           [head][context tokens, raw]         [target]
    extensible    [head][rows of the context at k]    [target]

    recovery = (loss none - loss of the method) / (loss none - loss raw)

on mean losses of the same targets: 1 is as good as raw text at 1/k of its rows, 0 is useless, a
negative number is harmful, and there is none where raw text itself does not help. It knows nothing
of training and of questions.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..context import Context
from ..downsampling import check_scale_factor, down_sampling, num_rows
from ..embedder import ExtensibleEmbedder
from ..errors import InputError
from ..prompt import Prompt, language_head
from ..reader import Reader
from .records import MEAN, LmRecord

METHODS = ("none", "raw", "extensible")

Progress = Callable[[int, int], None]
"""Called with (targets done, targets in all)."""

_RESAMPLES = 1000
_LEAST_DEFINED = 0.95
"""Share of resamples in which raw context must help for recovery to have an interval."""
_GENEROUS_CHARS_PER_TOKEN = 8
_USUAL_CHARS_PER_TOKEN = 4


@dataclass(frozen=True)
class _Reading:
    """One way to read what stands before a target."""

    method: str
    k: int
    context_tokens: int


_NONE = _Reading("none", 0, 0)
_Losses = dict[_Reading, NDArray[np.float64]]
"""For every reading, the loss of each target (T,), or resampled means (resamples,)."""


def evaluate_lm(
    embedder: ExtensibleEmbedder,
    data: Sequence[Path],
    *,
    methods: Sequence[str] = METHODS,
    scale_factors: Sequence[int] = (4, 16),
    context_tokens: Sequence[int] = (1024,),
    target_tokens: int = 256,
    num_targets: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[LmRecord]:
    """Loss, perplexity and recovery on the same targets for every method.

    Args:
        embedder: with the reader that it is for.
        data: parquet files with a column `text`, and `domain` if they have several; a file
            without it is one domain, named after the file.
        methods: some of none, raw and extensible. None and raw are measured whenever recovery
            needs them; this says which are reported.
        scale_factors: tokens per row, for extensible.
        context_tokens: lengths of context.
        target_tokens: tokens of a target.
        num_targets: targets for each domain, spread over its documents.
        seed: decides documents, places and resamples.
        progress: called after every target.

    Returns:
        Records by domain; with several domains, their mean comes last.

    Raises:
        InputError: an argument or a file is not usable, or no document is long enough.
    """
    readings = _readings(embedder.reader, methods, scale_factors, context_tokens, target_tokens)
    lengths = (max(context_tokens), target_tokens)
    domains = {
        domain: _draw_targets(embedder.reader, domain, texts, sum(lengths), num_targets, seed)
        for domain, texts in read_domains(data).items()
    }
    losses: dict[str, _Losses] = {}
    with _evaluation_mode(embedder):
        for number, (domain, targets) in enumerate(domains.items()):
            each = []
            for index, ids in enumerate(targets, start=1):
                each.append(_target_losses(embedder, readings, ids, lengths[0]))
                if progress is not None:
                    progress(number * num_targets + index, len(domains) * num_targets)
            losses[domain] = {r: np.array([loss[r] for loss in each]) for r in readings}
    reported = [reading for reading in readings if reading.method in methods]
    return _score(losses, reported, seed)


def _readings(
    reader: Reader,
    methods: Sequence[str],
    scale_factors: Sequence[int],
    context_tokens: Sequence[int],
    target_tokens: int,
) -> list[_Reading]:
    """All that must be measured, after a check that it can be."""
    unknown = [method for method in methods if method not in METHODS]
    if unknown or not methods:
        found = repr(unknown[0]) if unknown else "none is given"
        raise InputError(f"Methods are some of {', '.join(METHODS)}, but {found}; choose of these.")
    for name, values in (("context_tokens", context_tokens), ("target_tokens", [target_tokens])):
        if not values or min(values) < 1:
            raise InputError(f"{name} is 1 or more, but it is {values}; give whole numbers.")
    if "extensible" in methods and not scale_factors:
        raise InputError("Method 'extensible' needs scale factors, but none is given; give some.")
    readings = [_NONE]
    for length in sorted(set(context_tokens)):
        if "raw" in methods or _fits(reader, length, target_tokens):
            readings.append(_Reading("raw", 1, length))
        if "extensible" in methods:
            ks = sorted({check_scale_factor(k) for k in scale_factors})
            readings += [_Reading("extensible", k, length) for k in ks]
    for reading in readings:
        _check_window(reader, reading, target_tokens)
    return readings


def _fits(reader: Reader, rows: int, target_tokens: int) -> bool:
    return len(language_head(reader)) + rows + target_tokens <= reader.window


def _check_window(reader: Reader, reading: _Reading, target_tokens: int) -> None:
    rows = num_rows(reading.context_tokens, max(reading.k, 1))
    if not _fits(reader, rows, target_tokens):
        raise InputError(
            f"Head, context and target must fit a window of {reader.window} rows, but "
            f"{reading.context_tokens} context tokens of method {reading.method!r} at k="
            f"{reading.k} and {target_tokens} target tokens do not; give less context or a larger "
            "k, or leave the method out."
        )


def read_domains(data: Sequence[Path]) -> dict[str, list[str]]:
    """Documents of parquet files by domain.

    Raises:
        InputError: a file is missing, not parquet, or has no column `text`.
    """
    domains: dict[str, list[str]] = {}
    for path in data:
        for domain, text in _documents(Path(path)):
            domains.setdefault(domain, []).append(text)
    if not domains:
        raise InputError("An evaluation needs documents, but there are none; give files with text.")
    return domains


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
        yield str(label or path.stem), str(text or "")


def _draw_targets(
    reader: Reader, domain: str, texts: Sequence[str], span: int, num_targets: int, seed: int
) -> list[Tensor]:
    """Token ids (span,) of each target with its longest context; every document in turn."""
    if num_targets < 1:
        raise InputError(f"num_targets is 1 or more, but it is {num_targets}; give at least 1.")
    rng = np.random.default_rng((seed, zlib.crc32(domain.encode())))
    waiting = [texts[number] for number in rng.permutation(len(texts))]
    targets: list[Tensor] = []
    while waiting and len(targets) < num_targets:
        text = waiting.pop(0)
        ids = _draw_span(reader, text, span, float(rng.random()))
        if ids is not None:
            targets.append(ids)
            waiting.append(text)
    if not targets:
        raise InputError(
            f"A document holds the longest context and a target, {span} tokens, but no document of "
            f"{domain!r} is so long; give longer documents or less context."
        )
    return targets


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


@contextmanager
def _evaluation_mode(embedder: ExtensibleEmbedder) -> Iterator[None]:
    was_training = embedder.training
    embedder.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        embedder.train(was_training)


def _target_losses(
    embedder: ExtensibleEmbedder, readings: Sequence[_Reading], ids: Tensor, longest: int
) -> dict[_Reading, float]:
    """Mean loss of the target `ids[longest:]` for every reading."""
    reader = embedder.reader
    made: dict[int, dict[int, Context]] = {}
    losses: dict[_Reading, float] = {}
    for reading in readings:
        context = ids[longest - reading.context_tokens : longest]
        parts: list[Tensor | Context] = [language_head(reader)]
        if reading.method == "raw":
            parts.append(context)
        elif reading.method == "extensible":
            done = made.setdefault(reading.context_tokens, {})
            parts.append(_rows_at(embedder, context, reading.k, done))
        embeds = Prompt(parts=tuple(parts)).embeds(reader, reading.k)
        losses[reading] = float(reader.nll(embeds, ids[longest:]).mean())
    return losses


def _rows_at(
    embedder: ExtensibleEmbedder, token_ids: Tensor, k: int, made: dict[int, Context]
) -> Context:
    """The context at k: from one made at a divisor if there is one, else made now and kept."""
    nests = down_sampling(embedder.config.down_sampling).nests
    finer = next((d for d in made if d >= 2 and k % d == 0), None) if nests else None
    if finer is not None:
        return made[finer].at(k)
    made[k] = embedder.compress(token_ids, k=k)
    return made[k]


def _score(
    losses: Mapping[str, _Losses], reported: Sequence[_Reading], seed: int
) -> list[LmRecord]:
    """Records of every domain and of their mean, from the losses of targets."""
    means: list[_Losses] = []
    samples: list[_Losses] = []
    records: list[LmRecord] = []
    for number, each in enumerate(losses.values()):
        size = len(each[_NONE])
        picks = np.random.default_rng((seed, number)).integers(size, size=(_RESAMPLES, size))
        means.append({reading: loss.mean(keepdims=True) for reading, loss in each.items()})
        samples.append({reading: loss[picks].mean(1) for reading, loss in each.items()})
    groups = [(domain, [number]) for number, domain in enumerate(losses)]
    if len(losses) > 1:
        groups.append((MEAN, list(range(len(losses)))))
    for domain, members in groups:
        for reading in reported:
            records.append(
                _record(
                    domain,
                    reading,
                    [means[m] for m in members],
                    [samples[m] for m in members],
                    np.concatenate([list(losses.values())[m][reading] for m in members]),
                )
            )
    return records


def _record(
    domain: str,
    reading: _Reading,
    means: Sequence[_Losses],
    samples: Sequence[_Losses],
    target_losses: NDArray[np.float64],
) -> LmRecord:
    """One record from the means and resampled means of one or more domains."""
    loss = float(np.mean([mean[reading] for mean in means]))
    low, high = np.percentile(np.mean([sample[reading] for sample in samples], axis=0), [2.5, 97.5])
    recovery = _mean_recovery(means, reading)
    resampled = _mean_recovery(samples, reading)
    defined = resampled[np.isfinite(resampled)]
    enough = len(defined) >= _LEAST_DEFINED * len(resampled)
    bounds = np.percentile(defined, [2.5, 97.5]) if enough else [np.nan, np.nan]
    return LmRecord(
        domain=domain,
        method=reading.method,
        k=reading.k,
        context_tokens=reading.context_tokens,
        num_targets=len(target_losses),
        loss_nats=loss,
        loss_low=float(low),
        loss_high=float(high),
        perplexity=float(np.exp(loss)),
        recovery=_finite(recovery[0]),
        recovery_low=_finite(bounds[0]),
        recovery_high=_finite(bounds[1]),
        target_loss_nats=target_losses.tolist(),
    )


def _mean_recovery(losses: Sequence[_Losses], reading: _Reading) -> NDArray[np.float64]:
    """Recovery, averaged over domains; not a number where there is none."""
    return np.asarray(np.mean([_recovery(each, reading) for each in losses], axis=0))


def _recovery(losses: _Losses, reading: _Reading) -> NDArray[np.float64]:
    if reading == _NONE:
        return np.zeros_like(losses[_NONE])
    raw = losses.get(_Reading("raw", 1, reading.context_tokens))
    if raw is None:
        return np.full_like(losses[_NONE], np.nan)
    gain = losses[_NONE] - raw
    return (losses[_NONE] - losses[reading]) / np.where(gain > 0, gain, np.nan)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
