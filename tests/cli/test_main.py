"""The program as a whole: exit codes, and libraries left as they were."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import modeling_gguf_pytorch_utils

from extensible_embedding.cli import main

from .conftest import Run


def test_main_exits_with_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["ask", "none.txt", "-q", "Who?"])
    assert exit.value.code == 2
    assert capsys.readouterr().err.startswith("Error: ")


def test_libraries_are_as_before(run: Run, saved: Path) -> None:
    assert "disable" not in getattr(modeling_gguf_pytorch_utils.tqdm, "keywords", {})
