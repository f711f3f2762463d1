"""Files of results: whole or not there, and as readable as the user has files be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from extensible_embedding.errors import StorageError
from extensible_embedding.evals.records import write_text


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_file_has_the_mode_that_the_umask_allows(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_text(tmp_path / "out" / "lm.json", "{}\n")
    finally:
        os.umask(before)
    (file,) = (tmp_path / "out").iterdir()
    assert (file.name, file.read_text()) == ("lm.json", "{}\n")
    assert file.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("place", [".", "file/lm.json"])
def test_where_no_file_can_be(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("keep me")
    with pytest.raises(StorageError, match="choose another file"):
        write_text(tmp_path / place, "{}")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "keep me"
