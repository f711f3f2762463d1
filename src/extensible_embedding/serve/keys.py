"""API keys: who asks, and what they may.

In: a file with keys, and the Authorization header of a request. Out: a `Client`. Keys are held as
hashes and compared in constant time. Knows nothing of HTTP but that header.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError
from .errors import ApiError
from .settings import Limits

MIN_KEY_CHARS = 16
HASHED = "sha256:"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_HASH = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Client:
    """Who asks.

    Attributes:
        name: of the key; empty on a server without keys.
        limits: what it may ask for.
    """

    name: str = ""
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, kw_only=True)
class Key:
    """A key that is accepted, as a hash."""

    digest: bytes
    client: Client


class Keys:
    """The keys of a server; without any, everybody is one client.

    Args:
        keys: that are accepted.
        limits: of that one client.
    """

    def __init__(self, keys: Sequence[Key] = (), *, limits: Limits | None = None) -> None:
        self._keys = tuple(keys)
        self._anonymous = Client(limits=limits or Limits())

    @property
    def required(self) -> bool:
        """Whether a request needs a key."""
        return bool(self._keys)

    def share(self, most: int) -> int:
        """How many of so many places one key may take: all if it is the only one, else half."""
        return max(1, most // 2) if len(self._keys) > 1 else most

    def client(self, authorization: str | None) -> Client:
        """Who sends a request with this Authorization header.

        Raises:
            ApiError: 401, a key is required and this is none.
        """
        if not self.required:
            return self._anonymous
        scheme, _, given = (authorization or "").partition(" ")
        digest, found = _digest(given.strip()), None
        for key in self._keys:  # all of them, so that the time says nothing
            if hmac.compare_digest(digest, key.digest):
                found = key.client
        if found is None or scheme.lower() != "bearer":
            raise ApiError(
                401,
                "A request has a key that this server knows, as `Authorization: Bearer KEY`, but "
                f"{'this one is not known' if authorization else 'there is none'}; give yours.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return found


def read_keys(path: Path, limits: Limits) -> Keys:
    """Keys of a YAML file: a list of entries with `name`, `key` and limits of their own.

    Args:
        path: of the file.
        limits: of keys that have none of their own; of several keys, each has half of the requests
            at the same time.

    Raises:
        ConfigError: the file is missing or not of this form.
    """
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"Keys are in a YAML file that can be read, but {str(path)!r} is none ({reason}); "
            "check it."
        ) from error
    if not isinstance(entries, list) or not entries:
        raise ConfigError(
            f"A file of keys is a list of `- name: ...` and `key: ...`, but {str(path)!r} is not; "
            "see docs/serving.md."
        )
    if len(entries) > 1:  # no key alone takes every place, see `Keys.share`
        half = max(1, limits.max_concurrent // 2)
        limits = dataclasses.replace(limits, max_concurrent=half)
    keys = [_key(entry, number, limits) for number, entry in enumerate(entries, 1)]
    for what, values in (
        ("name", [key.client.name for key in keys]),
        ("key", [key.digest for key in keys]),
    ):
        if len(set(values)) < len(values):
            raise ConfigError(f"Each entry of {str(path)!r} has a {what} of its own; change one.")
    return Keys(keys)


def _key(entry: Any, number: int, limits: Limits) -> Key:
    """One entry; what it holds is never shown, it may be the key."""
    known = {"name", "key", *(each.name for each in dataclasses.fields(Limits))}
    if not isinstance(entry, dict) or not {"name", "key"} <= set(entry) <= known:
        raise ConfigError(
            f"A key has `name`, `key` and, if need be, limits ({', '.join(sorted(known))}), but "
            f"entry {number} has other fields; change it."
        )
    name, key = entry["name"], entry["key"]
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(
            f"A key's name has small letters, digits, - and _, at most 32, but entry {number} has "
            f"{name!r}; give another."
        )
    own = {field: value for field, value in entry.items() if field not in ("name", "key")}
    client = Client(name=name, limits=dataclasses.replace(limits, **own))
    return Key(digest=_kept_digest(key, name), client=client)


def _kept_digest(key: Any, name: str) -> bytes:
    if isinstance(key, str) and _HASH.fullmatch(key):
        return bytes.fromhex(key.removeprefix(HASHED))
    if not isinstance(key, str) or len(key) < MIN_KEY_CHARS or key.startswith(HASHED):
        raise ConfigError(
            f"A key is text of {MIN_KEY_CHARS} characters or more, or `{HASHED}` with 64 digits, "
            f"but that of {name!r} is neither; make one, for example with `openssl rand -hex 24`."
        )
    return _digest(key)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()
