"""The program as a whole: exit codes, and libraries left as they were."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from transformers.utils import logging

from extensible_embedding import __version__, loading, prompt
from extensible_embedding.cli import main, options
from extensible_embedding.cli.console import quiet_libraries

from .conftest import Run


def test_main_exits_with_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["ask", "none.txt", "-q", "Who?"])
    assert exit.value.code == 2
    assert capsys.readouterr().err.startswith("Error: ")


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
