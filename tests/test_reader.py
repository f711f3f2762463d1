"""The reader: losses, fingerprints, loading."""

from __future__ import annotations

import copy
import logging
import shutil
from pathlib import Path

import pytest
import torch
from conftest import byte_tokenizer, tiny_llama
from huggingface_hub.utils import are_progress_bars_disabled
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import modeling_gguf_pytorch_utils
from transformers.utils.logging import is_progress_bar_enabled

from extensible_embedding import Reader
from extensible_embedding.errors import InputError, MismatchError
from extensible_embedding.loading import default_dtype, quiet_loading


def test_nll_is_the_cross_entropy_of_the_plain_model(tiny_reader: Reader, text: str) -> None:
    ids = tiny_reader.encode(text[:60])
    logits = tiny_reader.model(input_ids=ids[None]).logits[0]
    for split in (1, 20, 59):
        ours = tiny_reader.nll(tiny_reader.embed_tokens(ids[:split]), ids[split:])
        expected = cross_entropy(logits[split - 1 : -1], ids[split:], reduction="none")
        torch.testing.assert_close(ours, expected)


def test_text_comes_back(tiny_reader: Reader) -> None:
    text = "A na\u00efve caf\u00e9,\n\u4f60\u597d  twice."
    assert tiny_reader.decode(tiny_reader.encode(text)) == text
    assert tiny_reader.decode(tiny_reader.encode(text).tolist()) == text


def test_the_window_is_the_configurations_or_ones_own(tiny_reader: Reader) -> None:
    assert tiny_reader.window == 512
    assert Reader(tiny_reader.model, tiny_reader.tokenizer, window=100).window == 100
    with pytest.raises(InputError, match="at least 2 rows"):
        Reader(tiny_reader.model, tiny_reader.tokenizer, window=1)


def test_the_fingerprint_tells_readers_apart(tiny_reader: Reader) -> None:
    other = Reader(tiny_llama(seed=1), byte_tokenizer())
    assert other.fingerprint != tiny_reader.fingerprint
    with pytest.raises(MismatchError, match="load the reader it was made for"):
        other.check_same(tiny_reader.fingerprint, "This")


def test_a_folder_loads_as_the_same_reader(
    tiny_reader: Reader, tiny_reader_folder: Path, text: str
) -> None:
    loaded = Reader.from_pretrained(str(tiny_reader_folder), dtype=torch.float32, device="cpu")
    ids = loaded.encode(text)
    assert torch.equal(ids, tiny_reader.encode(text))
    assert loaded.window == tiny_reader.window
    assert loaded.tokenizer.chat_template == tiny_reader.tokenizer.chat_template
    with torch.inference_mode():
        assert torch.equal(loaded.model(ids[None]).logits, tiny_reader.model(ids[None]).logits)


def test_no_weight_wants_a_gradient(tiny_reader: Reader) -> None:
    assert not any(weight.requires_grad for weight in tiny_reader.model.parameters())
    assert not tiny_reader.model.training


def test_what_is_no_reader_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be loaded as a causal language model"):
        Reader.from_pretrained(str(tmp_path))


def test_ids_out_of_the_vocabulary_are_refused(tiny_reader: Reader) -> None:
    tiny_reader.check_ids(torch.tensor([0, 259]))
    for bad in (-1, 260):
        with pytest.raises(InputError, match="between 0 and 259"):
            tiny_reader.check_ids(torch.tensor([5, bad]))
    with pytest.raises(InputError, match="at least 1 token"):
        tiny_reader.check_ids(torch.tensor([], dtype=torch.long))


def test_embedding_rms_is_of_the_tokens(tiny_reader: Reader) -> None:
    table = tiny_reader.model.get_input_embeddings().weight
    assert tiny_reader.embedding_rms == pytest.approx(float(table.pow(2).mean().sqrt()))


# Token ids of text: ordinary text is as ever, and no text becomes a control token


def test_special_tokens_in_a_text_stay_text(tiny_reader: Reader) -> None:
    text = "before</s>\n<s>system\nafter"
    ids = tiny_reader.encode(text)
    assert int(ids.max()) < 256
    assert tiny_reader.decode(ids) == text
    assert tiny_reader.tokenizer(text, add_special_tokens=False)["input_ids"] != ids.tolist()


def test_template_text_may_hold_special_tokens(tiny_reader: Reader) -> None:
    assert tiny_reader.encode_template("<s>user\n").tolist()[0] == 256


def test_half_a_character_is_refused(tiny_reader: Reader) -> None:
    with pytest.raises(InputError, match=r"U\+D835 at place 3; .*errors='replace'"):
        tiny_reader.encode("abc\ud835")


# Fingerprints


def changed(reader: Reader, dtype: torch.dtype, noise: float = 0.0) -> Reader:
    model = copy.deepcopy(reader.model)
    table = model.get_input_embeddings().weight
    torch.manual_seed(0)
    with torch.no_grad():
        table.mul_(1 + noise * torch.randn_like(table))
    return Reader(model.to(dtype), reader.tokenizer, name="changed")


DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("made_in", DTYPES)
@pytest.mark.parametrize("read_in", DTYPES)
def test_a_reader_is_itself_in_every_dtype(
    tiny_reader: Reader, made_in: torch.dtype, read_in: torch.dtype
) -> None:
    made, read = (changed(tiny_reader, dtype) for dtype in (made_in, read_in))
    read.check_same(made.fingerprint, "This")


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_slightly_changed_reader_is_another(tiny_reader: Reader, dtype: torch.dtype) -> None:
    with pytest.raises(MismatchError):
        changed(tiny_reader, dtype, noise=0.02).check_same(tiny_reader.fingerprint, "This")


def test_fingerprints_of_earlier_versions_are_accepted(tiny_reader: Reader) -> None:
    """They are the first 16 digits alone: the hash."""
    old = tiny_reader.fingerprint[:16]
    tiny_reader.check_same(old, "This")
    with pytest.raises(MismatchError, match=r"fingerprint \w{16}, but .* has \w{16};"):
        changed(tiny_reader, torch.float32, noise=0.02).check_same(old, "This")


def test_a_damaged_fingerprint_is_another_readers(tiny_reader: Reader) -> None:
    for damaged in ("", "x", "0" * 16 + "-zz", "0" * 16 + "-ab-00", "-" * 9):
        with pytest.raises(MismatchError):
            tiny_reader.check_same(damaged, "This")


# Loading


def test_a_path_is_a_folder(tiny_reader: Reader, tiny_reader_folder: Path) -> None:
    loaded = Reader.from_pretrained(tiny_reader_folder)
    assert loaded.fingerprint[:16] == tiny_reader.fingerprint[:16]
    assert loaded.name == str(tiny_reader_folder)


def test_a_window_of_0_is_given_and_refused(tiny_reader: Reader) -> None:
    with pytest.raises(InputError, match="at least 2 rows, but it is 0"):
        Reader(tiny_reader.model, tiny_reader.tokenizer, window=0)


@pytest.fixture
def damaged(tiny_reader_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_reader_folder, tmp_path / "damaged"))


def test_truncated_weights_are_refused(damaged: Path) -> None:
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"cannot be loaded as a causal .*; give a hub id"):
        Reader.from_pretrained(damaged)


def test_missing_weights_are_refused(damaged: Path) -> None:
    tensors = load_file(damaged / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, damaged / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"every weight .* lacks 1 \(first: 'lm_head.weight'\);"):
        Reader.from_pretrained(damaged)


@pytest.mark.parametrize("error", [OSError(), KeyError("x")])
def test_any_failure_to_load_is_one_sentence(
    damaged: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*args: object, **settings: object) -> None:
        raise error

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", fail)
    with pytest.raises(InputError, match=type(error).__name__) as caught:
        Reader.from_pretrained(damaged)
    assert "\n" not in str(caught.value)


def test_loading_is_quiet_and_restores_what_it_quiets(
    tiny_reader_folder: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    logger = logging.getLogger("transformers.quantizers.quantizer_gguf")
    gguf_bar = modeling_gguf_pytorch_utils.tqdm
    Reader.from_pretrained(tiny_reader_folder, dtype=torch.bfloat16)
    assert capfd.readouterr().err == ""
    with quiet_loading():
        assert not is_progress_bar_enabled()
        assert not are_progress_bars_disabled()  # of downloads
        logger.warning("Loading a GGUF checkpoint with its weights packed is fastest")
        logger.warning("something else")
    assert [record.message for record in caplog.records] == ["something else"]
    assert is_progress_bar_enabled()
    assert not are_progress_bars_disabled()
    assert logger.filters == []
    assert modeling_gguf_pytorch_utils.tqdm is gguf_bar


@pytest.mark.parametrize(
    ("kind", "native", "expected"),
    [
        ("cuda", True, torch.bfloat16),
        ("cuda", False, torch.float16),
        ("mps", False, torch.float32),
        ("xpu", False, torch.bfloat16),
    ],
)
def test_the_dtype_is_what_the_accelerator_multiplies(
    monkeypatch: pytest.MonkeyPatch, kind: str, native: bool, expected: torch.dtype
) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert default_dtype(torch.device(kind)) is expected
