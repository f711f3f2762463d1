"""A journal survives kills, and belongs to one configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from extensible_embedding.errors import InputError, StorageError
from extensible_embedding.evals.journal import Journal

SETTINGS = {"seed": 1, "data": ["a", "b"]}


def test_what_was_put_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "j.jsonl"
    Journal(path, SETTINGS).put(("books", 1), {"nats": 2.5})
    again = Journal(path, SETTINGS)
    assert ("books", 1) in again
    assert again["books", 1] == {"nats": 2.5}
    assert len(again) == 1


def test_a_line_cut_off_by_a_kill_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    journal = Journal(path, SETTINGS)
    journal.put(("a", 1), 1.0)
    whole = path.read_bytes()
    journal.put(("a", 2), 2.0)
    for length in range(len(whole), len(path.read_bytes()) - 1):
        path.write_bytes(path.read_bytes()[:length] + b"")
        cut = Journal(path, SETTINGS)
        assert ("a", 1) in cut
        assert ("a", 2) not in cut
        cut.put(("a", 2), 2.0)
        assert Journal(path, SETTINGS)["a", 2] == 2.0


def test_a_first_line_cut_off_by_a_kill_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    Journal(path, SETTINGS)
    whole = path.read_bytes()
    for length in (0, 5, len(whole) - 1):
        path.write_bytes(whole[:length])
        Journal(path, SETTINGS).put(("a", 1), 1.0)
        assert Journal(path, SETTINGS)["a", 1] == 1.0


def test_a_folder_is_no_journal(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="A journal is a file"):
        Journal(tmp_path, SETTINGS)


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    Journal(path, SETTINGS)
    with pytest.raises(InputError, match="begun with seed 1, but now it is 2"):
        Journal(path, {**SETTINGS, "seed": 2})


@pytest.mark.parametrize(
    "text",
    ["no json\n", "[]\n", '{"a": 1}\n', "[" * 100_000 + "\n", '{"configuration": 1}\n', '{"x'],
)
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "j.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match="no journal of an evaluation"):
        Journal(path, SETTINGS)


def test_without_a_file_nothing_is_kept() -> None:
    journal = Journal(None, SETTINGS)
    journal.put(("a",), 1)
    assert journal[("a",)] == 1


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        Journal(tmp_path / "file" / "j.jsonl", SETTINGS)
