"""A journal of measurements: a killed evaluation goes on where it was, and scoring can be rerun.

In: a key and a value for each measurement, as they are made. Out: one JSON line each, after a first
line that says what they belong to. Knows nothing of what is measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError, StorageError

Key = tuple[str | int, ...]


class Journal:
    """Measurements by key, kept in a file if one is named.

    Args:
        path: of the file, or None to keep nothing.
        configuration: what the measurements depend on; a file of another one is refused.

    Raises:
        InputError: the file belongs to another configuration, or is no journal.
        StorageError: the file cannot be written.
    """

    def __init__(self, path: Path | None, configuration: Mapping[str, object]) -> None:
        self.path, self._values = path, dict[Key, Any]()
        if path is None:
            return
        wanted = json.loads(json.dumps(dict(configuration), default=str))
        first = {"configuration": wanted}
        try:
            text = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise InputError(
                f"A journal is a file, but {str(path)!r} cannot be read ({error}); choose another."
            ) from error
        if _line(first).startswith(text):  # what a kill leaves of the first line begins anew
            self._cut(path, len(text), 0)
            self._write(first)
        else:
            self._read(path, text, wanted)

    def __contains__(self, key: Key) -> bool:
        return key in self._values

    def __getitem__(self, key: Key) -> Any:
        return self._values[key]

    def get(self, key: Key, default: Any = None) -> Any:
        """The value of a key, or the default."""
        return self._values.get(key, default)

    def __len__(self) -> int:
        return len(self._values)

    def put(self, key: Key, value: object) -> None:
        """Keeps a measurement, in the file before this returns."""
        self._values[key] = value
        if self.path is not None:
            self._write({"key": list(key), "value": value})

    def _read(self, path: Path, text: bytes, wanted: Mapping[str, object]) -> None:
        """Takes over every whole line; one that was cut off by a kill is cut off the file."""
        whole = text[: text.rfind(b"\n") + 1]
        try:
            first, *lines = [json.loads(line) for line in whole.splitlines()]
            found = dict(first["configuration"])
            self._values = {tuple(line["key"]): line["value"] for line in lines}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(
                f"{str(path)!r} is no journal of an evaluation ({error}); choose another file."
            ) from error
        for name in wanted:
            if name not in found or found[name] != wanted[name]:
                raise InputError(
                    f"{str(path)!r} was begun with {name} {found.get(name)!r}, but now it is "
                    f"{wanted[name]!r}; go on with the same settings, delete it, or choose another "
                    "file."
                )
        self._cut(path, len(text), len(whole))

    def _cut(self, path: Path, found: int, kept: int) -> None:
        """Shortens the file to whole lines."""
        if kept == found:
            return
        try:
            with path.open("r+b") as file:
                file.truncate(kept)
        except OSError as error:
            raise _unwritable(path, error) from error

    def _write(self, line: Mapping[str, object]) -> None:
        assert self.path is not None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(_line(line))
        except OSError as error:
            raise _unwritable(self.path, error) from error


def _line(of: Mapping[str, object]) -> bytes:
    return (json.dumps(of, ensure_ascii=False) + "\n").encode()


def _unwritable(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"A journal needs a writable place with room, but {str(path)!r} cannot be written "
        f"({error}); free some space or choose another file."
    )
