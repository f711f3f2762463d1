"""Check that the version is the same everywhere it is written.

In: `_version.py`, `CHANGELOG.md`, `CITATION.cff`. Out: exit code 0 when all three agree, 1 and a
line for each place that does not. `_version.py` is the source; nothing is rewritten here.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

SOURCE = "src/extensible_embedding/_version.py"
PLACES = {
    SOURCE: r'^__version__ = "([^"]+)"$',
    # The newest release is the first heading that holds a number; "Unreleased" does not.
    "CHANGELOG.md": r"^## \[(\d[^\]]*)\]",
    "CITATION.cff": r'^version: "?([^"\s]+)"?\s*$',
}


def read_version(path: Path, pattern: str) -> str:
    """Return the first version in the file at `path`, or "none" if nothing matches `pattern`."""
    match = re.search(pattern, path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return match.group(1) if match else "none"


def main() -> int:
    """Compare all places with the source and say which ones differ."""
    versions = {name: read_version(ROOT / name, pattern) for name, pattern in PLACES.items()}
    expected = versions[SOURCE]
    if expected == "none":
        print(f'{SOURCE} must hold a line like __version__ = "1.2.3"; add it.', file=sys.stderr)
        return 1
    wrong = {name: version for name, version in versions.items() if version != expected}
    for name, version in wrong.items():
        print(f"{name} says {version}, {SOURCE} says {expected}; make them equal.", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
