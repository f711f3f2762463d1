"""Write the reference of the training configuration from its source.

In: `train/config.py`, whose fields carry their description as the string under them. Out: the block
between the markers in `docs/training.md`, and `configs/example.yaml`. With `--check` nothing is
written: exit code 0 when both are current, 1 and a line for each that is not.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

SOURCE = "src/extensible_embedding/train/config.py"
CLASS = "TrainConfig"
REFERENCE = "docs/training.md"
EXAMPLE = "configs/example.yaml"
BEGIN, END = "<!-- config:begin -->", "<!-- config:end -->"
EXAMPLE_VALUES = {"output_dir": "runs/example", "data": "[data/books.parquet, data/notes.jsonl]"}
_WORDS = {"None": "null", "True": "true", "False": "false"}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One field of the configuration."""

    name: str
    kind: str
    """Its type, in words."""
    default: str | None
    """As YAML; None where a value is required."""
    meaning: str
    opens_group: bool
    """Whether a blank line stands before it in the source."""


def read_settings(source: str) -> list[Setting]:
    """The settings of the configuration class in a module's source, in order."""
    body = next(
        node.body
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and node.name == CLASS
    )
    lines = source.splitlines()
    return [
        Setting(
            name=field.target.id,
            kind=_kind(ast.unparse(field.annotation)),
            default=_default(source, field.value),
            meaning=_meaning(field.target.id, after),
            opens_group=not lines[field.lineno - 2].strip(),
        )
        for field, after in zip(body, [*body[1:], None], strict=True)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    ]


def _kind(annotation: str) -> str:
    base, _, empty = annotation.partition(" | ")
    words = base.replace("list[", "list of ").rstrip("]")
    return f"{words}, or null" if empty == "None" else words


def _default(source: str, value: ast.expr | None) -> str | None:
    """YAML of a default; of `field(default_factory=lambda: X)` it is X."""
    if value is None:
        return None
    if isinstance(value, ast.Call):
        factory = value.keywords[0].value
        assert isinstance(factory, ast.Lambda)
        value = factory.body
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        return value.value
    text = ast.get_source_segment(source, value) or ""
    return _WORDS.get(text, text)


def _meaning(name: str, after: ast.stmt | None) -> str:
    if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
        return " ".join(str(after.value.value).split())
    raise SystemExit(f"{SOURCE}: a setting is described by the string under it, `{name}` is not.")


def reference(settings: list[Setting]) -> str:
    """A Markdown table of all settings."""
    rows = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for setting in settings:
        default = "required" if setting.default is None else f"`{setting.default}`"
        rows.append(f"| `{setting.name}` | {setting.kind} | {default} | {setting.meaning} |")
    return "\n".join(rows)


def example(settings: list[Setting]) -> str:
    """A commented YAML with every setting at its default."""
    return "\n".join(_example_lines(settings)) + "\n"


def _example_lines(settings: list[Setting]) -> Iterator[str]:
    yield "# Every setting of a training run at its default; only the first two are required."
    yield f"# Generated from {SOURCE}: run scripts/make_config_reference.py."
    yield "# Copy it, delete what you leave alone, and run: extensible train --config FILE"
    for number, setting in enumerate(settings):
        if setting.opens_group or number == 0:
            yield ""
        value = EXAMPLE_VALUES[setting.name] if setting.default is None else setting.default
        yield f"# {setting.meaning}"
        yield f"{setting.name}: {value}"


def with_block(page: str, block: str) -> str:
    """The page with the text between its markers replaced."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{REFERENCE} must hold the markers {BEGIN} and {END}; add them.")
    return f"{before}{BEGIN}\n{block}\n{END}{after}"


def expected_files() -> dict[str, str]:
    """What the generated files should hold, by path below the root."""
    settings = read_settings((ROOT / SOURCE).read_text(encoding="utf-8"))
    page = (ROOT / REFERENCE).read_text(encoding="utf-8")
    return {REFERENCE: with_block(page, reference(settings)), EXAMPLE: example(settings)}


def main(arguments: list[str] | None = None) -> int:
    """Write both files, or say which are not current."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if outdated")
    check = parser.parse_args(arguments).check
    stale = [
        name
        for name, text in expected_files().items()
        if not (ROOT / name).is_file() or (ROOT / name).read_text(encoding="utf-8") != text
    ]
    for name in stale:
        if check:
            print(f"{name} differs from {SOURCE}; run {Path(__file__).name}.", file=sys.stderr)
        else:
            (ROOT / name).write_text(expected_files()[name], encoding="utf-8")
            print(f"wrote {name}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
