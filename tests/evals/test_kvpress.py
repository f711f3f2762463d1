"""Compressed caches: as large as asked, as a mask would have it, and nothing else is touched."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from extensible_embedding import ExtensibleEmbedder, Reader
from extensible_embedding.errors import WindowError
from extensible_embedding.evals.methods import METHODS, Passage, make_method
from extensible_embedding.evals.methods.base import CannotRunError
from extensible_embedding.evals.methods.kvpress import KvPress, PressedReading

PRESSES = [name for name, method in METHODS.items() if issubclass(method, KvPress)]
STREAMING = "kvpress-streaming-llm"
TARGETS = torch.tensor([97, 98, 99, 100])


@dataclass
class SinksPress:
    """Keeps the first entries and the last ones, through the interface of kvpress's presses."""

    compression_ratio: float
    n_sink: int = 0
    window_size: int = 0

    def post_init_from_model(self, model: Any) -> None:
        pass

    def forward_hook(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        layer, size = (
            kwargs["past_key_values"].layers[module.layer_idx],
            kwargs["hidden_states"].shape[1],
        )
        assert int(kwargs["cache_position"][-1]) + 1 == size
        kept = int(size * (1 - self.compression_ratio))
        places = torch.tensor([*range(self.n_sink), *range(size - kept + self.n_sink, size)])
        layer.keys, layer.values = layer.keys[:, :, places], layer.values[:, :, places]
        return output


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of that name with presses whose result is known."""
    package: Any = ModuleType("kvpress")
    package.SUPPORTED_MODELS = (LlamaForCausalLM,)
    package.KnormPress = package.SnapKVPress = package.StreamingLLMPress = SinksPress
    monkeypatch.setitem(sys.modules, "kvpress", package)


@pytest.fixture
def real() -> None:
    """The package itself, if it is there; imported by nothing but the method."""
    if importlib.util.find_spec("kvpress") is None:
        pytest.skip("kvpress is not installed")


def passage(num_tokens: int, tail: str = "") -> Passage:
    ids = torch.randint(97, 123, (num_tokens,), generator=torch.Generator().manual_seed(1))
    return Passage(
        head=torch.tensor([256]), context=ids, tail=torch.tensor(list(tail.encode())).long()
    )


def read(embedder: ExtensibleEmbedder, name: str, here: Passage, room: int) -> PressedReading:
    reading = make_method(name, embedder).read(here, room)
    assert isinstance(reading, PressedReading)
    return reading


def masked_losses(reader: Reader, here: Passage, kept: list[int]) -> Tensor:
    """Losses of the targets in one pass, where all that follows sees these entries of the cache."""
    ids = torch.cat([here.head, here.context, here.tail, TARGETS[:-1]])
    cached = len(here.head) + len(here.context) - (0 if len(here.tail) else 1)
    sees = torch.ones(len(ids), len(ids)).tril().bool()
    sees[cached:, :cached] = False
    sees[cached:, kept] = True
    mask = torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)
    with torch.inference_mode():
        logits = reader.model(ids[None], attention_mask=mask[None, None]).logits[0]
    return torch.nn.functional.cross_entropy(logits[-len(TARGETS) :], TARGETS, reduction="none")


def check_against_mask(embedder: ExtensibleEmbedder, tail: str) -> None:
    here = passage(200, tail)
    cached = 201 - (0 if tail else 1)
    reading = read(embedder, STREAMING, here, 60)
    kept = 60 - (len(tail) or 1)
    places = [*range(4), *range(cached - kept + 4, cached)]
    expected = masked_losses(embedder.reader, here, places)
    torch.testing.assert_close(reading.nll(TARGETS), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("tail", ["", "ab"])
def test_what_follows_sees_the_entries_that_stay(
    tiny_embedder: ExtensibleEmbedder, tail: str
) -> None:
    check_against_mask(tiny_embedder, tail)


@pytest.mark.usefixtures("real")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tail", ["", "ab"])
def test_the_package_keeps_sinks_and_recent_entries(
    tiny_embedder: ExtensibleEmbedder, tail: str
) -> None:
    check_against_mask(tiny_embedder, tail)


def check_size(embedder: ExtensibleEmbedder, name: str, num_tokens: int) -> None:
    reading = read(embedder, name, passage(num_tokens, "ab"), 67)
    cache, start = reading._prefilled(8)
    assert reading.num_rows == min(67, num_tokens + 3)
    assert {len(layer.keys[0, 0]) for layer in cache.layers} == {reading.num_rows - 2}
    assert start == min(num_tokens + 1, 512 - 2 - 8)
    assert reading.nll(TARGETS).isfinite().all()
    assert isinstance(reading.generate(4), str)


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("num_tokens", [1, 40, 64, 65, 300, 1000])
def test_the_cache_is_as_large_as_asked(tiny_embedder: ExtensibleEmbedder, num_tokens: int) -> None:
    check_size(tiny_embedder, STREAMING, num_tokens)


@pytest.mark.usefixtures("real")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("num_tokens", [1, 40, 64, 65, 300, 1000])
@pytest.mark.parametrize("name", PRESSES)
def test_the_cache_of_the_package_is_as_large_as_asked(
    tiny_embedder: ExtensibleEmbedder, name: str, num_tokens: int
) -> None:
    check_size(tiny_embedder, name, num_tokens)


def check_raw(embedder: ExtensibleEmbedder, name: str) -> None:
    here = passage(100, "ab")
    raw, reading = make_method("raw", embedder).read(here, 200), read(embedder, name, here, 200)
    torch.testing.assert_close(reading.nll(TARGETS), raw.nll(TARGETS), atol=1e-5, rtol=1e-5)
    assert reading.generate(12) == raw.generate(12)


@pytest.mark.usefixtures("fake")
def test_a_context_that_fits_is_read_raw(tiny_embedder: ExtensibleEmbedder) -> None:
    check_raw(tiny_embedder, STREAMING)


@pytest.mark.usefixtures("real")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PRESSES)
def test_a_context_that_fits_is_read_raw_by_the_package(
    tiny_embedder: ExtensibleEmbedder, name: str
) -> None:
    check_raw(tiny_embedder, name)


@pytest.mark.usefixtures("real")
@pytest.mark.filterwarnings("ignore")
def test_presses_differ(tiny_embedder: ExtensibleEmbedder) -> None:
    losses = [
        float(read(tiny_embedder, name, passage(300), 60).nll(TARGETS).sum()) for name in PRESSES
    ]
    assert len({round(loss, 4) for loss in losses}) == len(PRESSES)


@pytest.mark.usefixtures("real")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("room", [3, 4, 5, 9])
@pytest.mark.parametrize("name", PRESSES)
def test_the_smallest_caches_work(tiny_embedder: ExtensibleEmbedder, name: str, room: int) -> None:
    reading = read(tiny_embedder, name, passage(80, "a"), room)
    assert reading.num_rows == room
    assert reading.nll(TARGETS).isfinite().all()


@pytest.mark.usefixtures("real")
@pytest.mark.filterwarnings("ignore")
def test_other_methods_are_not_touched(tiny_embedder: ExtensibleEmbedder) -> None:
    """Importing kvpress wraps transformers' attention functions; here they stay as they are."""
    for name in [name for name in sys.modules if name.split(".")[0] == "kvpress"]:
        del sys.modules[name]  # so that it is imported again
    before, raw = dict(ALL_ATTENTION_FUNCTIONS.items()), make_method("raw", tiny_embedder)
    losses = raw.read(passage(100), 200).nll(TARGETS)
    read(tiny_embedder, PRESSES[0], passage(100), 60).nll(TARGETS)
    assert dict(ALL_ATTENTION_FUNCTIONS.items()) == before
    assert torch.equal(raw.read(passage(100), 200).nll(TARGETS), losses)
    assert "rotary_emb" not in dict(
        tiny_embedder.reader.model.model.layers[0].self_attn.named_children()
    )


@pytest.mark.usefixtures("fake")
def test_the_frame_must_fit(tiny_embedder: ExtensibleEmbedder) -> None:
    with pytest.raises(WindowError, match="Head and tail must fit in 2 rows"):
        make_method(STREAMING, tiny_embedder).read(passage(100, "ab"), 2)


def test_without_the_package_the_record_says_so(
    tiny_embedder: ExtensibleEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "kvpress", None)
    with pytest.raises(CannotRunError, match=r"kvpress cannot be imported .* `make kvpress`"):
        make_method(STREAMING, tiny_embedder).read(passage(100), 60)


@pytest.mark.usefixtures("fake")
def test_a_reader_that_it_does_not_support_says_so(
    tiny_embedder: ExtensibleEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["kvpress"], "SUPPORTED_MODELS", (int,))
    with pytest.raises(CannotRunError, match="does not support LlamaForCausalLM"):
        make_method(STREAMING, tiny_embedder).read(passage(100), 60)


@pytest.mark.usefixtures("fake")
def test_a_reader_with_sliding_attention_says_so(
    tiny_embedder: ExtensibleEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_embedder.reader.model.config
    monkeypatch.setattr(config, "sliding_window", 16, raising=False)
    monkeypatch.setattr(config, "layer_types", ["sliding_attention"] * 4, raising=False)
    with pytest.raises(CannotRunError, match="compresses full attention"):
        make_method(STREAMING, tiny_embedder).read(passage(100), 60)
