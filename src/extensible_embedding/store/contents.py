"""Contexts by what they hold: the same text with the same settings is computed once.

In: a local store. Out: the segments of a context with a content, put into another's folder. There
is no index that could disagree with the store: manifests are searched for the hash that stands in
them, and only those that have it are decoded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import CheckpointError, MismatchError
from .files import is_whole, share
from .manifest import MANIFEST, Manifest, Settings, decode
from .names import CONTEXTS, folder_of, is_folder
from .segment import Segment


def shared_segments(
    root: Path, folder: Path, end_chain: str, settings: Settings
) -> Sequence[Segment] | None:
    """Segments of a context that has just these chunks and settings, and is whole; None if none is.

    Args:
        root: of the store.
        folder: of a context, which gets the files.
        end_chain: of all chunks.
        settings: of the rows.
    """
    for manifest in _with(root, end_chain):
        files = [root / folder_of(manifest.name) / each for each in manifest.files]
        same = (manifest.end_chain, manifest.settings) == (end_chain, settings)
        if same and all(map(is_whole, files)):
            try:
                for file in files:
                    share(file, folder)
            except FileNotFoundError:  # that context was changed meanwhile
                continue
            return manifest.segments
    return None


def _with(root: Path, end_chain: str) -> Iterator[Manifest]:
    """Manifests that have a chain; a damaged context is no reason to refuse another."""
    for name in sorted(filter(is_folder, os.listdir(root / CONTEXTS))):
        where = f"{CONTEXTS}/{name}"
        try:
            data = (root / where / MANIFEST).read_bytes()
            found = decode(data, where).in_folder(where) if end_chain.encode() in data else None
        except (OSError, CheckpointError, MismatchError):
            continue
        if found is not None:
            yield found
