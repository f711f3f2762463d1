"""`extensible info`: facts, and what may be missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from extensible_embedding import ExtensibleEmbedder, __version__, released

from .conftest import Run, plain


def test_info(run: Run, tiny_embedder: ExtensibleEmbedder) -> None:
    facts = json.loads(run("info", "--json").stdout)
    assert facts["version"] == __version__
    assert facts["torch"] == torch.__version__
    assert tiny_embedder.reader.is_same(facts["reader"]["fingerprint"])
    assert facts["embedder"]["fingerprint"] == tiny_embedder.fingerprint
    assert "fingerprint" in plain(run("info").stdout)


def test_info_without_models(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(released, "RELEASED_FOLDER", tmp_path / "gone")
    monkeypatch.setattr("extensible_embedding.loading.EMBEDDED_PACKAGE", "no_such_package")
    result = run("info", "--json", models=False)
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["built_in_reader"] == facts["released_embedder"] == "not found"
    assert facts["reader"] == facts["embedder"] == "not found"


def test_info_of_a_reader_that_the_released_embedder_is_not_for(
    run: Run, fine_tuned: Path, embedder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(released, "RELEASED_FOLDER", embedder_folder)
    result = run("info", "--reader", fine_tuned, "--json", models=False)
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["reader"]["layers"] == 4
    assert facts["embedder"] == "the released embedder is made for another reader"
    models = ("--reader", fine_tuned, "--embedder", embedder_folder)
    assert run("info", *models, models=False).exit_code == 5
