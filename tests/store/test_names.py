"""Names are names: none is a path, and none is mistaken for another."""

from __future__ import annotations

import pytest

from extensible_embedding import ExtensibleEmbedder
from extensible_embedding.errors import InputError
from extensible_embedding.store.store import ContextStore

from .conftest import TEXT, files_in, refused


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("../novel", "is no path"),
        ("..", "is no path"),
        (".hidden", "is no path"),
        ("/etc/passwd", "is no path"),
        ("C:\\novel", "is no path"),
        ("a/b", "is no path"),
        ("nov\0el", "no control characters"),
        ("nov\nel", "no control characters"),
        ("novel\u202e", "no control characters"),
        ("nov\u200bel", "no control characters"),
        ("\u3164", "none that cannot be seen"),
        ("\u115f\u1160", "none that cannot be seen"),
        ("nov\u2800el", "none that cannot be seen .* but 'nov.u2800el' was given"),
        ("novel\uffa0", "none that cannot be seen"),
        ("novel\ufe0f", "none that cannot be seen"),
        ("nov\u034fel", "none that cannot be seen"),
        ("novel\U000e0100", "none that cannot be seen"),
        ("nov\ud800el", "halves of characters"),
        ("x" * 10_000, "at most 200 bytes"),
        ("\U0001f426" * 51, "at most 200 bytes"),
        ("", "at least 1 visible"),
        (" \t", "at least 1 visible"),
        (" novel", "no blanks around"),
        ("novel\u3000", "no blanks around"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_names_that_are_none(
    full: ContextStore, embedder: ExtensibleEmbedder, name: str, rule: str
) -> None:
    before = files_in(full.place.folder.parent)
    for refuse in (
        lambda: full.add(name, "text", embedder),
        lambda: full.open(name),
        lambda: full.append(name, "x", embedder),
        lambda: full.delete(name),
        lambda: full.rename("novel", name),
    ):
        with refused(InputError, rule):
            refuse()
    assert name not in full
    assert files_in(full.place.folder.parent) == before


@pytest.mark.parametrize(
    ("one", "same"),
    [
        ("Stra\u00dfe", "STRASSE"),
        ("caf\u00e9", "cafe\u0301"),
        ("file", "\ufb01le"),
        ("novel", "\uff4e\uff4f\uff56\uff45\uff4c"),
        ("A", "a"),
    ],
)
def test_names_that_look_the_same_are_one(
    store: ContextStore, embedder: ExtensibleEmbedder, one: str, same: str
) -> None:
    store.add(one, "text", embedder)
    with refused(InputError, "already"):
        store.add(same, "another", embedder)
    with refused(InputError, "tells names apart by more than case and form"):
        store.open(same)
    store.rename(one, same)
    assert [each.name for each in store] == [same]
    assert store[same].text() == "text"


@pytest.mark.parametrize(
    "name", ["\u2025\u2215novel", "\uff0e\uff0e\uff0fnovel", "n\u043evel", "CON"]
)
def test_names_that_look_like_others_stay_in_the_store(
    full: ContextStore, embedder: ExtensibleEmbedder, name: str
) -> None:
    """A dot or a slash of another alphabet, a Cyrillic o, a device of Windows."""
    outside = files_in(full.place.folder.parent)
    full.add(name, "text", embedder)
    assert full[name].text() == "text"
    assert full["novel"].text() == TEXT
    full.delete(name)
    assert files_in(full.place.folder.parent) == outside
