"""The command line tool llm (https://llm.datasette.io), where it is on the PATH."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from extensible_embedding.serve.service import Service

from .conftest import SimpleEngine, serving

LLM = shutil.which("llm")
pytestmark = pytest.mark.skipif(LLM is None, reason="needs the tool llm: pipx install llm")
Llm = Callable[..., str]


@pytest.fixture
def llm(service: Service, tmp_path: Path) -> Iterator[Llm]:
    """Runs llm with a prompt and options, as docs/serving.md sets it up."""
    with serving(service) as url:
        models = [{"model_id": "extensible", "model_name": "extensible", "api_base": f"{url}/v1"}]
        # JSON is YAML, too.
        (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(models), encoding="utf-8")

        def run(*arguments: str, text: str = "") -> str:
            done = subprocess.run(
                [str(LLM), "prompt", "-m", "extensible", *arguments],
                input=text,
                env={**os.environ, "LLM_USER_PATH": str(tmp_path)},
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        yield run


def test_llm_asks_whole_or_as_a_stream(llm: Llm, engine: SimpleEngine) -> None:
    settings = ("-s", "Be brief.", "-o", "max_tokens", "6", "-o", "seed", "3")
    answers = [llm("Who is it?", *settings), llm("Who is it?", "--no-stream", *settings)]
    assert answers[0] == answers[1]
    first, second = engine.requests
    assert (first.num_rows, first.sampling) == (second.num_rows, second.sampling)
    assert first.sampling.max_new_tokens == 6


def test_llm_goes_on_with_a_chat(llm: Llm, engine: SimpleEngine) -> None:
    llm("Who is it?")
    llm("And then?", "-c")
    first, second = engine.requests
    assert second.num_rows > first.num_rows


def test_llm_sends_files_longer_than_the_window(
    llm: Llm, engine: SimpleEngine, tmp_path: Path, service: Service, text: str
) -> None:
    (tmp_path / "book.txt").write_text(text * 4, encoding="utf-8")
    llm("Who is it?", "-f", str(tmp_path / "book.txt"))
    llm("Who is it?", text=text * 4)
    window = service.reader.window
    assert len(text) * 4 > window
    assert all(request.num_rows <= window for request in engine.requests)
    assert len(engine.requests) == 2
