"""An embedder comes back from disk and from the hub as it went, or rounded by a known bound."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import make_embedder
from huggingface_hub import ModelHubMixin
from safetensors.torch import load_file

from extensible_embedding import CheckpointError, ExtensibleEmbedder, InputError, Reader
from extensible_embedding.checkpoint import CONFIG, MODEL_CARD, WEIGHTS, own_weights
from extensible_embedding.int8 import dequantize

IDS = list(range(40))


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def perturbed(reader: Reader, **settings: object) -> ExtensibleEmbedder:
    """An embedder none of whose weights is as from_reader leaves it."""
    embedder = make_embedder(reader, **settings)
    torch.manual_seed(2)
    with torch.no_grad():
        for weight in own_weights(embedder).values():
            weight.add_(torch.randn_like(weight), alpha=0.01)
    return embedder


@pytest.mark.parametrize(
    "settings",
    [{}, {"residual": False}, {"final_norm": False}, {"num_layers": 1, "down_sampling": "mean"}],
)
def test_float_round_trip(tmp_path: Path, tiny_reader: Reader, settings: dict[str, Any]) -> None:
    embedder = perturbed(tiny_reader, **settings)
    embedder.training_record = {"tokens": 7}
    embedder.save_pretrained(tmp_path / "e")
    assert names(tmp_path / "e") == [CONFIG, WEIGHTS]
    loaded = ExtensibleEmbedder.from_pretrained(tmp_path / "e", tiny_reader)
    assert loaded.config == embedder.config
    assert loaded.training_record == {"tokens": 7}
    assert not loaded.training
    for name, weight in own_weights(embedder).items():
        assert torch.equal(weight, own_weights(loaded)[name]), name
    rows = [e.compress(IDS, k=4).rows for e in (embedder, loaded)]
    assert torch.equal(*rows)


def test_the_fingerprint_follows_configuration_and_weights(
    tmp_path: Path, tiny_reader: Reader
) -> None:
    embedder = perturbed(tiny_reader)
    embedder.save_pretrained(tmp_path / "e")
    loaded = ExtensibleEmbedder.from_pretrained(str(tmp_path / "e"), tiny_reader)
    assert loaded.fingerprint == embedder.fingerprint
    loaded.save_pretrained(tmp_path / "e")
    again = ExtensibleEmbedder.from_pretrained(tmp_path / "e", tiny_reader)
    assert again.fingerprint == embedder.fingerprint
    assert make_embedder(tiny_reader).fingerprint != embedder.fingerprint
    other = perturbed(tiny_reader, down_sampling="mean")
    assert other.fingerprint != embedder.fingerprint
    assert embedder.to(torch.bfloat16).fingerprint != again.fingerprint


@pytest.mark.parametrize("residual", [True, False])
def test_int8_is_within_half_a_step_of_each_channel(
    tmp_path: Path, tiny_reader: Reader, residual: bool
) -> None:
    embedder = perturbed(tiny_reader, residual=residual)
    embedder.save_pretrained(tmp_path / "float")
    embedder.save_pretrained(tmp_path / "int8", int8=True)
    sizes = [(tmp_path / name / WEIGHTS).stat().st_size for name in ("float", "int8")]
    assert sizes[1] < 0.4 * sizes[0]
    assert json.loads((tmp_path / "int8" / CONFIG).read_text())["int8"] is True
    loaded = ExtensibleEmbedder.from_pretrained(tmp_path / "int8", tiny_reader)
    for name, weight in own_weights(embedder).items():
        kept = own_weights(loaded)[name]
        if weight.ndim == 2:
            step = weight.abs().amax(dim=1, keepdim=True) / 127
            assert ((weight - kept).abs() <= step * 0.5001).all(), name
        else:
            assert torch.equal(weight, kept), name


def test_int8_keeps_channels_of_zeros(tmp_path: Path, tiny_reader: Reader) -> None:
    untrained = ExtensibleEmbedder.from_reader(
        tiny_reader, 1, chunk_tokens=16, projection_start=0.0
    )
    untrained.save_pretrained(tmp_path / "e", int8=True)
    loaded = ExtensibleEmbedder.from_pretrained(tmp_path / "e", tiny_reader)
    assert not loaded.projection.weight.any()


def test_the_table_of_token_embeddings_is_not_saved(
    tmp_path: Path, tiny_embedder: ExtensibleEmbedder
) -> None:
    tiny_embedder.save_pretrained(tmp_path / "e")
    assert set(load_file(tmp_path / "e" / WEIGHTS)) == set(own_weights(tiny_embedder))
    assert not [name for name in own_weights(tiny_embedder) if "embed_tokens" in name]


def test_the_model_card_is_written_and_kept(
    tmp_path: Path, tiny_embedder: ExtensibleEmbedder
) -> None:
    folder = tmp_path / "e"
    tiny_embedder.save_pretrained(folder, model_card="# Card, na\u00efve\n")
    tiny_embedder.save_pretrained(folder)
    assert (folder / MODEL_CARD).read_text(encoding="utf-8") == "# Card, na\u00efve\n"
    tiny_embedder.save_pretrained(folder, model_card="# New\n")
    assert (folder / MODEL_CARD).read_text() == "# New\n"
    assert names(folder) == [MODEL_CARD, CONFIG, WEIGHTS]


def test_the_reader_is_loaded_by_the_name_that_is_kept(
    tmp_path: Path, tiny_reader_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = perturbed(Reader.from_pretrained(tiny_reader_folder))
    embedder.save_pretrained(tmp_path / "e")
    loaded = ExtensibleEmbedder.from_pretrained(tmp_path / "e")
    assert loaded.reader.name == str(tiny_reader_folder)
    assert torch.equal(loaded.compress(IDS, k=4).rows, embedder.compress(IDS, k=4).rows)
    config = json.loads((tmp_path / "e" / CONFIG).read_text())
    config["reader"]["name"] = "SmolLM2-135M-Instruct"
    (tmp_path / "e" / CONFIG).write_text(json.dumps(config))
    asked: list[str] = []

    def load(name: str) -> Reader:
        asked.append(name)
        return embedder.reader

    monkeypatch.setattr(Reader, "from_pretrained", load)
    ExtensibleEmbedder.from_pretrained(tmp_path / "e")
    assert asked == ["default"]


def test_a_reader_that_cannot_be_loaded(tmp_path: Path, tiny_reader: Reader) -> None:
    perturbed(Reader(tiny_reader.model, tiny_reader.tokenizer, name="no/such")).save_pretrained(
        tmp_path / "e"
    )
    with pytest.raises(InputError) as caught:
        ExtensibleEmbedder.from_pretrained(tmp_path / "e")
    folder = str(tmp_path / "e")
    assert str(caught.value) == (
        f"{folder!r} was trained with 'no/such', which is to be loaded with it, but it cannot be "
        "('no/such' cannot be loaded as a causal language model); give the reader: "
        f"from_pretrained({folder!r}, reader)."
    )


@pytest.mark.parametrize("config", ['{"model_type": "bert"}', "{", "[]"])
def test_a_model_of_another_kind_is_not_replaced(
    tmp_path: Path, tiny_embedder: ExtensibleEmbedder, config: str
) -> None:
    (tmp_path / CONFIG).write_text(config)
    (tmp_path / WEIGHTS).write_bytes(b"bert")
    with pytest.raises(InputError, match="only an older embedder, .* is of something else; choose"):
        tiny_embedder.save_pretrained(tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() == b"bert"
    assert (tmp_path / CONFIG).read_text() == config


@pytest.mark.parametrize(
    ("matrix", "scale"),
    [
        (torch.ones((), dtype=torch.int8), torch.ones(1, 1)),
        (torch.ones(3, dtype=torch.int8), torch.ones(3, 1)),
        (torch.ones(3, 2), torch.ones(3, 1)),
        (torch.ones(3, 2, dtype=torch.int8), torch.ones(3)),
        (torch.ones(3, 2, dtype=torch.int8), torch.ones(3, 1, dtype=torch.int64)),
    ],
)
def test_what_is_no_int8_matrix_is_refused(matrix: torch.Tensor, scale: torch.Tensor) -> None:
    with pytest.raises(CheckpointError, match="one scale an output channel, but 'a' has not"):
        dequantize({"a.int8": matrix, "a.scale": scale})


def test_a_fine_tune_of_the_reader_is_taken_on_demand(
    tmp_path: Path, tiny_reader: Reader, tiny_embedder: ExtensibleEmbedder
) -> None:
    model = copy.deepcopy(tiny_reader.model)
    model.get_input_embeddings().weight.data.add_(0.1)
    tiny_embedder.save_pretrained(tmp_path / "e")
    derivative = Reader(model, tiny_reader.tokenizer, name="fine-tune")
    loaded = ExtensibleEmbedder.from_pretrained(tmp_path / "e", derivative, derivative=True)
    assert loaded.reader is derivative


class FakeHub:
    """Takes the place of HfApi; keeps what it is given, in reach of the test."""

    calls: list[tuple[str, Any]] = []
    files: dict[str, bytes] = {}
    error: Exception | None = None

    def __init__(self, token: str | None = None) -> None:
        self.calls.append(("token", token))

    def create_repo(self, repo_id: str, **settings: Any) -> Any:
        if self.error is not None:
            raise self.error
        self.calls.append(("create_repo", settings))
        return SimpleNamespace(repo_id=repo_id if "/" in repo_id else f"me/{repo_id}")

    def upload_folder(self, *, folder_path: Path, repo_id: str, **settings: Any) -> str:
        self.calls.append(("upload_folder", settings))
        self.files.update({file.name: file.read_bytes() for file in Path(folder_path).iterdir()})
        return f"https://hub/{repo_id}/commit/1"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[FakeHub]:
    monkeypatch.setattr("extensible_embedding.checkpoint.HfApi", FakeHub)
    monkeypatch.setattr(FakeHub, "calls", [])
    monkeypatch.setattr(FakeHub, "files", {})
    monkeypatch.setattr(FakeHub, "error", None)
    return FakeHub


def test_push_to_hub(tmp_path: Path, tiny_embedder: ExtensibleEmbedder, hub: type[FakeHub]) -> None:
    address = tiny_embedder.push_to_hub(
        "me/e", int8=True, model_card="# Card\n", token="t", private=True, branch="b"
    )
    assert address == "https://hub/me/e/commit/1"
    tiny_embedder.save_pretrained(tmp_path / "e", int8=True, model_card="# Card\n")
    assert hub.files == {file.name: file.read_bytes() for file in (tmp_path / "e").iterdir()}
    calls = dict(hub.calls)
    assert calls["token"] == "t"
    assert calls["create_repo"] == {"private": True, "exist_ok": True}
    assert calls["upload_folder"]["revision"] == "b"


def test_save_and_push_gives_the_hub_the_folder_that_was_saved(
    tmp_path: Path, tiny_embedder: ExtensibleEmbedder, hub: type[FakeHub], tiny_reader: Reader
) -> None:
    folder = tmp_path / "named"
    tiny_embedder.save_pretrained(
        folder, int8=True, model_card="# Card\n", training={"tokens": 3}, push_to_hub=True
    )
    assert hub.files == {file.name: file.read_bytes() for file in folder.iterdir()}
    assert json.loads(hub.files[CONFIG])["training"] == {"tokens": 3}
    again = tmp_path / "downloaded"
    again.mkdir()
    for name, data in hub.files.items():
        (again / name).write_bytes(data)
    ExtensibleEmbedder.from_pretrained(again, tiny_reader)


def test_the_hub_refuses(tiny_embedder: ExtensibleEmbedder, hub: type[FakeHub]) -> None:
    hub.error = RuntimeError("401\nUnauthorized.")
    with pytest.raises(InputError) as caught:
        tiny_embedder.push_to_hub("me/e")
    assert str(caught.value) == (
        "Pushing needs a hub that can be reached and a token that may write, but 'me/e' failed "
        "(RuntimeError: 401 Unauthorized); check the name and `hf auth login`."
    )


def test_misspelt_settings_are_not_dropped(
    tmp_path: Path, tiny_embedder: ExtensibleEmbedder, hub: type[FakeHub]
) -> None:
    with pytest.raises(TypeError, match="int_8"):
        tiny_embedder.save_pretrained(tmp_path / "e", int_8=True)
    with pytest.raises(TypeError, match="privat"):
        tiny_embedder.push_to_hub("me/e", privat=True)
    assert not (tmp_path / "e").exists()


def test_the_config_of_the_hub_mixin_is_never_written(
    tmp_path: Path, tiny_embedder: ExtensibleEmbedder
) -> None:
    # ModelHubMixin.__new__ keeps the dataclass `config`, which its own save would write.
    assert isinstance(tiny_embedder, ModelHubMixin)
    for save in (tiny_embedder.save_pretrained, tiny_embedder._save_pretrained):
        save(tmp_path / "e")
        config = json.loads((tmp_path / "e" / CONFIG).read_text())
        assert set(config) == {"format_version", "embedder", "reader", "training", "int8"}


@pytest.mark.parametrize("name", ["nobody/nothing", "nothing", "no/such/folder", "a b"])
def test_a_hub_id_that_cannot_be_reached(tiny_reader: Reader, name: str) -> None:
    with pytest.raises(InputError) as caught:
        ExtensibleEmbedder.from_pretrained(name, tiny_reader)
    message = str(caught.value)
    assert message.startswith(f"{name!r} is neither a folder nor a hub id that can be reached (")
    assert message.endswith("); check the name and the connection.")


def test_only_our_files_are_downloaded(
    tmp_path: Path,
    tiny_reader: Reader,
    tiny_embedder: ExtensibleEmbedder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tiny_embedder.save_pretrained(tmp_path / "e")
    asked: dict[str, Any] = {}

    def download(repo_id: str, **settings: Any) -> str:
        asked.update(settings, repo_id=repo_id)
        return str(tmp_path / "e")

    monkeypatch.setattr("extensible_embedding.checkpoint.snapshot_download", download)
    ExtensibleEmbedder.from_pretrained("me/e", tiny_reader, revision="v1", token="t")
    assert asked == {
        "repo_id": "me/e",
        "revision": "v1",
        "token": "t",
        "allow_patterns": [CONFIG, WEIGHTS, MODEL_CARD],
    }


def test_a_diverged_embedder_does_not_replace_a_good_one(
    tmp_path: Path, tiny_reader: Reader
) -> None:
    embedder = make_embedder(tiny_reader)
    embedder.save_pretrained(tmp_path / "e")
    fingerprint = embedder.fingerprint
    with torch.no_grad():
        next(iter(own_weights(embedder).values())).view(-1)[0] = float("nan")
    with pytest.raises(CheckpointError, match="the embedder to save has NaN"):
        embedder.save_pretrained(tmp_path / "e")
    loaded = ExtensibleEmbedder.from_pretrained(tmp_path / "e", tiny_reader)
    assert loaded.fingerprint == fingerprint
