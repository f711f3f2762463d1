"""The public face, and the direction of imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import extensible_embedding

PACKAGE = Path(extensible_embedding.__file__).parent
OUTER = ("train", "evals", "bench", "cli", "serve", "engines")
CORE = sorted(path for path in PACKAGE.glob("*.py") if path.stem not in (*OUTER, "__main__"))


def imported(path: Path) -> set[str]:
    """First part, below this package, of everything that a core module imports from it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            full = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "extensible_embedding" if node.level else ""
            stem = ".".join(part for part in (base, node.module or "") if part)
            full = [stem, *(f"{stem}.{alias.name}" for alias in node.names)]
        else:
            continue
        parts = [name.split(".") for name in full]
        names |= {p[1] for p in parts if p[0] == "extensible_embedding" and len(p) > 1}
    return names


def test_all_is_sorted_and_every_name_is_there() -> None:
    names = extensible_embedding.__all__
    assert names == sorted(names)
    assert len(set(names)) == len(names)
    assert all(hasattr(extensible_embedding, name) for name in names)


def test_all_is_complete() -> None:
    """What __init__ imports is public, and nothing else is."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    names = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    }
    assert names == set(extensible_embedding.__all__)


def test_every_error_is_public() -> None:
    from extensible_embedding import errors

    kinds = {name for name, kind in vars(errors).items() if isinstance(kind, type)}
    assert kinds <= set(extensible_embedding.__all__)


def test_public_classes_say_what_they_do() -> None:
    for name in extensible_embedding.__all__:
        if not name.startswith("__"):
            assert getattr(extensible_embedding, name).__doc__, name


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.stem)
def test_the_core_imports_nothing_outer(path: Path) -> None:
    assert not imported(path) & set(OUTER)


def test_importing_loads_the_core_alone() -> None:
    loaded = {name.split(".")[1] for name in modules_after("e.Reader") if "embedding." in name}
    assert "reader" in loaded
    assert not loaded & set(OUTER)


def test_importing_waits_for_no_torch() -> None:
    loaded = modules_after("e.__version__, e.ExtensibleError, dir(e)")
    assert not loaded & {"torch", "transformers"}


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Raeder'"):
        extensible_embedding.Raeder  # noqa: B018


def modules_after(use: str) -> set[str]:
    code = f"import sys, extensible_embedding as e; {use}; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(PACKAGE.parent), "PATH": "", "HF_HUB_OFFLINE": "1"},
    )
    return set(result.stdout.split())
