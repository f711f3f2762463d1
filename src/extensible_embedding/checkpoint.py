"""Embedders on disk and on the hub.

In: an embedder. Out: a folder with config.json and model.safetensors, float or int8 (one scale an
output channel), and the way back. Knows how weights are kept, not what they compute.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from huggingface_hub import HfApi, ModelHubMixin, snapshot_download
from safetensors.torch import save_file
from torch import Tensor

from .errors import CheckpointError, InputError, MismatchError
from .folders import check_settled, read_json, read_tensors, whole_folder, write_json
from .int8 import dequantize, quantize
from .loading import EMBEDDED_LABEL, EMBEDDED_NAME
from .reader import HASH_DIGITS, Reader

if TYPE_CHECKING:
    from .embedder import EmbedderConfig, ExtensibleEmbedder

FORMAT_VERSION = 1
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
MODEL_CARD = "README.md"
_FILES = (CONFIG, WEIGHTS, MODEL_CARD)
_SETTINGS = {"embedder": dict, "reader": dict, "training": dict, "int8": bool}


class EmbedderHubMixin(ModelHubMixin):
    """save_pretrained, from_pretrained and push_to_hub for the embedder."""

    def save_pretrained(  # type: ignore[override]
        self,
        folder: str | Path,
        *,
        int8: bool = False,
        training: dict[str, Any] | None = None,
        model_card: str | None = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        **hub: Any,
    ) -> None:
        """Writes config.json and model.safetensors, whole or not at all.

        Args:
            folder: where; an older checkpoint there is replaced.
            int8: keep matrices as int8 with one scale an output channel, a quarter of the bytes.
            training: what the weights were trained on (tokens, steps), kept with them.
            model_card: text of README.md.
            repo_id: hub id to push to, by default the folder's name.
            push_to_hub: push the folder afterwards.
            hub: how to push: private, token, branch, create_pr, commit_message.

        Raises:
            StorageError: the disk is full or not writable.
            InputError: the folder holds something else, or the hub refused.
            CheckpointError: a weight is not finite; the older checkpoint stays.
        """
        if hub and not push_to_hub:
            raise TypeError(f"save_pretrained() knows no {sorted(hub)} without push_to_hub=True")
        embedder = cast("ExtensibleEmbedder", self)
        save_weights(
            own_weights(embedder),
            embedder,
            Path(folder),
            int8=int8,
            training=training,
            model_card=model_card,
        )
        if push_to_hub:
            _upload(Path(folder), repo_id or Path(folder).resolve().name, **hub)

    def _save_pretrained(self, save_directory: Path) -> None:
        self.save_pretrained(save_directory)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        int8: bool = False,
        training: dict[str, Any] | None = None,
        model_card: str | None = None,
        **hub: Any,
    ) -> str:
        """Uploads what `save_pretrained` writes; the repository is made where there is none.

        Args:
            repo_id: hub id, such as "name/embedder".
            int8: as for `save_pretrained`.
            training: as for `save_pretrained`.
            model_card: as for `save_pretrained`.
            hub: how to push: private, token, branch, create_pr, commit_message.

        Returns:
            The address of the commit.

        Raises:
            InputError: the hub cannot be reached, or refused.
        """
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / "embedder"
            self.save_pretrained(folder, int8=int8, training=training, model_card=model_card)
            return _upload(folder, repo_id, **hub)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        folder_or_id: str | Path,
        reader: Reader | None = None,
        *,
        derivative: bool = False,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> ExtensibleEmbedder:
        """Loads an embedder for the reader it was trained with.

        Args:
            folder_or_id: a folder that `save_pretrained` wrote, or a hub id.
            reader: the reader it was trained with; by default loaded by the name that the
                embedder keeps of it.
            derivative: accept a reader of the same shape with other weights, such as a fine-tune.
            revision: branch, tag or commit on the hub.
            token: access token of the hub.

        Raises:
            InputError: there is no such folder or hub id, or its reader cannot be loaded.
            CheckpointError: the folder is incomplete, damaged or unsafe.
            MismatchError: the embedder was made for another reader.
        """
        folder = _local_folder(folder_or_id, revision=revision, token=token)
        settings = read_json(folder / CONFIG, "an embedder")
        config = _read_config(settings, folder)
        reader = reader or _load_reader(trained_for(folder), str(folder_or_id))
        check_reader(settings["reader"], reader, derivative=derivative, name=str(folder_or_id))
        tensors = dequantize(read_tensors(folder / WEIGHTS, "an embedder"))
        from .embedder import ExtensibleEmbedder

        try:
            embedder = ExtensibleEmbedder(config, reader, copy_weights=False)
        except InputError as error:
            raise MismatchError(
                f"{str(folder_or_id)!r} does not fit {reader.name!r} ({str(error).rstrip('.')}); "
                f"use the reader that it was trained with ({settings['reader'].get('name')})."
            ) from error
        load_weights(embedder, tensors, str(folder))
        embedder.training_record = settings["training"]
        return embedder.eval()


def save_weights(
    weights: dict[str, Tensor],
    embedder: ExtensibleEmbedder,
    folder: Path,
    *,
    int8: bool = False,
    training: dict[str, Any] | None = None,
    model_card: str | None = None,
) -> None:
    """What `save_pretrained` writes, with weights by name that may have been kept elsewhere."""
    weights = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    _check_finite(weights, "the embedder to save")
    _check_ours(folder)
    settings = {
        "format_version": FORMAT_VERSION,
        "embedder": dataclasses.asdict(embedder.config),
        "reader": describe_reader(embedder.reader),
        "training": training if training is not None else embedder.training_record,
        "int8": int8,
    }
    with whole_folder(folder) as temporary:
        _keep_card(folder, temporary, model_card)
        save_file(quantize(weights) if int8 else weights, temporary / WEIGHTS)
        write_json(temporary / CONFIG, settings)


def trained_for(folder_or_id: str | Path) -> str:
    """The reader that an embedder was trained with, by the name that `Reader` loads it by.

    Raises:
        InputError: there is no such folder or hub id.
        CheckpointError: the folder is incomplete or damaged.
    """
    folder = _local_folder(folder_or_id)
    settings = read_json(folder / CONFIG, "an embedder")
    _read_config(settings, folder)
    wanted = str(settings["reader"].get("name"))
    return EMBEDDED_NAME if wanted == EMBEDDED_LABEL else wanted


def _load_reader(wanted: str, name: str) -> Reader:
    """The reader that an embedder names."""
    try:
        return Reader.from_pretrained(wanted)
    except InputError as error:
        raise InputError(
            f"{name!r} was trained with {wanted!r}, which is to be loaded with it, but it cannot "
            f"be ({str(error).split(' (')[0]}); give the reader: from_pretrained({name!r}, reader)."
        ) from error


def _check_ours(folder: Path) -> None:
    """A model of transformers has files of the same names: it is not ours to replace."""
    if not (folder / CONFIG).is_file():
        return
    try:
        old = read_json(folder / CONFIG, "an embedder")
    except CheckpointError:
        old = {}
    if not {"format_version", "embedder"} <= set(old):
        raise InputError(
            f"A save replaces only an older embedder, but {CONFIG} in {str(folder)!r} is of "
            "something else; choose another folder."
        )


def own_weights(embedder: ExtensibleEmbedder) -> dict[str, Tensor]:
    """The embedder's weights by name, without the empty table of token embeddings."""
    table = embedder.layers.get_input_embeddings().weight  # type: ignore[operator]
    weights = embedder.state_dict(keep_vars=True)
    return {name: weight for name, weight in weights.items() if weight is not table}


def load_weights(embedder: ExtensibleEmbedder, tensors: dict[str, Tensor], origin: str) -> None:
    """Copies weights by name into the embedder.

    Raises:
        CheckpointError: as `check_weights`.
    """
    check_weights(embedder, tensors, origin)
    with torch.no_grad():
        for name, weight in own_weights(embedder).items():
            weight.copy_(tensors[name])


def check_weights(embedder: ExtensibleEmbedder, tensors: dict[str, Tensor], origin: str) -> None:
    """Raises CheckpointError if a weight is missing, unknown, of another shape or not finite."""
    expected = own_weights(embedder)
    wrong = sorted(set(expected) ^ set(tensors)) or [
        name
        for name in expected
        if expected[name].shape != tensors[name].shape or not tensors[name].is_floating_point()
    ]
    if wrong:
        raise CheckpointError(
            f"The weights in {origin!r} do not match their own config.json (first: {wrong[0]!r}); "
            "copy or train the checkpoint again."
        )
    _check_finite(tensors, repr(origin))


def _check_finite(tensors: dict[str, Tensor], origin: str) -> None:
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(
            f"Weights are finite numbers, but {broken[0]!r} in {origin} has NaN or infinity; "
            "go back to an earlier checkpoint."
        )


def describe_reader(reader: Reader) -> dict[str, Any]:
    """What ties an embedder to its reader."""
    return {
        "name": reader.name,
        "fingerprint": reader.fingerprint,
        "hidden_size": reader.hidden_size,
        "vocab_size": reader.vocab_size,
    }


def check_reader(made_for: dict[str, Any], reader: Reader, *, derivative: bool, name: str) -> None:
    """Raises MismatchError unless the reader is the one described, or a derivative if allowed."""
    for field in ("hidden_size", "vocab_size"):
        if made_for.get(field) != getattr(reader, field):
            raise MismatchError(
                f"An embedder serves readers of its own {field.replace('_', ' ')}, "
                f"{made_for.get(field)}, but {reader.name!r} has {getattr(reader, field)}; use the "
                f"reader that {name!r} was trained with ({made_for.get('name')})."
            )
    fingerprint = str(made_for.get("fingerprint"))
    if not derivative and not reader.is_same(fingerprint):
        raise MismatchError(
            f"{name!r} was trained with {made_for.get('name')} (fingerprint "
            f"{fingerprint[:HASH_DIGITS]}), but {reader.name!r} has "
            f"{reader.fingerprint[:HASH_DIGITS]}; use that reader, or pass derivative=True if this "
            "one is a fine-tune of it."
        )


def _keep_card(folder: Path, temporary: Path, card: str | None) -> None:
    if card is not None:
        (temporary / MODEL_CARD).write_text(card, encoding="utf-8")
    elif (folder / MODEL_CARD).is_file():
        shutil.copyfile(folder / MODEL_CARD, temporary / MODEL_CARD)


def _local_folder(folder_or_id: str | Path, **hub: Any) -> Path:
    folder = Path(folder_or_id)
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise CheckpointError(
            f"An embedder is a folder with {CONFIG} and {WEIGHTS}, but {str(folder)!r} is a file; "
            "give the folder that save_pretrained() wrote."
        )
    check_settled(folder)
    try:
        return Path(snapshot_download(str(folder_or_id), allow_patterns=list(_FILES), **hub))
    except Exception as error:  # of the hub, its HTTP client or the cache's disk: no common base
        raise InputError(
            f"{str(folder_or_id)!r} is neither a folder nor a hub id that can be reached "
            f"({type(error).__name__}); check the name and the connection."
        ) from error


def _upload(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    branch: str | None = None,
    create_pr: bool | None = None,
    commit_message: str = "Upload an extensible embedder",
) -> str:
    try:
        api = HfApi(token=token)
        made = api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            allow_patterns=list(_FILES),
            revision=branch,
            create_pr=create_pr,
            commit_message=commit_message,
        )
    except Exception as error:  # as above
        reason = " ".join(str(error).split()).rstrip(".")
        raise InputError(
            f"Pushing needs a hub that can be reached and a token that may write, but "
            f"{repo_id!r} failed ({type(error).__name__}: {reason}); check the name and "
            "`hf auth login`."
        ) from error
    return str(commit)


def _read_config(settings: dict[str, Any], folder: Path) -> EmbedderConfig:
    from .embedder import EmbedderConfig

    version = settings.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"Embedders of format version {FORMAT_VERSION} can be read, but {str(folder)!r} has "
            f"version {version}; train or download it again."
        )
    for key in sorted({*_SETTINGS, *settings} - {"format_version"}):
        kind = _SETTINGS.get(key)
        if kind is None or not isinstance(settings.get(key), kind):
            raise CheckpointError(_not_a_config(folder, f"{key!r} is {settings.get(key)!r}"))
    try:
        config = EmbedderConfig(**settings["embedder"])
    except (TypeError, InputError) as error:
        raise CheckpointError(_not_a_config(folder, str(error).rstrip("."))) from error
    for key in ("residual", "final_norm"):
        if not isinstance(getattr(config, key), bool):
            raise CheckpointError(_not_a_config(folder, f"{key!r} is {getattr(config, key)!r}"))
    return config


def _not_a_config(folder: Path, reason: str) -> str:
    return (
        f"{folder / CONFIG} describes an embedder, but not as this version writes it ({reason}); "
        "copy or make the folder again."
    )
