"""The commands that make derivatives, and the table of what was found on them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import byte_tokenizer
from repeating import repeating_embedder, repeating_reader, repeating_texts
from typer.testing import CliRunner, Result

from extensible_embedding import ExtensibleEmbedder, Reader
from extensible_embedding.evals.compatibility import Plan, check_compatibility
from extensible_embedding.evals.kinship import DERIVATIVE, OWN, compare_readers
from extensible_embedding.evals.records import write_records

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
BUDGET = ("--steps", "2", "--batch-size", "2", "--tokens", "32")
Derive = Callable[..., Result]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(SCRIPTS)
    return import_module


@pytest.fixture
def derive(script: Callable[[str], ModuleType]) -> Derive:
    app = script("make_derivatives").app
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def own_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, reader = tmp_path_factory.mktemp("own"), repeating_reader()
    reader.model.save_pretrained(folder)
    reader.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return repeating_texts(tmp_path / "code.parquet")


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    columns = {
        "context": ["a long context " * 9, "short"],
        "gold_context": ["", "shorter"],
        "question": ["What?", "Who?"],
        "answers": [["that"], ["she", "he"]],
    }
    pq.write_table(pa.table(columns), tmp_path / "q.parquet")
    return tmp_path / "q.parquet"


def made(result: Result, folder: Path, own_folder: Path) -> str:
    """What the derivative is to its base."""
    assert result.exit_code == 0, result.output
    assert f"Wrote {folder}" in result.stdout
    own, reader = (Reader.from_pretrained(each) for each in (own_folder, folder))
    assert reader.tokenizer.chat_template == own.tokenizer.chat_template
    return compare_readers(own, reader).relation


def test_the_base_is_the_reader_as_a_folder(
    derive: Derive, own_folder: Path, tmp_path: Path
) -> None:
    result = derive("base", tmp_path / "base", "--reader", own_folder)
    assert made(result, tmp_path / "base", own_folder) == OWN


def test_a_model_that_was_told_of_its_quantisation_becomes_a_plain_one(
    script: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    reader = repeating_reader(steps=0)
    reader.model.config.quantization_config = {"quant_method": "gguf"}
    plain = script("make_derivatives")._plain_copy(reader)
    assert not hasattr(plain.config, "quantization_config")
    assert hasattr(reader.model.config, "quantization_config")
    weights = plain.state_dict()
    assert all(torch.equal(weights[n], w) for n, w in reader.model.state_dict().items())


def test_a_full_fine_tune(derive: Derive, own_folder: Path, texts: Path, tmp_path: Path) -> None:
    result = derive("full", own_folder, tmp_path / "full", "--data", texts, *BUDGET)
    assert made(result, tmp_path / "full", own_folder) == DERIVATIVE


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_and_the_merged_model(
    derive: Derive, own_folder: Path, texts: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    adapter, merged = tmp_path / "lora", tmp_path / "merged"
    words = ("--data", texts, "--merged", merged, "--learning-rate", "0.05", *BUDGET)
    result = derive("lora", own_folder, adapter, *words)
    assert made(result, adapter, own_folder) == DERIVATIVE
    assert made(result, merged, own_folder) == DERIVATIVE
    names = {file.name for file in adapter.iterdir()}
    assert "adapter_config.json" in names
    assert "model.safetensors" not in names


@pytest.mark.filterwarnings("ignore")  # of trl and what it imports, which differ by version
def test_an_instruct_tune(
    derive: Derive, own_folder: Path, questions: Path, tmp_path: Path
) -> None:
    pytest.importorskip("trl")
    words = ("--data", questions, *BUDGET[:4], "--tokens", "128")
    result = derive("instruct", own_folder, tmp_path / "instruct", *words)
    assert made(result, tmp_path / "instruct", own_folder) == DERIVATIVE


def test_eight_bits(derive: Derive, own_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    result = derive("quantise", own_folder, tmp_path / "int8", "--bits", "8")
    assert made(result, tmp_path / "int8", own_folder) == DERIVATIVE


def test_questions_become_dialogues_with_the_part_that_holds_the_answer(
    script: Callable[[str], ModuleType], questions: Path
) -> None:
    module = script("make_derivatives")
    budget = module.Budget(steps=3, batch_size=2, tokens=8, learning_rate=1e-4, seed=0)
    dialogues = module._dialogues(questions, budget)
    assert dialogues == 6 * [  # the other context is too long
        {
            "prompt": [{"role": "user", "content": "shorter\n\nWho?"}],
            "completion": [{"role": "assistant", "content": "she"}],
        }
    ]


def refused(result: Result, code: int, *words: str) -> None:
    assert result.exit_code == code, result.output
    for word in words:
        assert word in result.stderr


def test_what_cannot_be_made_is_told(
    derive: Derive,
    own_folder: Path,
    texts: Path,
    questions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    refused(derive("quantise", own_folder, out, "--bits", "5"), 2, "--bits is 4 or 8, but it is 5")
    refused(derive("full", tmp_path / "gone", out, "--data", texts), 2, "gone' cannot be loaded")
    refused(derive("full", own_folder, out, "--data", "gone.parquet"), 2, "gone.parquet")
    for name in ("peft", "trl", "bitsandbytes"):
        monkeypatch.setitem(sys.modules, name, None)
    for words in (["lora", own_folder, out, "--data", texts], ["quantise", own_folder, out]):
        refused(derive(*words), 7, "which is not installed", "pip install -e '.[derivatives]'")
    refused(derive("instruct", own_folder, out, "--data", questions), 7, "needs the package trl")
    assert not out.exists()


def test_questions_that_cannot_be_used_are_told(
    script: Callable[[str], ModuleType],
    derive: Derive,
    texts: Path,
    questions: Path,
    tmp_path: Path,
) -> None:
    errors = import_module("extensible_embedding.errors")
    module = script("make_derivatives")
    budget = module.Budget(steps=1, batch_size=1, tokens=2, learning_rate=1e-4, seed=0)
    with pytest.raises(errors.InputError, match=r"columns `context`, .*'answers'"):
        module._dialogues(texts, budget)
    with pytest.raises(errors.InputError, match=r"fit 2 tokens, but none .*; give more --tokens"):
        module._dialogues(questions, budget)


@pytest.fixture
def results(tmp_path: Path, texts: Path) -> Path:
    own = repeating_reader()
    other = repeating_reader()
    other.model.model.layers[3].mlp.up_proj.weight.data.mul_(1.05)
    unfit = Reader(own.model, byte_tokenizer(), name="unfit")
    unfit.tokenizer.add_tokens(["return"])
    embedder: ExtensibleEmbedder = repeating_embedder(own)
    plan = Plan(
        data=[texts], scale_factors=[2, 4], context_tokens=32, target_tokens=8, num_targets=8
    )
    settings: dict[str, Any] = {
        "embedder": "released",
        "data": ["code.parquet"],
        "scale_factors": [2, 4],
        "context_tokens": 32,
        "target_tokens": 8,
        "num_targets": 8,
        "seed": 0,
    }
    for name, reader in (("full", other), ("unfit", unfit)):
        found = check_compatibility(embedder, reader, plan)
        write_records([found], tmp_path / "results" / f"{name}.json", configuration=settings)
    return tmp_path / "results"


def test_the_table_has_a_row_for_each_result(
    script: Callable[[str], ModuleType], results: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    table = script("compatibility_table")
    page = tmp_path / table.PAGE
    page.parent.mkdir()
    page.write_text("before\n<!-- numbers:begin -->\nold\n<!-- numbers:end -->\nafter\n")
    monkeypatch.setattr("release.ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["compatibility_table.py", str(results)])
    table.main()
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert [len(row) for row in rows] == [6] * 4
    assert rows[0][2:4] == ["kept at k=2", "kept at k=4"]
    assert rows[2][:2] == ["| full", "derivative"]
    assert " to " in rows[2][3]
    assert rows[3] == ["| unfit", "another", "-", "-", "- to -", "incompatible |"]
    assert "`extensible check READER --data code.parquet --k 2,4 --context-tokens 32" in text


def test_results_that_were_measured_differently_are_refused(
    script: Callable[[str], ModuleType], results: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    table = script("compatibility_table")
    report = json.loads((results / "full.json").read_text())
    report["configuration"]["seed"] = 1
    (results / "full.json").write_text(json.dumps(report))
    for folder, words in ((results, "differ in configuration"), (tmp_path, "no .json file")):
        monkeypatch.setattr(sys, "argv", ["compatibility_table.py", str(folder)])
        with pytest.raises(SystemExit, match=words):
            table.main()
