"""`extensible chat`: turns, and how it ends."""

from __future__ import annotations

from pathlib import Path

from .conftest import Run


def test_chat_answers_until_quit(run: Run, saved: Path) -> None:
    result = run("chat", saved, "--max-new-tokens", "4", stdin="Who?\n\nWhy?\n/quit\nNever?\n")
    assert result.exit_code == 0, result.output
    assert result.stderr.count("context tokens in") == 2


def test_chat_ends_with_the_input(run: Run, book: Path) -> None:
    assert run("chat", book, "--max-new-tokens", "4", stdin="Who?\n").exit_code == 0


def test_chat_drops_the_oldest_turns(run: Run, saved: Path) -> None:
    long_turns = "".join(f"{letter * 100}?\n" for letter in "abcdefgh")
    result = run("chat", saved, "--max-new-tokens", "4", stdin=long_turns)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("context tokens in") == 8
