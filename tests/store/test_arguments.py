"""What is of the wrong type costs one sentence, and never what was kept before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from extensible_embedding import ExtensibleEmbedder
from extensible_embedding.errors import CheckpointError, InputError
from extensible_embedding.store.store import ContextStore

from .conftest import TEXT, files_in, refused

Add = Callable[..., Any]
DEEP: dict[str, Any] = {}
for _ in range(101):
    DEEP = {"a": DEEP}


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ({"title": 2024}, "title is a text, but a value of type int was given"),
        ({"title": Path("novel")}, "title is a text"),
        ({"name": 5}, "name is a text, but 5 was given"),
        ({"name": None}, "name is a text, but None was given"),
        ({"text": b"abc"}, "text is a text, but a value of type bytes was given"),
        ({"text": None}, "text is a text, but a value of type NoneType was given"),
        ({"metadata": 7}, "what JSON can hold"),
        ({"metadata": "year"}, "what JSON can hold"),
        ({"metadata": DEEP}, "at most 100 lists and objects .* hold 102; give flatter ones"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("replace", [False, True])
def test_wrong_arguments_of_add(
    full: ContextStore,
    embedder: ExtensibleEmbedder,
    arguments: dict[str, Any],
    rule: str,
    replace: bool,
) -> None:
    before = files_in(full.place.folder)
    given = {"name": "novel" if replace else "new", "text": "Another.", **arguments}
    with refused(InputError, rule):
        full.add(embedder=embedder, replace=replace, **given)
    assert files_in(full.place.folder) == before


def test_wrong_arguments_of_other_changes(full: ContextStore, embedder: ExtensibleEmbedder) -> None:
    before = files_in(full.place.folder)
    for refuse in (
        lambda: full.append("novel", b"more", embedder),  # type: ignore[arg-type]
        lambda: full.append("novel", None, embedder),  # type: ignore[arg-type]
        lambda: full.append(3, "more", embedder),  # type: ignore[arg-type]
        lambda: full.rename("novel", 2024),  # type: ignore[arg-type]
        lambda: full.rename(b"novel", "new"),  # type: ignore[arg-type]
        lambda: full.open(None),  # type: ignore[arg-type]
        lambda: full.delete(7),  # type: ignore[arg-type]
    ):
        with refused(InputError, "is a text, but"):
            refuse()
    assert 7 not in full  # type: ignore[operator]
    assert files_in(full.place.folder) == before


def test_a_manifest_that_could_not_be_read_is_not_written(
    full: ContextStore, embedder: ExtensibleEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a check of arguments may have overlooked."""
    monkeypatch.setattr("extensible_embedding.store.store.check_text", lambda *a: None)
    before = files_in(full.place.folder)
    with refused(CheckpointError, "title is 2024"):
        full.add("novel", "Another.", embedder, title=2024, replace=True)  # type: ignore[arg-type]
    assert files_in(full.place.folder) == before
    assert full["novel"].text() == TEXT


@pytest.mark.parametrize("seconds", [-1e12, 1e20])
def test_clocks_that_are_far_off(
    store: ContextStore,
    embedder: ExtensibleEmbedder,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
) -> None:
    monkeypatch.setattr("time.time", lambda: seconds)
    made = store.add("novel", "text", embedder).manifest
    assert 0 <= made.created == made.changed <= 2.5e11


def test_replacing_by_a_clock_that_goes_back(
    store: ContextStore, embedder: ExtensibleEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = store.add("novel", "text", embedder).manifest
    monkeypatch.setattr("time.time", lambda: 12.0)
    second = store.add("novel", "another", embedder, replace=True).manifest
    assert second.changed >= first.changed
    assert second.created == 12.0
