"""`extensible check`: table, verdict, exit code, and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from logging import WARNING, getLogger
from pathlib import Path

import pytest
from conftest import byte_tokenizer, tiny_llama
from repeating import repeating_embedder, repeating_reader, repeating_texts
from typer.testing import CliRunner, Result

from extensible_embedding import Reader, released
from extensible_embedding.cli import app
from extensible_embedding.cli.console import quiet_libraries
from extensible_embedding.evals import compatibility

from .conftest import plain, refused

SHAPE = ("--context-tokens", "32", "--target-tokens", "8", "--num-targets", "8", "--k", "2,4")
Check = Callable[..., Result]


@pytest.fixture(scope="module")
def own_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(repeating_reader(), tmp_path_factory.mktemp("own"))


def saved(reader: Reader, folder: Path) -> Path:
    reader.model.save_pretrained(folder)
    reader.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def check(own_folder: Path, tmp_path: Path) -> Check:
    """Checks a reader against an embedder that names its own reader's folder."""
    repeating_embedder(Reader.from_pretrained(own_folder)).save_pretrained(tmp_path / "e")
    texts = repeating_texts(tmp_path / "one.parquet"), repeating_texts(tmp_path / "two.parquet")

    def check(*arguments: object) -> Result:
        words = ["check", *arguments, "--embedder", tmp_path / "e", "--data", *texts, *SHAPE]
        return CliRunner().invoke(app, [str(word) for word in words])

    return check


@pytest.fixture
def derivative(own_folder: Path, tmp_path: Path) -> Path:
    reader = Reader.from_pretrained(own_folder)
    reader.model.model.layers[3].mlp.up_proj.weight.data.mul_(1.02)
    return saved(reader, tmp_path / "derivative")


def test_a_derivative_is_kept(check: Check, derivative: Path) -> None:
    result = check(derivative, "--json", "out/found.json")
    assert result.exit_code == 0, result.output
    first, head, *rows, last = result.stdout.splitlines()
    assert "is a derivative of the embedder's own reader" in first
    assert "same sizes, the same tokenizer, other weights, token embeddings at a cosine" in first
    assert head.split() == ["domain", "k", "n", "own", "reader", "this", "reader", "kept"]
    assert [row.split()[:3] for row in rows[::2]] == [
        ["one", "2", "8"],
        ["two", "2", "8"],
        ["mean", "2", "16"],
    ]
    assert last.startswith("keep: at k=")
    report = json.loads(Path("out/found.json").read_text())
    assert report["configuration"]["data"] == ["one.parquet", "two.parquet"]
    assert report["configuration"]["scale_factors"] == [2, 4]
    [found] = report["records"]
    assert (found["verdict"], found["kinship"]["relation"]) == ("keep", "derivative")
    assert len(found["kept"]) == 6
    assert len(list(Path("out").glob("check-*.journal"))) == 2


def test_the_own_reader_is_loaded_and_measured_once(check: Check, own_folder: Path) -> None:
    result = check(own_folder, "--json", "found.json")
    assert result.exit_code == 0, result.output
    assert "is the embedder's own reader" in result.stdout
    assert "1.000 [1.00, 1.00]" in result.stdout
    assert len(list(Path().glob("check-*.journal"))) == 1


def test_exit_codes_tell_the_verdict(
    check: Check, derivative: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = tiny_llama().config
    wide.hidden_size, wide.head_dim = 64, 16
    model = type(tiny_llama())(wide)
    result = check(saved(Reader(model, byte_tokenizer()), tmp_path / "w"), "--json", "w.json")
    assert result.exit_code == 5
    assert "incompatible: An embedder serves readers of its own hidden size" in result.stdout
    assert json.loads(Path("w.json").read_text())["records"][0]["verdict"] == "incompatible"
    monkeypatch.setattr(compatibility, "KEEP_SHARE", 5.0)
    result = check(derivative)
    assert result.exit_code == 8
    assert result.stdout.splitlines()[-1].startswith("re-train: at k=")


def test_the_own_reader_may_be_named(
    check: Check, own_folder: Path, derivative: Path, tmp_path: Path
) -> None:
    moved = saved(Reader.from_pretrained(own_folder), tmp_path / "moved")
    assert check(derivative, "--own", moved).exit_code == 0
    refused(check(derivative, "--own", saved(repeating_reader(5), tmp_path / "o")), 5, "trained")
    refused(check(derivative, "--own", tmp_path / "gone"), 2, "'" + str(tmp_path / "gone"))


def test_an_own_reader_that_is_gone(check: Check, derivative: Path, own_folder: Path) -> None:
    hidden = own_folder.rename(own_folder.with_name("hidden"))
    try:
        refused(check(derivative), 2, "it was trained with", str(own_folder), "name it with --own.")
    finally:
        hidden.rename(own_folder)


def test_a_missing_release_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, derivative: Path, own_folder: Path
) -> None:
    monkeypatch.setattr(released, "RELEASED_FOLDER", tmp_path / "gone")
    texts = repeating_texts(tmp_path / "one.parquet")
    words = ["check", str(derivative), "--data", str(texts), "--own", str(own_folder), *SHAPE]
    refused(CliRunner().invoke(app, words), 2, "this installation has none")


@pytest.mark.usefixtures("no_reader")
def test_refusals_come_before_anything_is_loaded(tmp_path: Path) -> None:
    def run(*words: str) -> Result:
        return CliRunner().invoke(app, ["check", *words])

    texts = str(repeating_texts(tmp_path / "one.parquet"))
    refused(run("--data", texts, texts, "reader"), 2, "READER stands before --data")
    refused(run("reader", "--data", "gone.parquet"), 2, "no file 'gone.parquet'")
    refused(run("reader", "--data", texts, "--k", "2,x"), 2, "'x'")
    refused(run("reader", "--data", texts, "--k", "auto"), 2, "'auto'")
    refused(run("reader", "--data", texts, "--k", ","), 2, "--k needs scale factors")
    refused(run("reader", "--data", texts, "--k", "1,4"), 2, "each 2 or more")
    refused(run("reader", "--data", texts, "--num-targets", "0"), 2, "--num-targets")
    refused(run("reader", "--data", texts, "--json", f"{texts}/out.json"), 2, "--json")
    for option in ("--reader", "--derivative"):
        assert "No such option" in plain(run("reader", "--data", texts, option).output)


def test_quantised_layers_that_cast_do_not_tell_of_it_each_time() -> None:
    logger = getLogger("bitsandbytes")
    level = logger.level
    with quiet_libraries():
        assert not logger.isEnabledFor(WARNING)
    assert logger.level == level
