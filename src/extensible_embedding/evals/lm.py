"""Language modelling: the loss of the tokens that follow a context, read in several ways.

In: an embedder with its reader, and parquet files of whole documents. Out: one record for every
domain and setting. A target is the tokens right after a context. Two protocols:

    recovery        the whole context, in the reader's own window: none, raw, rows at k
    equal window    head, context and target in W rows, whatever the context's length: the most
                    recent tokens, rows of everything older with recent tokens, ...

It knows nothing of training and of questions.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..downsampling import check_scale_factor, num_rows
from ..embedder import ExtensibleEmbedder
from ..errors import InputError
from ..prompt import language_head
from ..reader import Reader
from .journal import Journal
from .kinship import belongs_to_reader
from .methods import (
    WITH_K,
    CannotRunError,
    Passage,
    RowCache,
    check_methods,
    check_windows,
    make_method,
)
from .records import LmRecord
from .scoring import NONE, Losses, Setting, raw_of, score
from .targets import data_identity, draw_joined_targets, draw_targets, read_domains

DEFAULT_METHODS = ("none", "raw", "extensible")

Progress = Callable[[int, int], None]
"""Called with (targets done, targets in all)."""


@dataclass(frozen=True, kw_only=True)
class Yardstick:
    """What several embedders, or readers, are measured with alike; see `evaluate_lm`."""

    data: Sequence[Path]
    scale_factors: Sequence[int] = (4, 16)
    context_tokens: int = 1024
    target_tokens: int = 256
    num_targets: int = 16
    seed: int = 0


def evaluate_lm(
    embedder: ExtensibleEmbedder,
    data: Sequence[Path],
    *,
    methods: Sequence[str] = DEFAULT_METHODS,
    scale_factors: Sequence[int] = (4, 16),
    context_tokens: Sequence[int] = (1024,),
    windows: Sequence[int] = (),
    target_tokens: int = 256,
    num_targets: int = 64,
    seed: int = 0,
    concatenate: bool = False,
    journal: Path | None = None,
    budget_minutes: float | None = None,
    progress: Progress | None = None,
) -> list[LmRecord]:
    """Loss, perplexity, recovery and equal-window comparison on the same targets for every method.

    Args:
        embedder: with the reader that it is for.
        data: parquet files with a column `text`, and `domain` if they have several; a file
            without it is one domain, named after the file.
        methods: names of `METHODS`. What recovery and the comparison need is measured anyway; this
            says what is reported.
        scale_factors: tokens per row, for methods that have them; with windows, empty means that
            the method chooses.
        context_tokens: lengths of context.
        windows: rows in all, for the equal-window protocol; empty for the recovery protocol.
        target_tokens: tokens of a target.
        num_targets: targets for each domain, spread over its documents.
        seed: decides documents, places and resamples.
        concatenate: join the documents of a domain to one text, for contexts longer than any.
        journal: file that keeps every loss; an evaluation that was stopped goes on from it.
        budget_minutes: time after which no more targets are begun; the records tell how many were.
        progress: called after every target.

    Returns:
        Records by domain; with several domains, their mean comes last.

    Raises:
        InputError: an argument or a file is not usable, or no document is long enough.
    """
    methods = list(dict.fromkeys(methods))
    settings = _settings(
        embedder.reader, methods, scale_factors, context_tokens, windows, target_tokens
    )
    longest, reader = max(context_tokens), embedder.reader
    draw = draw_joined_targets if concatenate else draw_targets
    domains = {
        domain: draw(reader, domain, texts, longest + target_tokens, num_targets, seed)
        for domain, texts in read_domains(data).items()
    }
    kept = _journal(embedder, journal, data, longest, seed, concatenate)
    run = _Run(embedder, settings, target_tokens, kept)
    deadline = None if budget_minutes is None else time.monotonic() + 60 * budget_minutes
    with _evaluation_mode(embedder):
        run.measure(domains, deadline, progress)
    reported = [setting for setting in settings if setting.method in methods]
    usual_k = {setting: statistics.mode(each) for setting, each in run.used_k.items()}
    records = score(run.losses(domains), reported, seed, used_k=usual_k, notes=run.notes)
    return [dataclasses.replace(record, concatenated=concatenate) for record in records]


def _journal(
    embedder: ExtensibleEmbedder,
    path: Path | None,
    data: Sequence[Path],
    longest: int,
    seed: int,
    concatenate: bool,
) -> Journal:
    belongs_to = {
        "embedder": embedder.fingerprint,
        **belongs_to_reader(embedder.reader),
        "data": data_identity(data),
        "longest_context": longest,
        "concatenate": concatenate or None,  # as in journals from before there was a choice
        "seed": seed,
    }
    return Journal(path, belongs_to)


class _Run:
    """Measures every setting on every target, domain by domain in turn."""

    def __init__(
        self,
        embedder: ExtensibleEmbedder,
        settings: Sequence[Setting],
        target_tokens: int,
        journal: Journal,
    ) -> None:
        self.settings, self.target_tokens, self.journal = settings, target_tokens, journal
        self.reader, cache = embedder.reader, RowCache(embedder)
        self.methods = {
            each: make_method(
                each.method, embedder, k=each.k or None, all_rows=each.window is None, cache=cache
            )
            for each in settings
        }
        self.notes: dict[Setting, str] = {}
        self.used_k: dict[Setting, list[int]] = {}
        """Of every target that was measured."""

    def measure(
        self,
        domains: Mapping[str, Sequence[Tensor]],
        deadline: float | None,
        progress: Progress | None,
    ) -> None:
        """Fills the journal; at the deadline it stops after a round over all domains."""
        total, done = sum(len(targets) for targets in domains.values()), 0
        for number in range(max(len(targets) for targets in domains.values())):
            if number and deadline is not None and time.monotonic() > deadline:
                return
            for domain, targets in domains.items():
                if number < len(targets):
                    self._measure_target(domain, number, targets[number])
                    done += 1
                    if progress is not None:
                        progress(done, total)

    def losses(self, domains: Mapping[str, Sequence[Tensor]]) -> dict[str, Losses]:
        """Loss of each target that all settings that could run were measured on."""
        return {domain: self._paired(domain, len(targets)) for domain, targets in domains.items()}

    def _measure_target(self, domain: str, number: int, ids: Tensor) -> None:
        for setting in self.settings:
            key = self._key(domain, number, setting)
            if key not in self.journal and setting not in self.notes:
                try:
                    self.journal.put(key, self._loss(setting, ids))
                except CannotRunError as error:
                    self.notes[setting] = str(error)
            if key in self.journal:
                self.used_k.setdefault(setting, []).append(self.journal[key]["k"])

    def _loss(self, setting: Setting, ids: Tensor) -> dict[str, float]:
        """Mean loss of the target at the end of `ids`, and the k that was used."""
        end = len(ids) - self.target_tokens
        passage = Passage(
            head=language_head(self.reader),
            context=ids[end - setting.context_tokens : end],
            tail=ids[:0],
            num_next=self.target_tokens,
        )
        room = (setting.window or self.reader.window) - self.target_tokens
        reading = self.methods[setting].read(passage, room)
        chooses = setting.method in WITH_K and not setting.k
        used, nats = reading.k if chooses else setting.k, float(reading.nll(ids[end:]).mean())
        if not math.isfinite(nats):
            raise CannotRunError(f"the loss of a target is {nats}")
        return {"nats": nats, "k": used}

    def _paired(self, domain: str, num_targets: int) -> Losses:
        """Of some settings a journal may hold more, from a run with others or without a budget."""
        ran = [setting for setting in self.settings if setting not in self.notes]
        shared = [
            number
            for number in range(num_targets)
            if all(self._key(domain, number, setting) in self.journal for setting in ran)
        ]
        return {
            setting: np.array(
                [self.journal[self._key(domain, number, setting)]["nats"] for number in shared]
            )
            for setting in ran
        }

    def _key(self, domain: str, number: int, setting: Setting) -> tuple[str | int, ...]:
        window, method = setting.window or 0, self.methods[setting].label()
        return (
            domain, number, method, setting.k, setting.context_tokens, window,
            self.target_tokens,
        )  # fmt: skip


def _settings(
    reader: Reader,
    methods: Sequence[str],
    scale_factors: Sequence[int],
    context_tokens: Sequence[int],
    windows: Sequence[int],
    target_tokens: int,
) -> list[Setting]:
    """All that must be measured, after a check that it can be."""
    check_methods(methods, recovery=not windows)
    for name, values in (
        ("context_tokens", context_tokens),
        ("target_tokens", [target_tokens]),
        ("windows", windows or [1]),
    ):
        if not values or min(values) < 1:
            raise InputError(f"{name} is 1 or more, but it is {values}; give whole numbers.")
    check_windows(windows, reader.window)
    factors = sorted({check_scale_factor(k) for k in scale_factors})
    lengths = sorted(set(context_tokens))
    if windows:
        found_settings = _equal_window(methods, factors, lengths, sorted(set(windows)))
    else:
        found_settings = _recovery(reader, methods, factors, lengths, target_tokens)
    for setting in found_settings:
        _check_window(reader, setting, target_tokens)
    return found_settings


def _recovery(
    reader: Reader,
    methods: Sequence[str],
    factors: Sequence[int],
    lengths: Sequence[int],
    target_tokens: int,
) -> list[Setting]:
    asked = [method for method in methods if method in WITH_K]
    whole = ("none", "raw", *(name for name, method in WITH_K.items() if method.reads_all))
    if others := [method for method in methods if method not in whole]:
        raise InputError(
            f"Method {others[0]!r} reads what fits a window, so it needs one; give windows."
        )
    if asked and not factors:
        raise InputError(f"Method {asked[0]!r} needs scale factors, but none is given; give some.")
    settings = [NONE]
    for length in lengths:
        raw = raw_of(Setting("", 0, length))
        if "raw" in methods or _fits(reader, length, target_tokens, reader.window):
            settings.append(raw)
        settings += [Setting(method, k, length) for method in asked for k in factors]
    return settings


def _equal_window(
    methods: Sequence[str], factors: Sequence[int], lengths: Sequence[int], windows: Sequence[int]
) -> list[Setting]:
    settings = [NONE] if "none" in methods else []
    settings += [raw_of(Setting("", 0, length)) for length in lengths if "raw" in methods]
    for length in lengths:
        for window in windows:
            for method in dict.fromkeys(("truncate", *methods)):
                if method in WITH_K:
                    settings += [Setting(method, k, length, window) for k in factors or [0]]
                elif method not in ("none", "raw"):
                    settings.append(Setting(method, 1, length, window))
    return settings


def _fits(reader: Reader, rows: int, target_tokens: int, window: int) -> bool:
    return len(language_head(reader)) + rows + target_tokens <= min(window, reader.window)


def _check_window(reader: Reader, setting: Setting, target_tokens: int) -> None:
    window = setting.window or reader.window
    free = setting.window is not None
    rows = 1 if free else num_rows(setting.context_tokens, max(setting.k, 1))
    if not _fits(reader, rows, target_tokens, window):
        raise InputError(
            f"Head, context and target must fit a window of {min(window, reader.window)} rows, but "
            f"{setting.context_tokens} context tokens of method {setting.method!r} at k="
            f"{setting.k} and {target_tokens} target tokens do not; give less context or a larger "
            "k, or leave the method out."
        )


@contextmanager
def _evaluation_mode(embedder: ExtensibleEmbedder) -> Iterator[None]:
    was_training = embedder.training
    embedder.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        embedder.train(was_training)
