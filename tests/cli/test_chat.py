"""`extensible chat`: turns, and how it ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from extensible_embedding import AnswerStream, Prompt, Reader, prompt
from extensible_embedding.prompt import Turn

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


def test_a_question_that_is_too_long_does_not_end_the_chat(run: Run, saved: Path) -> None:
    questions = f"Who?\n{'Who? ' * 200}\nWhy?\n"
    result = run("chat", saved, "--max-new-tokens", "4", stdin=questions)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("Error: ") == 1
    assert "ask a shorter one" in result.stderr
    assert result.stderr.count("context tokens in") == 2


def test_ctrl_c_stops_only_the_answer(
    run: Run, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces, histories = iter(["Once ", KeyboardInterrupt(), "Then."]), []

    def say(stream: AnswerStream) -> Iterator[str]:
        for piece in pieces:
            if isinstance(piece, KeyboardInterrupt):
                raise piece
            yield piece

    def ask(reader: Reader, contexts: object, question: str, history: list[Turn] = []) -> Prompt:  # noqa: B006
        histories.append(list(history))
        return question_prompt(reader, contexts, question, history)

    question_prompt = prompt.question_prompt
    monkeypatch.setattr(AnswerStream, "__iter__", say)
    monkeypatch.setattr(prompt, "question_prompt", ask)
    result = run("chat", saved, "--max-new-tokens", "4", stdin="Who?\nWhy?\n")
    assert result.exit_code == 0, result.output
    assert "[stopped]" in result.stderr
    assert result.stdout == "Once \nThen.\n"
    assert histories[-1] == [("Who?", "Once")]


def test_ctrl_c_at_the_prompt_ends(run: Run, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object, **settings: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rich.console.Console.input", interrupt)
    result = run("chat", saved, "--max-new-tokens", "4")
    assert (result.exit_code, result.stdout) == (0, "")
