"""The program as a whole: exit codes, and libraries left as they were."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers.utils import logging

from extensible_embedding import __version__, loading, prompt
from extensible_embedding.cli import main, options
from extensible_embedding.cli.console import quiet_libraries

from .conftest import Run, refused


def test_main_exits_with_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["ask", "none.txt", "-q", "Who?"])
    assert exit.value.code == 2
    assert capsys.readouterr().err.startswith("Error: ")


LONG = "n" * 300


@pytest.mark.parametrize(
    "arguments",
    [
        ("store", "list", LONG),
        ("store", "export", "library", "book", "--out", LONG),
        ("compress", "book.txt", "--out", LONG),
        ("ask", f"{LONG}:book", "-q", "Who?"),
        ("ask", "library:book", "-q", "Who?", "--reader", LONG),
        ("chat", "library:book", "--store", LONG),
        ("serve", LONG),
        ("train", "--config", LONG),
    ],
    ids=" ".join,
)
def test_names_that_are_too_long(
    run: Run, library: Path, book: Path, arguments: tuple[str, ...]
) -> None:
    refused(run(*arguments, models=False), 2, "can be reached", "name too long", "give another")


def test_a_path_through_a_folder_that_may_not_be_searched(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stat(path: Path, **_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", stat)
    result = run("store", "list", "theirs", "--json", models=False)
    refused(result, 6, "Permission denied", "theirs")
    assert json.loads(result.stdout)["exit_code"] == 6


def test_libraries_are_quiet_and_as_before(run: Run, saved: Path) -> None:
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with quiet_libraries():
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (
            logging.ERROR,
            False,
        )
    assert run("ask", saved, "-q", "Who?", "--max-new-tokens", "2").exit_code == 0
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        ([], 2),
        (["nonsense"], 2),
        (["ask"], 2),
        (["ask", "--help"], 0),
        (["train", "--nonsense"], 2),
        (["eval", "lm", "--help"], 0),
        (["ask", "none.txt", "-q", "Who?"], 2),
        (["compress", "none.txt", "--out", "out", "--k", "x"], 2),
    ],
)
def test_help_and_usage_errors_wait_for_no_torch(arguments: list[str], exit_code: int) -> None:
    done = run_python(
        "import sys\n"
        "from extensible_embedding.cli import main\n"
        "try:\n"
        f"    main({arguments})\n"
        "finally:\n"
        "    print({'torch', 'transformers'} & set(sys.modules))\n"
    )
    assert done.returncode == exit_code, done.stderr
    assert done.stdout.endswith("set()\n")


@pytest.mark.parametrize("place", ["typer.core", "torch"])
def test_ctrl_c_while_importing(place: str, tmp_path: Path) -> None:
    """As early as in the import of the command line, and in that of torch."""
    (tmp_path / "book.txt").write_text("Some text.")
    done = run_python(
        "import sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name == {place!r}:\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "from extensible_embedding.cli import main\n"
        "main(['ask', 'book.txt', '-q', 'Who?'])\n"
    )
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr


def test_as_a_module() -> None:
    command = [sys.executable, "-m", "extensible_embedding", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == f"extensible-embedding {__version__}\n"


def test_options_know_what_the_core_calls_auto_and_default() -> None:
    assert (options.AUTO, options.BUILT_IN) == (prompt.AUTO, loading.EMBEDDED_NAME)
