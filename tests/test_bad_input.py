"""Whatever a user, a disk or a signal does: one sentence, one exit code, nothing half-written.

A sentence gives the rule, the value received and, after a semicolon, what to do next.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_embedder, tiny_llama
from safetensors.torch import load_file, save_file

from extensible_embedding import (
    CheckpointError,
    Context,
    ExtensibleEmbedder,
    ExtensibleError,
    InputError,
    MismatchError,
    Reader,
    StorageError,
    read_document,
)
from extensible_embedding import folders as folders_module
from extensible_embedding.checkpoint import CONFIG, WEIGHTS
from extensible_embedding.context import MANIFEST, TENSORS
from extensible_embedding.prompt import context_rows

EXIT_CODES = {InputError: 2, CheckpointError: 4, MismatchError: 5, StorageError: 6}
IDS = list(range(40))


def refusal(kind: type[ExtensibleError], value: object, call: Callable[[], object]) -> str:
    """The sentence with which the call is refused."""
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    assert caught.value.exit_code == EXIT_CODES[kind]
    message = str(caught.value)
    assert str(value) in message
    assert "\n" not in message
    assert message.endswith((".", "`.")), message
    assert "; " in message, message
    return message


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, and every folder (as an empty file)."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }


@pytest.fixture
def context(tiny_embedder: ExtensibleEmbedder) -> Context:
    return tiny_embedder.compress(IDS, k=4, title="Old")


@pytest.fixture
def saved_context(context: Context, tmp_path: Path) -> Path:
    context.save(tmp_path / "context")
    return tmp_path / "context"


@pytest.fixture
def saved_embedder(tiny_embedder: ExtensibleEmbedder, tmp_path: Path) -> Path:
    tiny_embedder.save_pretrained(tmp_path / "embedder")
    return tmp_path / "embedder"


# Arguments


def test_a_folder_is_no_document(tmp_path: Path) -> None:
    refusal(InputError, tmp_path, lambda: read_document(tmp_path))


@pytest.mark.parametrize("k", [0, -1, 2.5, "abc", True, None, float("nan"), [4]])
def test_k_is_no_scale_factor(
    tiny_embedder: ExtensibleEmbedder, context: Context, k: object
) -> None:
    refusal(InputError, repr(k), lambda: tiny_embedder.compress(IDS, k=k))  # type: ignore[arg-type]
    refusal(InputError, repr(k), lambda: context.at(k))  # type: ignore[arg-type]


@pytest.mark.parametrize(("k", "n", "limit"), [(17, 40, 16), (8, 7, 7), (16, 1, 1)])
def test_k_is_larger_than_chunk_or_context(
    tiny_embedder: ExtensibleEmbedder, k: int, n: int, limit: int
) -> None:
    message = refusal(InputError, f"k is {k}", lambda: tiny_embedder.compress(IDS[:n], k=k))
    assert str(limit) in message


@pytest.mark.parametrize("empty", ["", [], torch.empty(0), torch.empty(0, dtype=torch.long)])
def test_an_empty_context(tiny_embedder: ExtensibleEmbedder, empty: Any) -> None:
    refusal(InputError, "has none", lambda: tiny_embedder.compress(empty, k=4))


@pytest.mark.parametrize("ids", [[0, 260], [-1, 5], [10**12, 0]])
def test_ids_out_of_the_vocabulary(tiny_embedder: ExtensibleEmbedder, ids: list[int]) -> None:
    message = refusal(InputError, max(ids), lambda: tiny_embedder.compress(ids, k=2))
    assert str(min(ids)) in message
    assert "between 0 and 259" in message


@pytest.mark.parametrize("ids", [[0.5, 1.0], [[1, 2], [3, 4]], torch.tensor(3)])
def test_ids_that_are_no_flat_whole_numbers(tiny_embedder: ExtensibleEmbedder, ids: Any) -> None:
    shape = tuple(torch.as_tensor(ids).shape)
    refusal(InputError, shape, lambda: tiny_embedder.compress(ids, k=2))


# An embedder for another reader


def other_reader(tiny_reader: Reader, change: str) -> Reader:
    if change == "weights":
        return Reader(tiny_llama(seed=9), tiny_reader.tokenizer, name="other")
    config = type(tiny_reader.model.config)(**tiny_reader.model.config.to_dict())
    setattr(config, change, 64 if change == "hidden_size" else 300)
    config.head_dim = config.hidden_size // config.num_attention_heads
    model = type(tiny_reader.model)(config)
    return Reader(model, tiny_reader.tokenizer, name="other")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("hidden_size", "serves readers of its own hidden size, 32, but 'other' has 64; use the"),
        ("vocab_size", "serves readers of its own vocab size, 260, but 'other' has 300; use the"),
        ("weights", "but 'other' has {fingerprint}; use that reader, or pass derivative=True"),
    ],
)
def test_an_embedder_for_another_reader(
    tiny_reader: Reader, saved_embedder: Path, change: str, words: str
) -> None:
    other = other_reader(tiny_reader, change)
    message = refusal(
        MismatchError, "tiny", lambda: ExtensibleEmbedder.from_pretrained(saved_embedder, other)
    )
    assert words.format(fingerprint=other.fingerprint[:16]) in message
    assert str(saved_embedder) in message


def test_a_context_for_another_reader(tiny_reader: Reader, context: Context) -> None:
    other = other_reader(tiny_reader, "weights")
    message = refusal(MismatchError, "'Old'", lambda: context_rows(other, context, 4))
    assert tiny_reader.fingerprint[:16] in message
    assert other.fingerprint[:16] in message


def test_a_derivative_with_fewer_layers(tiny_reader: Reader, saved_embedder: Path) -> None:
    config = type(tiny_reader.model.config)(**tiny_reader.model.config.to_dict())
    config.num_hidden_layers = 1
    small = Reader(type(tiny_reader.model)(config), tiny_reader.tokenizer, name="small")
    refusal(
        MismatchError,
        "num_layers is 2",
        lambda: ExtensibleEmbedder.from_pretrained(saved_embedder, small, derivative=True),
    )


# Damaged checkpoints


def test_an_embedder_that_is_a_file(tmp_path: Path, tiny_reader: Reader) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"x")
    refusal(CheckpointError, path, lambda: ExtensibleEmbedder.from_pretrained(path, tiny_reader))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[: len(data) // 2], "truncated"),
        (lambda data: data[:6], "truncated"),
        (lambda data: b"", "truncated"),
        (lambda data: b"\xff" * 8 + data[8:], "damaged"),
        (lambda data: pickle.dumps({"a": 1}), "a pickle"),
    ],
)
def test_damaged_weights_and_rows(
    tiny_reader: Reader,
    saved_embedder: Path,
    saved_context: Path,
    damage: Callable[[bytes], bytes],
    words: str,
) -> None:
    for path, load in (
        (saved_embedder / WEIGHTS, lambda f: ExtensibleEmbedder.from_pretrained(f, tiny_reader)),
        (saved_context / TENSORS, Context.load),
    ):
        path.write_bytes(damage(path.read_bytes()))
        message = refusal(CheckpointError, path, lambda path=path, load=load: load(path.parent))
        assert words in message


def test_a_pickle_is_not_opened(tmp_path: Path, tiny_reader: Reader, saved_embedder: Path) -> None:
    marker = tmp_path / "opened"

    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(marker),)

    for name in ("pytorch_model.bin", WEIGHTS):
        (saved_embedder / WEIGHTS).unlink(missing_ok=True)
        torch.save({"projection.weight": Evil()}, saved_embedder / name)
        message = refusal(
            CheckpointError,
            name,
            lambda: ExtensibleEmbedder.from_pretrained(saved_embedder, tiny_reader),
        )
        assert "pickle" in message
    assert not marker.exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("int8", [False, True])
def test_weights_that_are_not_finite(
    tmp_path: Path,
    tiny_reader: Reader,
    tiny_embedder: ExtensibleEmbedder,
    value: float,
    int8: bool,
) -> None:
    tiny_embedder.save_pretrained(tmp_path / "e", int8=int8)
    tensors = load_file(tmp_path / "e" / WEIGHTS)
    tensors["projection.weight.scale" if int8 else "projection.weight"][3, 0] = value
    save_file(tensors, tmp_path / "e" / WEIGHTS)
    refusal(
        CheckpointError,
        "'projection.weight'",
        lambda: ExtensibleEmbedder.from_pretrained(tmp_path / "e", tiny_reader),
    )


@pytest.mark.parametrize(
    ("edit", "name"),
    [
        (lambda t: t.pop("projection.weight"), "projection.weight"),
        (lambda t: t.update(extra=torch.ones(1)), "extra"),
        (lambda t: t.update({"projection.weight": torch.ones(2, 2)}), "projection.weight"),
        (
            lambda t: t.update({"projection.weight": torch.ones(32, 32, dtype=torch.int64)}),
            "projection.weight",
        ),
        (
            lambda t: t.update({"projection.weight.int8": torch.ones(32, 32).to(torch.int8)}),
            "projection.weight",
        ),
    ],
)
def test_weights_that_are_not_those_of_the_configuration(
    tiny_reader: Reader, saved_embedder: Path, edit: Callable[[Any], None], name: str
) -> None:
    tensors = load_file(saved_embedder / WEIGHTS)
    edit(tensors)
    save_file(tensors, saved_embedder / WEIGHTS)
    refusal(
        CheckpointError,
        name,
        lambda: ExtensibleEmbedder.from_pretrained(saved_embedder, tiny_reader),
    )


def rewrite(path: Path, **changes: Any) -> None:
    """Changes keys of a JSON file; None removes one."""
    value = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: item for key, item in value.items() if item is not None}))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, CONFIG),
        ("", "cannot be read"),
        ('{"format_version": 1', "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[1]", "holds a list"),
        ("null", "holds a NoneType"),
        ("\u20ac", "cannot be read"),
    ],
)
def test_a_corrupt_configuration(
    tiny_reader: Reader, saved_embedder: Path, text: str | None, words: str
) -> None:
    path = saved_embedder / CONFIG
    path.unlink()
    if text is not None:
        path.write_bytes(text.encode("cp1252"))
    message = refusal(
        CheckpointError,
        saved_embedder,
        lambda: ExtensibleEmbedder.from_pretrained(saved_embedder, tiny_reader),
    )
    assert words in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format_version": 2}, "has version 2"),
        ({"format_version": None}, "has version None"),
        ({"surprise": 1}, "'surprise' is 1"),
        ({"reader": None}, "'reader' is None"),
        ({"reader": "SmolLM2"}, "'reader' is 'SmolLM2'"),
        ({"training": [1]}, "'training' is [1]"),
        ({"embedder": [1]}, "'embedder' is [1]"),
        ({"embedder": {"num_layrs": 2}}, "num_layrs"),
        ({"embedder": {"num_layers": 0}}, "but it is 0"),
        ({"embedder": {"num_layers": "2"}}, "but it is '2'"),
        ({"embedder": {"down_sampling": "dice"}}, "'dice'"),
        ({"embedder": {"down_sampling": ["mean"]}}, "list"),
        ({"embedder": {"residual": "yes"}}, "'residual' is 'yes'"),
    ],
)
def test_a_configuration_with_wrong_values(
    tiny_reader: Reader, saved_embedder: Path, changes: dict[str, Any], words: str
) -> None:
    rewrite(saved_embedder / CONFIG, **changes)
    message = refusal(
        CheckpointError,
        saved_embedder,
        lambda: ExtensibleEmbedder.from_pretrained(saved_embedder, tiny_reader),
    )
    assert words in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format_version": 0}, "has version 0"),
        ({"k": "4"}, "'k', but"),
        ({"k": 0}, "has 0"),
        ({"k": True}, "has True"),
        ({"k": 4.0}, "has 4.0"),
        ({"k": 32}, "has k=32"),
        ({"chunk_tokens": 0}, "has 0"),
        ({"chunk_tokens": -16}, "has -16"),
        ({"down_sampling": "dice"}, "has 'dice'"),
        ({"down_sampling": 3}, "has 3"),
        ({"title": 5}, "has 5"),
        ({"reader_fingerprint": None}, "lacks it"),
        ({"num_rows": 11}, "promises 11"),
        ({"num_rows": "10"}, "has '10'"),
        ({"num_tokens": 41}, "promises 10"),
        ({"num_tokens": 39}, "has (40,)"),
        ({"num_tokens": 10**15, "k": 16}, "promises 10"),
        ({"row_width": 31}, "has (10, 32)"),
        ({"surprise": 1}, "has it as 1"),
    ],
)
def test_a_manifest_with_wrong_values(
    saved_context: Path, changes: dict[str, Any], words: str
) -> None:
    rewrite(saved_context / MANIFEST, **changes)
    message = refusal(CheckpointError, saved_context, lambda: Context.load(saved_context))
    assert words in message


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: t.pop("rows"), "has ['token_ids']"),
        (lambda t: t.update(more=torch.ones(1)), "has ['more', 'rows', 'token_ids']"),
        (lambda t: t.update(rows=torch.ones(10, 31)), "has (10, 31)"),
        (lambda t: t.update(rows=torch.ones(9, 32)), "has (9, 32)"),
        (lambda t: t.update(rows=torch.ones(320)), "has (320,)"),
        (lambda t: t.update(rows=torch.ones(10, 32, dtype=torch.int8)), "torch.int8"),
        (lambda t: t.update(token_ids=torch.ones(40)), "torch.float32"),
        (lambda t: t.update(token_ids=torch.arange(40)[None]), "has (1, 40)"),
        (lambda t: t.update(token_ids=torch.arange(-3, 37)), "has -3"),
        (lambda t: t["rows"][9, 31:].fill_(float("nan")), "has NaN or infinity"),
        (lambda t: t["rows"][0, :1].fill_(float("inf")), "has NaN or infinity"),
    ],
)
def test_rows_that_are_not_those_of_the_manifest(
    saved_context: Path, edit: Callable[[Any], None], words: str
) -> None:
    tensors = load_file(saved_context / TENSORS)
    edit(tensors)
    save_file(tensors, saved_context / TENSORS)
    message = refusal(CheckpointError, saved_context, lambda: Context.load(saved_context))
    assert words in message


@pytest.mark.parametrize("name", [MANIFEST, TENSORS])
def test_a_context_without_one_of_its_files(saved_context: Path, name: str) -> None:
    (saved_context / name).unlink()
    refusal(CheckpointError, name, lambda: Context.load(saved_context))


@pytest.mark.parametrize("name", [MANIFEST, TENSORS])
def test_half_a_context_is_none(saved_context: Path, name: str) -> None:
    assert Context.is_saved_at(saved_context)
    (saved_context / name).unlink()
    assert not Context.is_saved_at(saved_context)


def test_a_save_that_was_cut_off_is_no_context(saved_context: Path, context: Context) -> None:
    saved_context.rename(folders_module._previous(saved_context))
    assert not Context.is_saved_at(saved_context)
    context.save(saved_context)
    assert Context.is_saved_at(saved_context)


def test_a_context_that_is_not_there_or_a_file(tmp_path: Path, saved_context: Path) -> None:
    refusal(CheckpointError, tmp_path / "no", lambda: Context.load(tmp_path / "no"))
    path = saved_context / MANIFEST
    refusal(CheckpointError, path, lambda: Context.load(path))


# Disks

Save = Callable[[Path], None]


@pytest.fixture(params=["context", "embedder"])
def save(request: pytest.FixtureRequest, tiny_reader: Reader) -> Save:
    embedder = make_embedder(tiny_reader)
    if request.param == "context":
        return embedder.compress(IDS, k=2, title="New").save
    embedder.projection.weight.data.add_(1)
    return embedder.save_pretrained


@pytest.fixture
def older(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An older save of the same kind as `save` makes, alone in its parent folder."""
    kind = request.node.callspec.params["save"]
    (tmp_path / "place").mkdir()
    folder: Path = request.getfixturevalue(f"saved_{kind}")
    return folder.rename(tmp_path / "place" / "kept")


def full_disk(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


WRITES = ["save_file", "write_text", "fsync", "rename"]


def break_write(monkeypatch: pytest.MonkeyPatch, write: str, fault: Callable[..., Any]) -> None:
    if write == "save_file":
        for module in ("context", "checkpoint"):
            monkeypatch.setattr(f"extensible_embedding.{module}.save_file", fault)
    elif write == "fsync":
        monkeypatch.setattr(os, "fsync", fault)
    else:
        monkeypatch.setattr(Path, write, fault)


@pytest.mark.parametrize("write", WRITES)
def test_a_full_disk(older: Path, save: Save, monkeypatch: pytest.MonkeyPatch, write: str) -> None:
    before = tree(older.parent)
    break_write(monkeypatch, write, full_disk)
    new = older.parent / "new"
    for folder in (older, new):
        message = refusal(StorageError, folder, lambda folder=folder: save(folder))
        assert "No space left on device" in message
        assert "free some space" in message
    assert tree(older.parent) == before
    monkeypatch.undo()
    save(older)
    assert tree(older.parent) != before


LIMITED = """
import resource, sys, torch
from extensible_embedding import Context, StorageError
context = Context(
    rows=torch.zeros(4000, 64), token_ids=torch.arange(4000), k=1, chunk_tokens=16,
    down_sampling="strided", embedder_fingerprint="e", reader_fingerprint="r",
)
limit = int(sys.argv[2])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    context.save(sys.argv[1])
except StorageError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def run_limited(folder: Path, limit: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LIMITED, str(folder), str(limit)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
def test_a_limit_on_the_size_of_files(saved_context: Path) -> None:
    before = tree(saved_context.parent)
    done = run_limited(saved_context, 100_000)
    assert done.returncode == StorageError.exit_code, done.stderr
    assert "cannot be written" in done.stdout
    assert tree(saved_context.parent) == before


@pytest.mark.slow
def test_a_disk_that_is_really_full(tmp_path: Path, context: Context) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        context.save(disk / "kept")
        before = tree(disk)
        done = run_limited(disk / "kept")
        assert done.returncode == StorageError.exit_code, done.stderr
        assert "cannot be written" in done.stdout
        assert tree(disk) == before
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(older: Path, save: Save) -> None:
    before = tree(older.parent)
    older.parent.chmod(0o555)
    try:
        for folder in (older, older.parent / "new"):
            refusal(StorageError, folder, lambda folder=folder: save(folder))
    finally:
        older.parent.chmod(0o755)
    assert tree(older.parent) == before


@pytest.mark.parametrize("error", [PermissionError(13, "no"), OSError(errno.EROFS, "read-only")])
def test_a_folder_that_may_not_be_written(
    older: Path, save: Save, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> str:
        raise error

    before = tree(older.parent)
    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    refusal(StorageError, error, lambda: save(older))
    assert tree(older.parent) == before


def test_a_file_where_the_folder_should_be(tmp_path: Path, save: Save) -> None:
    path = tmp_path / "place" / "file"
    path.parent.mkdir()
    path.write_text("keep me")
    before = tree(path.parent)
    for folder in (path, path / "below"):
        refusal(StorageError, folder, lambda folder=folder: save(folder))
    assert tree(path.parent) == before


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_are_as_readable_as_the_user_has_files_be(
    tmp_path: Path, save: Save, umask: int
) -> None:
    before = os.umask(umask)
    try:
        save(tmp_path / "new")
    finally:
        os.umask(before)
    for path in (tmp_path / "new").iterdir():
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask, path
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o777 & ~umask
    assert len(list((tmp_path / "new").iterdir())) == 2


def test_where_folders_cannot_be_opened_only_files_are_flushed(
    tmp_path: Path, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows."""
    real = os.open

    def files_only(path: Any, flags: int, *more: Any, **others: Any) -> int:
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "a folder")
        return real(path, flags, *more, **others)

    monkeypatch.setattr(folders_module, "_FOLDERS_OPEN", False)
    monkeypatch.setattr(os, "open", files_only)
    save(tmp_path / "new")
    assert (tmp_path / "new").is_dir()


@pytest.mark.parametrize(
    ("error", "is_disk"),
    [
        (OSError(errno.ENOSPC, "full"), True),
        (OSError(errno.EROFS, "read-only"), True),
        (PermissionError(errno.EACCES, "no"), True),
        (ConnectionResetError(errno.ECONNRESET, "gone"), False),
        (FileNotFoundError(errno.ENOENT, "no such data"), False),
        (OSError("of something else"), False),
    ],
)
def test_only_the_disks_own_errors_are_the_disks(
    tmp_path: Path, error: OSError, is_disk: bool
) -> None:
    with (
        pytest.raises(StorageError if is_disk else type(error)) as caught,
        folders_module.whole_folder(tmp_path / "new"),
    ):
        raise error
    assert (caught.value is error) is not is_disk
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_files_is_not_replaced(
    tmp_path: Path, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    (home / "photos").mkdir(parents=True)
    (home / "photos" / "one.jpg").write_bytes(b"1")
    before = tree(tmp_path)
    monkeypatch.chdir(home)
    for folder in (home, Path(".")):
        message = refusal(InputError, "'photos'", lambda folder=folder: save(folder))
        assert str(home) in message
    assert tree(tmp_path) == before


# Interrupts and crashes


def test_ctrl_c_while_compressing(tiny_embedder: ExtensibleEmbedder) -> None:
    seen = []

    def interrupt(done: int, total: int) -> None:
        seen.append((done, total))
        if len(seen) == 2:
            raise KeyboardInterrupt

    before = tiny_embedder.fingerprint
    with pytest.raises(KeyboardInterrupt):
        tiny_embedder.compress(IDS, k=4, batch_chunks=1, progress=interrupt)
    assert seen == [(16, 40), (32, 40)]
    assert tiny_embedder.fingerprint == before
    assert tiny_embedder.compress(IDS, k=4).num_rows == 10


def press_ctrl_c(*args: Any, **kwargs: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("write", WRITES)
def test_ctrl_c_while_saving(
    older: Path, save: Save, monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    before = tree(older.parent)
    break_write(monkeypatch, write, press_ctrl_c)
    for folder in (older, older.parent / "new"):
        with pytest.raises(KeyboardInterrupt):
            save(folder)
    assert tree(older.parent) == before


@pytest.mark.parametrize("fault", [full_disk, press_ctrl_c])
@pytest.mark.parametrize("after", [0, 1])
def test_a_fault_between_the_two_renames(
    older: Path,
    save: Save,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[..., None],
    after: int,
) -> None:
    before, rename, done = tree(older.parent), Path.rename, []

    def rename_or_fault(self: Path, target: Path) -> Path:
        """The old folder is away; the fault strikes before (0) or at (1) the second rename."""
        done.append(target)
        if len(done) == 1:
            moved = rename(self, target)
            if after == 0:
                fault()
            return moved
        if len(done) == 2 and after == 1:
            fault()
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", rename_or_fault)
    with pytest.raises((StorageError, KeyboardInterrupt)):
        save(older)
    assert tree(older.parent) == before


@pytest.mark.parametrize("fault", [full_disk, press_ctrl_c])
def test_a_fault_after_the_second_rename(
    older: Path, save: Save, monkeypatch: pytest.MonkeyPatch, fault: Callable[..., None]
) -> None:
    rename, done = Path.rename, []

    def both_are_done(self: Path, target: Path) -> Path:
        moved = rename(self, target)
        done.append(target)
        if len(done) == 2:
            fault()
        return moved

    save(older.parent / "expected")
    expected = tree(older.parent / "expected")
    shutil.rmtree(older.parent / "expected")
    monkeypatch.setattr(Path, "rename", both_are_done)
    with pytest.raises((StorageError, KeyboardInterrupt)):
        save(older)
    assert tree(older) == expected
    assert [folder.name for folder in older.parent.iterdir()] == ["kept"]


@pytest.fixture
def cut_off(saved_context: Path) -> Path:
    """What a process leaves that is killed between the two renames."""
    saved_context.rename(folders_module._previous(saved_context))
    return saved_context


def test_a_kill_between_the_two_renames_is_told_and_mended(
    cut_off: Path, tiny_reader: Reader, context: Context
) -> None:
    for load in (Context.load, lambda f: ExtensibleEmbedder.from_pretrained(f, tiny_reader)):
        message = refusal(CheckpointError, cut_off, lambda load=load: load(cut_off))
        assert f"`mv '{cut_off.parent}/.context.previous' '{cut_off}'`" in message
    subprocess.run(message.split("`")[1], shell=True, check=True)
    assert torch.equal(Context.load(cut_off).rows, context.rows)


def test_the_next_save_puts_back_what_a_kill_left(
    cut_off: Path, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        break_write(patch, "save_file", full_disk)
        refusal(StorageError, cut_off, lambda: context.save(cut_off))
    assert Context.load(cut_off).title == "Old"
    context.save(cut_off)
    assert [folder.name for folder in cut_off.parent.iterdir()] == ["context"]


KILLED = """
import sys, torch
from pathlib import Path
from extensible_embedding import Context
contexts = [
    Context(
        rows=torch.full((20000, 64), float(value)), token_ids=torch.full((20000,), value), k=1,
        chunk_tokens=16, down_sampling="strided", embedder_fingerprint="e", reader_fingerprint="r",
    )
    for value in (1, 2)
]
contexts[0].save(sys.argv[1])
print("ready", flush=True)
while True:
    for context in contexts:
        context.save(sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("delay_s", [0.0, 0.013, 0.031, 0.05])
def test_a_kill_while_saving_leaves_a_whole_context(tmp_path: Path, delay_s: float) -> None:
    folder = tmp_path / "context"
    command = [sys.executable, "-c", KILLED, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay_s)
        process.send_signal(signal.SIGKILL)
    try:
        loaded = Context.load(folder)
    except CheckpointError as error:
        subprocess.run(str(error).split("`")[1], shell=True, check=True)
        loaded = Context.load(folder)
    value = int(loaded.token_ids[0])
    assert value in (1, 2)
    assert bool((loaded.token_ids == value).all() and (loaded.rows == value).all())


# Size


def with_peak(call: Callable[[], Context]) -> tuple[Context, int]:
    """What the call returns, and by how many bytes the process's peak memory grew."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    made = call()
    return made, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def check_long(tiny_reader: Reader, folder: Path, num_tokens: int) -> None:
    embedder = make_embedder(tiny_reader, num_layers=1, chunk_tokens=256)
    ids = torch.arange(num_tokens) % 256
    context, grown = with_peak(lambda: embedder.compress(ids, k=32, batch_chunks=64))
    rows = -(-num_tokens // 256) * 8
    assert context.num_tokens == num_tokens
    assert abs(context.num_rows - rows) < 8
    # The rows once, in float32, and a batch, whatever the number of tokens.
    assert grown < rows * 32 * 4 + (200 << 20)
    context.save(folder)
    loaded = Context.load(folder)
    assert torch.equal(loaded.rows, context.rows)
    assert int(loaded.row_ends()[-1]) == num_tokens


def test_200_thousand_tokens(tmp_path: Path, tiny_reader: Reader) -> None:
    check_long(tiny_reader, tmp_path / "c", 200_001)


@pytest.mark.slow
def test_10_million_tokens(tmp_path: Path, tiny_reader: Reader) -> None:
    check_long(tiny_reader, tmp_path / "c", 10_000_001)


def test_a_long_text(tiny_reader: Reader) -> None:
    embedder = make_embedder(tiny_reader, num_layers=1, chunk_tokens=256)
    context = embedder.compress("word " * 20_000, k=64, batch_chunks=64)
    assert context.num_tokens == 100_000
