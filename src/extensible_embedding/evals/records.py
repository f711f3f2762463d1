"""Records of evaluations: what was measured, and what it depends on.

In: losses that were scored. Out: records, one file of them with configuration, versions, hardware,
date and commit: a JSON object, or JSON lines where the file's name ends in .jsonl. Knows nothing of
how anything is measured.

    .json     {"configuration": ..., "versions": ..., ..., "records": [...]}
    .jsonl    {"run": {"configuration": ..., "versions": ..., ...}}, then one record a line
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .._version import __version__
from ..errors import InputError, StorageError
from ..store.files import write_whole

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MEAN = "mean"
"""Domain of the records that average all domains."""

_VERSIONED = ("torch", "transformers", "numpy", "safetensors")


@dataclass(frozen=True, kw_only=True)
class LmRecord:
    """How well one domain is predicted by one method; intervals are bootstrap, 95 percent."""

    domain: str
    """Of the documents, or "mean": the unweighted mean over domains."""
    method: str
    """See `methods`."""
    k: int
    """Tokens per row; 1 for raw methods, 0 for none."""
    context_tokens: int
    """Tokens before the target; 0 for none."""
    window: int | None
    """Rows that head, context and target had to fit in; None for the reader's own."""
    num_targets: int
    """Targets that the losses are a mean of."""
    loss_nats: float | None
    """Mean loss of a target token; None where the method could not run."""
    loss_low: float | None
    loss_high: float | None
    perplexity: float | None
    """exp of the loss."""
    recovery: float | None
    """See `scoring`; None where raw text does not fit the window, or wins nothing at all."""
    recovery_low: float | None
    recovery_high: float | None
    versus_truncate: float | None
    """Perplexity relative to the most recent tokens in the same window, minus 1; None without."""
    versus_low: float | None
    versus_high: float | None
    target_loss_nats: list[float]
    """Mean loss of each target, in the order drawn: the same targets for every method."""
    concatenated: bool = False
    """Whether the documents of a domain were joined to one text."""
    note: str = ""
    """Why the method could not run, if so."""


@dataclass(frozen=True, kw_only=True)
class QaRecord:
    """Mean score of one part of a task; intervals are bootstrap over documents, 95 percent."""

    task: str
    """Or "mean": the unweighted mean of the main scores of all tasks."""
    version: int
    part: str
    """Such as a length, or "all"."""
    method: str
    k: int
    """Asked for; 0 where the method chose."""
    window: int | None
    scorer: str
    num_examples: int
    score: float | None
    """From 0 to 1; None where the method could not run."""
    low: float | None
    high: float | None
    mean_rows: float | None
    """Rows of the prompts, on average."""
    versus_truncate: float | None = None
    """Score minus that of the most recent tokens on the same questions; None without them."""
    versus_low: float | None = None
    versus_high: float | None = None
    context_tokens: int | None = None
    """Of every context, about; None where contexts are as the task has them."""
    num_left_out: int = 0
    """Questions that were passed over, since nothing of that length could be made for them."""
    note: str = ""
    """Why some or all examples have no prediction, if so."""


@dataclass(frozen=True, kw_only=True)
class CostRecord:
    """What one way of reading a context costs: medians, with bootstrap intervals of 95 percent.

    Numbers are None where the setting could not run or was not measured; `note` says why.
    """

    method: str
    mode: str
    """online: all of it counts; offline: rows were made before; stream: text came in pieces."""
    k: int
    """Tokens per row; 1 for raw methods. A stream begins with it."""
    k_read: int | None
    """Tokens per row in the end; 1 where all was raw."""
    context_tokens: int
    window: int | None
    """Rows that head, context and new tokens had to fit in; None for the reader's own."""
    new_tokens: int
    num_repeats: int
    rows: int | None
    """Of the prompt."""
    ttft_s: float | None
    """Time to the first new token from the context's token ids, or from its rows (offline)."""
    ttft_low: float | None
    ttft_high: float | None
    make_s: float | None
    """The part of it up to what the reader sees: selecting, compressing."""
    read_s: float | None
    """The rest: the reader's pass over its rows. After a stream, what is waited for."""
    load_s: float | None
    """Loading the saved rows, apart from all that; offline alone."""
    context_tokens_per_s: float | None
    """Context tokens a second until the first new token."""
    new_tokens_per_s: float | None
    """After the first."""
    speedup: float | None
    """Time to first token of raw reading over this one's, in turn; None beyond the window."""
    speedup_low: float | None
    speedup_high: float | None
    flops: int | None
    """Floating-point operations to the first token, see `flops`."""
    flop_bound: float | None
    """Operations of raw reading, in a window that would hold it, over this one's."""
    layer_bound: float | None
    """1 / (layers of the embedder / layers of the reader + 1 / k): without attention."""
    cache_bytes: int | None
    """Of the reader's keys and values at the first new token."""
    cache_saving: float | None
    """Cache of raw reading over this one's; None beyond the window."""
    peak_bytes: int | None
    """Most memory at a time beside the models, in a process of its own."""
    ttft_samples_s: list[float]
    """Time to first token in every round."""
    note: str = ""
    """Why something could not be measured, or was left out of what was read."""


def write_records(
    records: Sequence[DataclassInstance],
    out: Path,
    *,
    configuration: Mapping[str, object] | None = None,
) -> None:
    """Writes records, whole or not at all, with what made them.

    Args:
        records: from `evaluate_lm` or `evaluate_qa`, or of another measurement.
        out: the file, .json or .jsonl; it is replaced if it exists.
        configuration: what the evaluation was called with, its seed too; anything JSON or text can
            hold.

    Raises:
        StorageError: the disk is full or not writable.
    """
    run = {"configuration": dict(configuration or {}), **environment()}
    if is_lines(out):
        lines: list[object] = [{"run": run}, *map(dataclasses.asdict, records)]
        text = "\n".join(json.dumps(line, ensure_ascii=False, default=str) for line in lines)
    else:
        text = json.dumps(_document(run, records), indent=2, ensure_ascii=False, default=str)
    write_text(Path(out), text + "\n")


def read_records(path: Path) -> dict[str, Any]:
    """A file of `write_records`: what made the records, and under "records" their fields.

    Raises:
        InputError: it cannot be read, or is something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if is_lines(path):
            first, *rows = [json.loads(line) for line in text.splitlines()]
            report = {**first["run"], "records": rows}
        else:
            report = json.loads(text)
        if not all(isinstance(row, dict) for row in report["records"]):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"Results are .json or .jsonl files of `extensible eval` and `extensible bench`, but "
            f"{str(path)!r} is none ({type(error).__name__}); move it elsewhere."
        ) from error
    return report


def is_lines(path: Path) -> bool:
    """Whether a results file holds JSON lines, by its name."""
    return Path(path).suffix == ".jsonl"


def _document(run: Mapping[str, object], records: Sequence[DataclassInstance]) -> dict[str, object]:
    """One JSON object; the losses of single targets stand apart, at its end."""
    lm = [record for record in records if isinstance(record, LmRecord)]
    targets = [_target_rows(record) for record in lm if record.domain != MEAN]
    rows = [_without(record, "target_loss_nats") for record in records]
    return {**run, "records": rows, **({"target_loss_nats": targets} if lm else {})}


def environment() -> dict[str, object]:
    """What a figure depends on beside its configuration: versions, hardware, date, commit."""
    return {
        "versions": _versions(),
        "hardware": hardware(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "git_commit": _git_commit(),
    }


def provenance() -> dict[str, str]:
    """`environment` in words, for a document: date, commit, hardware, versions."""
    names = _versions()
    commit, _, changed = (_git_commit() or "unknown").partition("-")
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "commit": commit[:12] + (" with changes" if changed else ""),
        "hardware": f"{_cpu_name()}, {torch.get_num_threads()} threads",
        "versions": ", ".join(f"{name} {number}" for name, number in names.items()),
    }


def _without(record: DataclassInstance, name: str) -> dict[str, object]:
    row = dataclasses.asdict(record)
    row.pop(name, None)
    return row


def _target_rows(record: LmRecord) -> dict[str, object]:
    """What scoring can be rerun from."""
    names = ("domain", "method", "k", "context_tokens", "window", "target_loss_nats")
    return {name: getattr(record, name) for name in names}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "extensible-embedding": __version__}
    return found | {name: version(name) for name in _VERSIONED}


def hardware() -> dict[str, object]:
    """The machine, its processors and threads."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    return {
        "machine": platform.platform(),
        "cpu": _cpu_name(),
        "num_cpus": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "accelerator": str(accelerator) if accelerator else None,
        "gpus": gpus,
    }


def _cpu_name() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text("utf-8"))
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _git_commit() -> str | None:
    """Commit of the source tree that this runs from; None where it is installed."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(
            [*command, "--exclude=*"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def write_text(out: Path, text: str) -> None:
    """Writes a file, whole or not at all.

    Raises:
        StorageError: the disk is full or not writable.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, text.encode())
    except OSError as error:
        raise StorageError(
            f"Saving needs a writable place with room, but {str(out)!r} cannot be written "
            f"({error}); free some space or choose another file."
        ) from error
