"""Releases: a trained embedder -> an int8 checkpoint with a model card of measured figures.

In: an embedder and evaluation files. Out: a folder as `save_pretrained` writes it, whose README.md
says what it was trained on, what it is worth and what int8 costs. Knows nothing of training.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from .._version import __version__
from ..checkpoint import WEIGHTS
from ..embedder import ExtensibleEmbedder
from .lm import Progress, evaluate_lm
from .markdown import markdown_table
from .records import MEAN, LmRecord, provenance

_READ = {
    "extensible": "rows alone",
    "extensible-raw-end": "rows, the end raw",
    "recent": "as many last tokens alone",
}
_NAMES = {"none": "no context", "raw": "raw context"}
_COST_K = 4
_COST_TARGETS = 4


def release(
    embedder: ExtensibleEmbedder,
    folder: Path,
    data: Sequence[Path],
    *,
    scale_factors: Sequence[int] = (2, 4, 8, 16, 32),
    context_tokens: int = 1024,
    target_tokens: int = 256,
    num_targets: int = 16,
    seed: int = 0,
    command: str = "",
    base_model: str = "",
    training_text: str = "",
    int8_cost_nats: float | None = None,
    progress: Progress | None = None,
) -> list[LmRecord]:
    """Writes the int8 checkpoint, measures it, and writes its model card.

    Args:
        embedder: with float weights, as trained.
        folder: of the release; an older one there is replaced.
        data: evaluation files, see `evaluate_lm`.
        scale_factors: tokens per row to measure.
        context_tokens: length of context.
        target_tokens: tokens of a target.
        num_targets: targets for each domain.
        seed: of the targets.
        command: what was run, for the card.
        base_model: hub id of the reader, for the card; by default its name.
        training_text: what the embedder was trained on, for the card.
        int8_cost_nats: what int8 costs, as it was measured before: of weights that were int8 once
            it cannot be any more. None: it is measured.
        progress: called after every target of the int8 checkpoint.

    Returns:
        The records of the int8 checkpoint.
    """
    facts = provenance()  # of the tree as it is before the release is written
    shape = {"context_tokens": [context_tokens], "target_tokens": target_tokens, "seed": seed}
    with tempfile.TemporaryDirectory() as temporary:
        embedder.save_pretrained(temporary + "/int8", int8=True)
        small = ExtensibleEmbedder.from_pretrained(temporary + "/int8", embedder.reader)
        size = (Path(temporary) / "int8" / WEIGHTS).stat().st_size
    records = evaluate_lm(
        small,
        data,
        methods=[*_NAMES, *_READ],
        scale_factors=scale_factors,
        num_targets=num_targets,
        progress=progress,
        **shape,  # type: ignore[arg-type]
    )
    if int8_cost_nats is None:
        int8_cost_nats = _cost_nats(embedder, small, data, shape)
    card = model_card(
        embedder,
        records,
        int8_cost_nats,
        size_bytes=size,
        command=command,
        base_model=base_model or embedder.reader.name,
        training_text=training_text or "not stated",
        facts=facts,
    )
    embedder.save_pretrained(folder, int8=True, model_card=card)
    return records


def _cost_nats(
    embedder: ExtensibleEmbedder,
    small: ExtensibleEmbedder,
    data: Sequence[Path],
    shape: dict[str, object],
) -> float:
    """What the int8 weights cost in nats per token, on the same targets."""
    found = []
    for each in (small, embedder):
        asked = {"methods": ["extensible"], "scale_factors": [_COST_K], **shape}
        mean = evaluate_lm(each, data, num_targets=_COST_TARGETS, **asked)[-1]  # type: ignore[arg-type]
        assert mean.loss_nats is not None
        found.append(mean.loss_nats)
    return found[0] - found[1]


def recovery_table(records: Sequence[LmRecord]) -> str:
    """Markdown: recovery with its interval, a row for each k and way to read, a column a domain."""
    domains = list(dict.fromkeys(record.domain for record in records))
    factors = sorted({record.k for record in records if record.method in _READ})
    methods = [method for method in _READ if any(record.method == method for record in records)]
    rows = [
        [k, _READ[method], *(_cell(records, method, domain, k) for domain in domains)]
        for k in factors
        for method in methods
    ]
    return markdown_table(["k", "read", *domains], rows)


def loss_table(records: Sequence[LmRecord]) -> str:
    """Markdown: loss in nats per token without context, with rows, with raw context."""
    domains = list(dict.fromkeys(record.domain for record in records))
    rows = []
    for method, k in dict.fromkeys((record.method, record.k) for record in records):
        name = f"{_READ[method]}, k={k}" if method in _READ else _NAMES.get(method, method)
        cells = [
            f"{record.loss_nats:.3f}"
            for record in records
            if (record.method, record.k) == (method, k)
        ]
        rows.append([name, *cells])
    return markdown_table(["read", *domains], rows)


def _cell(records: Sequence[LmRecord], method: str, domain: str, k: int) -> str:
    for record in records:
        if (record.domain, record.method, record.k) == (domain, method, k):
            if record.recovery is None or record.recovery_low is None:
                return "-"
            low, high = record.recovery_low, record.recovery_high
            text = f"{record.recovery:.2f} ({low:.2f} to {high:.2f})"
            return f"**{text}**" if domain == MEAN else text
    return "-"


def model_card(
    embedder: ExtensibleEmbedder,
    records: Sequence[LmRecord],
    int8_cost_nats: float,
    *,
    size_bytes: int,
    command: str,
    base_model: str,
    training_text: str,
    facts: Mapping[str, str],
) -> str:
    """README.md of a release: what it is, what it was trained on, what was measured and how."""
    config, training, reader = embedder.config, embedder.training_record, embedder.reader
    first = next(record for record in records if record.method == "extensible")
    return f"""---
license: apache-2.0
library_name: extensible-embedding
base_model: {base_model}
---

# Extensible embedder for {reader.name}

The first {config.num_layers} of {reader.num_layers} layers of {reader.name}, trained to turn every
k tokens of a long text into one row that the frozen reader takes in place of the text
(arXiv 2402.11577). Generated by extensible-embedding {__version__}; figures are of this int8
checkpoint ({size_bytes / 1e6:.1f} MB).

## Training

Predicted tokens: {training.get("tokens", 0):,}; optimizer steps: {training.get("steps", 0):,};
identity residual: {config.residual}; down-sampling: {config.down_sampling}. Text: {training_text}

## Recovery

(loss without context - loss with rows) / (loss without context - loss with raw context), the same
targets for all: {first.context_tokens:,} context tokens before the target,
{first.num_targets} targets a domain; in brackets the bootstrap 95% interval. 1 is as good as raw
text at 1/k of its rows, 0 is useless. All three ways take n / k rows of n tokens: rows alone;
rows at 2k and then the last tokens raw, as a text that goes on is read (`Reader.generate`); the
last tokens alone.

{recovery_table(records)}

Loss in nats per token:

{loss_table(records)}

int8 weights, one scale an output channel, cost {int8_cost_nats:+.4f} nats per token at k={_COST_K}
(mean over domains, {_COST_TARGETS} targets each, the same targets for both).

## How it was measured

`{command}` on {facts["date"]}, commit {facts["commit"]}, {facts["hardware"]}; {facts["versions"]}.

## Limits

Exact facts (names, numbers) are often lost in rows. Use a small k, or keep what matters raw (k=1).
"""
