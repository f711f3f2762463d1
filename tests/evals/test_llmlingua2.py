"""LLMLingua-2 through a compressor of the same interface: how much it keeps, and why it cannot."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

from extensible_embedding import ExtensibleEmbedder
from extensible_embedding.evals.methods import Passage, make_method
from extensible_embedding.evals.methods.base import CannotRunError, EmbedsReading
from extensible_embedding.evals.methods.llmlingua2 import MODEL, _compressor


class EveryOther:
    """Keeps words evenly; as the real one, it counts something other than the reader's tokens."""

    error: Exception | None = None
    rates: list[float] = []  # noqa: RUF012

    def __init__(self, *, model_name: str, device_map: str, use_llmlingua2: bool) -> None:
        if self.error is not None:
            raise self.error
        assert (model_name, device_map, use_llmlingua2) == (MODEL, "cpu", True)

    def compress_prompt(self, context: list[str], rate: float) -> dict[str, str]:
        self.rates.append(rate)
        words = context[0].split()
        share = min(1.0, 1.5 * rate)
        kept = [word for i, word in enumerate(words) if int(i * share) != int((i - 1) * share)]
        return {"compressed_prompt": " ".join(kept)}


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    _compressor.cache_clear()
    yield
    _compressor.cache_clear()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[EveryOther]:
    package: Any = ModuleType("llmlingua")
    package.PromptCompressor = EveryOther
    monkeypatch.setitem(sys.modules, "llmlingua", package)
    monkeypatch.setattr(EveryOther, "rates", [])
    monkeypatch.setattr(EveryOther, "error", None)
    return EveryOther


def kept_text(embedder: ExtensibleEmbedder, text: str, room: int) -> str:
    reader = embedder.reader
    here = Passage(head=torch.tensor([256]), context=reader.encode(text), tail=torch.tensor([63]))
    reading = make_method("llmlingua-2", embedder).read(here, room + 2)
    assert isinstance(reading, EmbedsReading)
    assert reading.num_rows <= room + 2
    table = reader.model.get_input_embeddings().weight
    ids = torch.cdist(reading.embeds[1:-1].float(), table.float()).argmin(1)
    return reader.decode(ids)


@pytest.mark.parametrize("room", [60, 100, 300])
def test_the_share_is_corrected_until_the_room_is_filled(
    tiny_embedder: ExtensibleEmbedder, text: str, fake: type[EveryOther], room: int
) -> None:
    found = kept_text(tiny_embedder, text, room)
    assert 0.7 * room <= len(found) <= room
    assert fake.rates[0] == room / len(text)
    assert fake.rates[1] < fake.rates[0]  # it kept 1.5 times as many as asked
    words = iter(text.split())
    assert all(word in words for word in found.split())  # in their order


def test_what_never_fits_loses_its_oldest_tokens(
    tiny_embedder: ExtensibleEmbedder,
    text: str,
    fake: type[EveryOther],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = {"compressed_prompt": text}
    monkeypatch.setattr(fake, "compress_prompt", lambda self, context, rate: whole)
    assert kept_text(tiny_embedder, text, 50) == text[-50:]


def test_a_text_that_it_fails_on_says_so(
    tiny_embedder: ExtensibleEmbedder,
    text: str,
    fake: type[EveryOther],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fake, "compress_prompt", lambda self, context, rate: [][0])
    with pytest.raises(CannotRunError, match="llmlingua fails on a text"):
        kept_text(tiny_embedder, text, 50)


def test_what_fits_is_read_whole(
    tiny_embedder: ExtensibleEmbedder, text: str, fake: type[EveryOther]
) -> None:
    assert kept_text(tiny_embedder, text[:200], 200) == text[:200]
    assert kept_text(tiny_embedder, text, 0) == ""
    assert fake.rates == []


def test_without_the_package_the_record_says_so(
    tiny_embedder: ExtensibleEmbedder, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llmlingua", None)
    with pytest.raises(CannotRunError, match=r"needs the package llmlingua .*\[llmlingua\]"):
        kept_text(tiny_embedder, text, 50)


def test_without_the_model_the_record_says_so_and_it_is_not_asked_for_again(
    tiny_embedder: ExtensibleEmbedder,
    text: str,
    fake: type[EveryOther],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fake, "error", OSError("no hub here\nand more"))
    with pytest.raises(CannotRunError, match=rf"needs its model {MODEL} .* \(no hub here\)"):
        kept_text(tiny_embedder, text, 50)
    monkeypatch.setattr(fake, "error", OSError("asked again"))
    with pytest.raises(CannotRunError, match="no hub here"):
        kept_text(tiny_embedder, text, 50)
