"""Names of contexts: what may be one, and the file that it stands for.

In: a name as a user gave it. Out: a checked name; the key that names with the same look share; the
folder that it stands for, whose name is a hash, so that no name reaches outside of the store.
"""

from __future__ import annotations

import hashlib
import unicodedata

from ..errors import InputError

CONTEXTS = "contexts"
MAX_NAME_BYTES = 200
_DIGITS = 40
_CONTROLS = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories of characters that cannot be seen, or turn the direction of others."""
_UNSEEN = (
    (0x034F, 0x034F),  # joins marks
    (0x115F, 0x1160),  # fillers of Korean
    (0x17B4, 0x17B5),  # vowels of Khmer that are not written
    (0x180B, 0x180F),  # choose among forms of Mongolian
    (0x2800, 0x2800),  # Braille without a dot
    (0x3164, 0x3164),
    (0xFE00, 0xFE0F),  # choose among forms, such as of emoji
    (0xFFA0, 0xFFA0),
    (0xE0100, 0xE01EF),
)
"""First and last of further characters that cannot be seen, but are of other categories."""


def check_name(name: str) -> str:
    """Returns a name that can be shown on one line and typed again.

    Raises:
        InputError: it is no such name.
    """
    fault = _fault(name)
    if fault:
        shown = repr(name) if all(map(is_seen, str(name))) else ascii(name)
        shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
        raise InputError(f"A context's name {fault}, but {shown} was given; choose another.")
    return name


def is_name(name: object) -> bool:
    """Whether a context can have this name."""
    return _fault(name) is None


def is_seen(character: str) -> bool:
    """Whether a character of a name can be seen, be it as a blank, and is whole."""
    place = ord(character)
    hidden = any(first <= place <= last for first, last in _UNSEEN)
    return not hidden and unicodedata.category(character) not in _CONTROLS


def is_folder(name: str) -> bool:
    """Whether a folder of this name, in that of all contexts, is one of `folder_of`."""
    return len(name) == _DIGITS and not set(name) - set("0123456789abcdef")


def _fault(name: object) -> str | None:
    if not isinstance(name, str):
        return "is a text"
    if not name.strip():
        return "has at least 1 visible character"
    if name != name.strip():
        return "has no blanks around it"
    if not all(map(is_seen, name)):
        return "has no control characters, none that cannot be seen and no halves of characters"
    if len(name.encode()) > MAX_NAME_BYTES:
        return f"has at most {MAX_NAME_BYTES} bytes"
    if "/" in name or "\\" in name or name.startswith("."):
        return "is no path: it has no slashes and no dot in front"
    return None


def name_key(name: str) -> str:
    """What names share that differ in case or in how a character is written alone."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def folder_of(name: str) -> str:
    """Folder of a context in a store, the same for all names of one key."""
    return f"{CONTEXTS}/{hashlib.sha256(name_key(name).encode()).hexdigest()[:_DIGITS]}"
