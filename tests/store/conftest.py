"""A store in a temporary folder, and texts whose tokens are bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from extensible_embedding.store.store import ContextStore

WORDS = "The heron waits by the old grey mill, and nobody asks it why. "
NON_ASCII = "Le h\u00e9ron attend; \u65e5\u672c \U0001f426 encore. "


@pytest.fixture
def store(tmp_path: Path) -> ContextStore:
    return ContextStore(tmp_path / "store", wait_s=0.2)


def text_of(num_bytes: int) -> str:
    """That many bytes, hence tokens, of text that does not repeat within a chunk."""
    whole = "".join(f"{number}. {WORDS}" for number in range(num_bytes // len(WORDS) + 1))
    return whole[:num_bytes]
