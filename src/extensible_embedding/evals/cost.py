"""Cost: time to first token, speed, cache and peak memory of every method, beside raw reading.

In: an embedder with its reader, and a text. Out: one record for every setting. All settings of one
context length are timed one after the other, raw reading among them, and this block is repeated in
rounds, beginning with another setting each time; so a comparison is paired and a drift of the
machine hits all. Peak memory is measured once, in a process of its own (`memory`).
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..context import Context
from ..embedder import ExtensibleEmbedder
from ..prompt import language_head
from .cost_readings import CANNOT, StreamReading, reading_maker
from .cost_scoring import Measured, Models, score_cost
from .cost_settings import MODES, OFFLINE, CostSetting, check_settings, raw_of
from .flops import shape_of
from .journal import Journal
from .kinship import belongs_to_reader
from .memory import ModelSource, peak_memory, warm_up
from .methods import METHODS, CannotRunError, Reading, check_windows
from .records import CostRecord, hardware
from .stopwatch import measure

DEFAULT_METHODS = ("raw", "extensible")
DEFAULT_RAW_LIMIT = 32_000
_OVER_BUDGET = "not measured: the time was up"

Progress = Callable[[int, int], None]
"""Called with (measurements done, in all)."""


def measure_cost(
    embedder: ExtensibleEmbedder,
    token_ids: Tensor,
    *,
    methods: Sequence[str] = DEFAULT_METHODS,
    modes: Sequence[str] = MODES,
    scale_factors: Sequence[int] = (8,),
    context_tokens: Sequence[int] = (8000,),
    windows: Sequence[int] = (),
    new_tokens: int = 16,
    num_repeats: int = 5,
    raw_limit: int = DEFAULT_RAW_LIMIT,
    source: ModelSource | None = None,
    journal: Path | None = None,
    budget_minutes: float | None = None,
    progress: Progress | None = None,
) -> list[CostRecord]:
    """What every method costs at every length, against raw reading of the same context.

    Args:
        embedder: with the reader that it is for.
        token_ids: of a text (n,); it is repeated where a context is longer.
        methods: names of `METHODS`; raw reading is timed anyway where it fits.
        modes: of `extensible`: online, offline, stream. Other methods are online.
        scale_factors: tokens per row, for methods that have them; with windows, empty means that
            the method chooses.
        context_tokens: lengths of context.
        windows: rows in all, as in the equal-window protocol of language modelling; empty: the
            reader's own window, and the whole context as rows.
        new_tokens: tokens to generate after the context.
        num_repeats: rounds.
        raw_limit: longest context for methods whose reader reads every token of it.
        source: where a process of its own finds the models; None: peak memory is not measured.
        journal: file that keeps every measurement; a benchmark that was stopped goes on from it.
        budget_minutes: time after which nothing more is begun; the records say what is missing.
        progress: called after every measurement.

    Raises:
        InputError: an argument is not usable.
    """
    reported = check_settings(
        methods=methods,
        modes=modes,
        scale_factors=scale_factors,
        context_tokens=context_tokens,
        windows=windows,
        new_tokens=new_tokens,
        num_repeats=num_repeats,
        raw_limit=raw_limit,
    )
    check_windows(windows, embedder.reader.window)
    run = _Run(embedder, token_ids, reported, new_tokens, raw_limit, journal)
    clock = _Clock(budget_minutes, progress, run.num_measurements(num_repeats, source is not None))
    was_training = embedder.training
    embedder.eval()
    try:
        with tempfile.TemporaryDirectory() as folder:
            run.measure(num_repeats, source, Path(folder), clock)
    finally:
        embedder.train(was_training)
    models = Models(
        shape=run.shape,
        num_embedder_layers=embedder.config.num_layers,
        num_head=len(language_head(embedder.reader)),
    )
    return score_cost(run.measured(num_repeats), reported, models, new_tokens)


class _Clock:
    """Says how far the benchmark is, and whether there is time left."""

    def __init__(self, minutes: float | None, progress: Progress | None, total: int) -> None:
        self.deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self.progress, self.total, self.done = progress, total, 0

    def has_time(self) -> bool:
        """Whether something more may begin."""
        return self.deadline is None or time.monotonic() < self.deadline

    def step(self, count: int = 1) -> None:
        """So many measurements more are done."""
        self.done += count
        if self.progress is not None:
            self.progress(self.done, self.total)


class _Run:
    """Measures blocks of settings with one context length, round by round."""

    def __init__(
        self,
        embedder: ExtensibleEmbedder,
        token_ids: Tensor,
        reported: Sequence[CostSetting],
        new_tokens: int,
        raw_limit: int,
        journal: Path | None,
    ) -> None:
        embedder.reader.check_ids(token_ids)
        self.embedder, self.reported, self.new_tokens = embedder, reported, new_tokens
        self.raw_limit = raw_limit
        longest = max(each.context_tokens for each in reported)
        self.token_ids = token_ids.repeat(-(-longest // len(token_ids)))[:longest]
        self.shape = shape_of(embedder.reader.model.config)
        self.journal = Journal(journal, self._belongs_to())
        self.makers: dict[CostSetting, Callable[[], Reading]] = {}

    def num_measurements(self, num_repeats: int, with_memory: bool) -> int:
        """In all."""
        in_round = sum(len(block) for block in self.blocks().values())
        return in_round * num_repeats + with_memory * len(self.reported)

    def measure(
        self, num_repeats: int, source: ModelSource | None, folder: Path, clock: _Clock
    ) -> None:
        """Fills the journal: a round of times, peak memory, then the other rounds."""
        warm_up(self.embedder, self.token_ids)
        for number in range(num_repeats):
            for length, block in self.blocks().items():
                if clock.has_time():
                    self._measure_block(number, length, block, folder)
                    clock.step(len(block))
            if number == 0 and source is not None:
                self._measure_memory(source, folder, clock)

    def blocks(self) -> dict[int, list[CostSetting]]:
        """By context length, what is reported and the raw reading it is compared with."""
        found: dict[int, list[CostSetting]] = {}
        for setting in self.reported:
            block = found.setdefault(setting.context_tokens, [raw_of(setting)])
            if setting not in block:
                block.append(setting)
        return found

    def measured(self, num_repeats: int) -> dict[CostSetting, Measured]:
        """All that the journal has of every setting."""
        return {
            setting: self._measured(setting, num_repeats)
            for block in self.blocks().values()
            for setting in block
        }

    def _measured(self, setting: CostSetting, num_repeats: int) -> Measured:
        found, name = Measured(), _name(setting)
        for number in range(num_repeats):
            key = ("times", number, setting.context_tokens, self.new_tokens)
            entry = self.journal[key].get(name, {}) if key in self.journal else {}
            if "make_s" in entry:
                found.rounds[number] = entry
                found.load_s = entry["load_s"]
            found.notes += [entry["note"]] if entry.get("note") else []
        memory = self._memory_key(setting)
        if memory in self.journal:
            found.peak_bytes = self.journal[memory]["peak_bytes"]
            found.notes += [self.journal[memory]["note"]] if self.journal[memory]["note"] else []
        if not found.samples and not found.notes:
            found.notes.append(_OVER_BUDGET)
        return found

    def _measure_block(
        self, number: int, length: int, block: Sequence[CostSetting], folder: Path
    ) -> None:
        """Times every setting of a block; one that was cut off is timed again as a whole."""
        key = ("times", number, length, self.new_tokens)
        if key in self.journal and all(_name(each) in self.journal[key] for each in block):
            return
        turn = number % len(block)
        self.journal.put(
            key,
            {_name(each): self._time(each, folder) for each in [*block[turn:], *block[:turn]]},
        )

    def _time(self, setting: CostSetting, folder: Path) -> dict[str, Any]:
        """Fields of a sample, or why there is none."""
        try:
            self._check(setting)
            make, load_s = self._maker(setting, folder)
            readings: list[Reading] = []

            def kept() -> Reading:
                """The reading, which may have something to say."""
                readings[:] = [make()]
                return readings[0]

            sample = measure(kept, self.embedder, self.shape, self.new_tokens)
        except CANNOT as error:
            return {"note": str(error)}
        except torch.OutOfMemoryError:
            return {"note": "out of memory"}
        return {**dataclasses.asdict(sample), "load_s": load_s, "note": _note(readings[0])}

    def _check(self, setting: CostSetting) -> None:
        every = METHODS[setting.method].reads_every_token
        if every and setting.context_tokens > self.raw_limit:
            raise CannotRunError(
                f"left out: the reader would read every token, of {self.raw_limit:,} at most"
            )

    def _maker(
        self, setting: CostSetting, folder: Path
    ) -> tuple[Callable[[], Reading], float | None]:
        """What makes the reading; for saved rows also how long loading them takes."""
        context = self.token_ids[: setting.context_tokens]
        rows = _rows_folder(setting, folder)
        if setting not in self.makers:
            self.makers[setting] = reading_maker(
                self.embedder, setting, context, self.new_tokens, rows
            )
        if rows is None or not Context.is_saved_at(rows):
            return self.makers[setting], None
        start = time.perf_counter()
        Context.load(rows)
        return self.makers[setting], time.perf_counter() - start

    def _measure_memory(self, source: ModelSource, folder: Path, clock: _Clock) -> None:
        ids_file = folder / "ids.pt"
        torch.save(self.token_ids, ids_file)
        for setting in self.reported:
            key = self._memory_key(setting)
            if key not in self.journal and self._runs(setting) and clock.has_time():
                self.journal.put(key, self._peak(setting, source, ids_file, folder))
            clock.step()

    def _peak(
        self, setting: CostSetting, source: ModelSource, ids_file: Path, folder: Path
    ) -> dict[str, Any]:
        rows = _rows_folder(setting, folder)
        if rows is not None:
            self._maker(setting, folder)  # they must be there: making them takes memory too
        try:
            peak = peak_memory(source, setting, ids_file, self.new_tokens, rows)
        except CannotRunError as error:
            return {"peak_bytes": None, "note": f"peak memory: {error}"}
        return {"peak_bytes": peak, "note": ""}

    def _runs(self, setting: CostSetting) -> bool:
        """Whether its first round has a time."""
        key = ("times", 0, setting.context_tokens, self.new_tokens)
        return key in self.journal and "make_s" in self.journal[key][_name(setting)]

    def _memory_key(self, setting: CostSetting) -> tuple[str | int, ...]:
        return ("memory", _name(setting), setting.context_tokens, self.new_tokens)

    def _belongs_to(self) -> dict[str, object]:
        """Times of other models, texts or machines are not mixed with these."""
        reader = self.embedder.reader
        return {
            "embedder": self.embedder.fingerprint,
            **belongs_to_reader(reader),
            "device": str(reader.device),
            "raw_limit": self.raw_limit,
            "first_tokens": self.token_ids[:8].tolist(),
            "hardware": hardware(),
        }


def _name(setting: CostSetting) -> str:
    window = "" if setting.window is None else f" in {setting.window}"
    return f"{setting.method} {setting.mode} k={setting.k}{window}"


def _rows_folder(setting: CostSetting, folder: Path) -> Path | None:
    if setting.mode != OFFLINE:
        return None
    return folder / f"{setting.context_tokens}-{setting.k}-{setting.window}"


def _note(reading: Reading) -> str:
    if isinstance(reading, StreamReading) and reading.num_dropped:
        return f"the oldest {reading.num_dropped:,} tokens were dropped"
    return ""
