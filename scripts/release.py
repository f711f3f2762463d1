"""Makes the released embedder: int8 weights, measured, with model card and README figures.

    python scripts/release.py runs/hidden-start-questions/embedder --num-targets 16 \
        --data books-eval.parquet code-eval.parquet docs-eval.parquet

Without a folder, the released embedder is measured again. If scripts/training_curve.py has kept the
curve of a training, the card has it. Writes the package's released embedder,
docs/results/release.json, and the blocks between `numbers:begin` and `numbers:end` in README.md and
docs/training.md.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.progress import Progress
from training_curve import parts_of

from extensible_embedding import ExtensibleEmbedder, Reader
from extensible_embedding.checkpoint import MODEL_CARD
from extensible_embedding.evals.markdown import markdown_table
from extensible_embedding.evals.records import LmRecord, provenance, write_records
from extensible_embedding.evals.release import recovery_table, release
from extensible_embedding.released import RELEASED_FOLDER

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "release.json"
TRAINING = ROOT / "docs" / "results" / "training.json"
"""What scripts/training_curve.py keeps."""
TRAINING_TEXT = """public-domain
English books, Python packages, technical and encyclopedic prose, none of it in the evaluation sets,
and questions: made from those texts without a model, and from FairytaleQA, QMSum, NQ-open and bAbI.
This is a young checkpoint: it has seen a small part of what it can learn from."""
_BLOCK = re.compile(r"(<!-- numbers:begin -->\n).*?(<!-- numbers:end -->)", re.DOTALL)


def main() -> None:
    """Measures, writes and fills in."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "embedder",
        type=Path,
        nargs="?",
        help="as trained, with float weights; without it the released one is measured again",
    )
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--num-targets", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    reader = Reader.from_pretrained()
    embedder = ExtensibleEmbedder.from_pretrained(options.embedder or RELEASED_FOLDER, reader)
    command, facts = public_command(sys.argv), provenance()
    with Progress() as bar:
        task = bar.add_task("targets", total=None)
        records = release(
            embedder,
            RELEASED_FOLDER,
            options.data,
            num_targets=options.num_targets,
            seed=options.seed,
            command=command,
            base_model="HuggingFaceTB/SmolLM2-135M-Instruct",
            training_text=f"{TRAINING_TEXT}\n\n{training_curve()}".rstrip(),
            int8_cost_nats=None if options.embedder else cost_before(),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    configuration = {"command": command, "seed": options.seed}
    write_records(records, RESULTS, configuration=configuration)
    fill("README.md", readme_block(records, embedder, command, facts))
    fill("docs/training.md", training_block(embedder))


def training_curve() -> str:
    """Hours, hardware and losses of the training, for the card; nothing if they were not kept."""
    if not TRAINING.exists():
        return ""
    kept = json.loads(TRAINING.read_text("utf-8"))
    rows = [
        [number, f"{end:,}", f"{loss:.2f}"]
        for number, stage in enumerate(kept["stages"], start=1)
        for end, loss in parts_of(stage)
    ]
    table = markdown_table(["stage", "up to step", "mean training loss"], rows)
    return f"""\
About {kept["hours"]:g} hours on {kept["hardware"]}. The loss is in nats a predicted token; stages
differ in their text and scale factors.

{table}"""


def cost_before() -> float:
    """What int8 cost when the released embedder was made, from its card."""
    card = (RELEASED_FOLDER / MODEL_CARD).read_text(encoding="utf-8")
    found = re.search(r"cost ([+-][0-9.]+) nats per token", card)
    if found is None:
        raise SystemExit(
            "The released embedder's card says what int8 costs, but this one does not."
        )
    return float(found[1])


def public_command(words: Sequence[str]) -> str:
    """The command without the folders of this machine."""
    names = [Path(word).name if word.endswith(".parquet") else word for word in words]
    return shlex.join(["python", "scripts/release.py", *names[1:]])


def readme_block(
    records: Sequence[LmRecord],
    embedder: ExtensibleEmbedder,
    command: str,
    facts: Mapping[str, str],
) -> str:
    """Recovery of the release, and how it was measured."""
    tokens = embedder.training_record.get("tokens", 0)
    targets = next(record.num_targets for record in records)
    return f"""\
Recovery of the released embedder ({tokens:,} training tokens; 1 is as good as raw text at 1/k of
its rows, 0 useless), 1,024 context tokens before each target, {targets} targets a domain, bootstrap
95% interval in brackets. All take n / k rows for n tokens: rows alone; rows at 2k and then the
last tokens raw, as `Reader.generate` reads a text that goes on; the last tokens alone:

{recovery_table(records)}

`{command}`, {facts["date"]}, commit {facts["commit"]}, {facts["hardware"]}. Losses and
the cost of int8: [model card](src/extensible_embedding/assets/smollm2-135m-instruct/README.md).
"""


def training_block(embedder: ExtensibleEmbedder) -> str:
    """What the released embedder was trained on."""
    record = embedder.training_record
    return f"""\
The released embedder has seen {record.get("tokens", 0):,} predicted tokens in
{record.get("steps", 0):,} steps; `configs/stage1.yaml` to `stage5.yaml`,
the first 1,000 steps of `configs/gpu.yaml` and `configs/stage6.yaml` say with which settings.
Losses, recovery and how they were measured:
[model card](../src/extensible_embedding/assets/smollm2-135m-instruct/README.md).
"""


def fill(name: str, block: str) -> None:
    """Puts text between the markers of a file."""
    path = ROOT / name
    text = _BLOCK.sub(lambda found: found[1] + block + found[2], path.read_text("utf-8"))
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
