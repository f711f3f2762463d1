"""What the README and the docs say is so."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_embedder
from typer.main import get_command
from typer.testing import CliRunner

from extensible_embedding.downsampling import DOWN_SAMPLINGS, DownSampling, num_rows
from extensible_embedding.train.config import TrainConfig, load_config

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "extensible_embedding"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[list[str]]:
    lines = "\n".join(blocks(page, "console")).replace("\\\n", " ").splitlines()
    return [shlex.split(line[2:], comments=True) for line in lines if line.startswith("$ ")]


TRAINING = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
STORE = (ROOT / "docs" / "store.md").read_text(encoding="utf-8")
EXTENSIBLE = [
    words[1:] for words in commands(README + TRAINING + STORE) if words[0] == "extensible"
]
MAKE = [words[1] for words in commands(README) if words[0] == "make"]


def command_of(words: list[str]) -> tuple[list[str], Any]:
    """The names of a command, and the command, that the words of a command line begin with."""
    command, names = get_command(import_module("extensible_embedding.cli").app), []
    while words[len(names) :] and words[len(names)] in getattr(command, "commands", {}):
        command = command.commands[words[len(names)]]
        names.append(words[len(names)])
    return names, command


def run_script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_in_the_docs_parses(page):
    for code in blocks(page.read_text(encoding="utf-8"), "python"):
        ast.parse(code)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_in_the_docs_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    local = [link for link in links if not link.startswith("http")]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_readme_imports_what_the_package_exports():
    for code in blocks(README, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                module = import_module(node.module)
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


@pytest.mark.e2e
def test_readme_python_runs(tmp_path):
    book = (PACKAGE / "assets" / "northanger-abbey.txt").read_text(encoding="utf-8")
    (tmp_path / "book.txt").write_text(book[:6000], encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks(README, "python")[:2])],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    counts, *answer = done.stdout.splitlines()
    tokens, rows = map(int, re.findall(r"\d+", counts))
    assert tokens / 8 <= rows < tokens / 7
    assert "".join(answer).strip()


@pytest.mark.parametrize("words", EXTENSIBLE, ids=" ".join)
def test_readme_commands_exist(words):
    names, command = command_of(words)
    assert names, f"there is no command `extensible {words[0]}`"
    result = CliRunner().invoke(import_module("extensible_embedding.cli").app, [*names, "--help"])
    assert result.exit_code == 0
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


def test_readme_shows_every_command():
    shown = {words[0] for words in EXTENSIBLE} | {"demo"}
    assert set(command_of([])[1].commands) <= shown


def test_readme_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert [name for name in MAKE if not re.search(rf"^{name}:", makefile, re.MULTILINE)] == []


def test_readme_exit_codes_are_those_of_the_errors():
    errors = import_module("extensible_embedding.errors")
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    codes = {kind.exit_code for kind in kinds if issubclass(kind, errors.ExtensibleError)}
    shown = {int(code) for code in re.findall(r"^\| (\d+) \|", README, flags=re.MULTILINE)}
    assert codes <= shown


def test_readme_maps_every_module():
    block = README.partition("<!-- map:begin -->")[2].partition("<!-- map:end -->")[0]
    mapped = re.findall(r"^\| `([^`]+\.py)` \|", block, flags=re.MULTILINE)
    modules = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py")}
    assert len(mapped) == len(set(mapped))
    assert set(mapped) == {name for name in modules if not name.endswith("__init__.py")}


def test_config_reference_is_current():
    done = run_script("make_config_reference.py", "--check")
    assert done.returncode == 0, done.stderr


def test_example_config_holds_every_default():
    example = load_config(ROOT / "configs" / "example.yaml")
    assert example == TrainConfig(output_dir=example.output_dir, data=example.data)


@pytest.mark.parametrize(("num_tokens", "k", "factor"), [(12, 2, 3), (13, 4, 2), (5, 3, 4)])
def test_down_sampling_of_the_docs_works(num_tokens, k, factor, monkeypatch, tiny_reader):
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    code = next(code for code in blocks(page, "python") if "(DownSampling)" in code)
    scope: dict[str, Any] = {"DownSampling": DownSampling}
    exec(code, scope)
    sampler, outputs = scope["First"](), torch.randn(num_tokens, 3)
    rows = sampler.rows(outputs, k)
    assert len(rows) == num_rows(num_tokens, k)
    coarser = sampler.coarser(rows, num_tokens, k, factor)
    assert torch.equal(coarser, sampler.rows(outputs, k * factor))
    monkeypatch.setitem(DOWN_SAMPLINGS, "first", scope["First"])
    embedder = make_embedder(tiny_reader, down_sampling="first")
    assert embedder.config.seen_at_once(8, 4, 4) == 8
    context = embedder.compress(torch.arange(97, 97 + 40), k=2)
    assert context.at(4).num_rows == 10
    tiny_reader.generate(context, "so", k=4, max_new_tokens=2)
