"""What a store has already is found without reading all that it has."""

from __future__ import annotations

import pytest

from extensible_embedding import ExtensibleEmbedder
from extensible_embedding.store import contents
from extensible_embedding.store.manifest import Manifest
from extensible_embedding.store.store import ContextStore

from .conftest import TEXT, text_of


def test_only_manifests_with_the_content_are_decoded(
    full: ContextStore, embedder: ExtensibleEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    real = contents.decode

    def counted(data: bytes, where: str) -> Manifest:
        decoded.append(where)
        return real(data, where)

    monkeypatch.setattr(contents, "decode", counted)
    full.add("new", text_of(60), embedder)
    assert decoded == []
    twin = full.add("twin", TEXT, embedder)
    assert decoded == [full["novel"].folder]
    assert twin.manifest.segments == full.manifest("novel").segments
    full.add("coarser", TEXT, embedder, k=8)
    assert sorted(decoded[1:]) == sorted([full["novel"].folder, full["twin"].folder])
    assert full["coarser"].settings.k == 8
