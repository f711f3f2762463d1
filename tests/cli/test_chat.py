"""`extensible chat`: turns, and how it ends."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from torch import Tensor

from extensible_embedding import (
    AnswerStream,
    Context,
    ContextStore,
    ExtensibleEmbedder,
    Prompt,
    Reader,
    prompt,
)
from extensible_embedding.answer import Plan
from extensible_embedding.expand import ByWords
from extensible_embedding.prompt import Turn
from extensible_embedding.store import conversation

from .conftest import Run, plain, refused


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


def test_forget_without_a_store(run: Run, saved: Path, asked: list[Asked]) -> None:
    assert run("chat", saved, *SHORT, stdin="Who?\n/forget\nWhy?\n").exit_code == 0
    assert [len(each.history) for each in asked[-1:]] == [0]


SHORT = ("--max-new-tokens", "4")
KEPT = (*SHORT, "--store", "talks", "--name", "mine")


@dataclass
class Asked:
    """What a prompt was made of."""

    contexts: list[Context]
    question: str
    history: list[Turn]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Asked]:
    """Prompts as they are made; every answer is `Said N.`."""
    made: list[Asked] = []
    question_prompt = prompt.question_prompt

    def ask(
        reader: Reader, contexts: list[Context], question: str, history: Sequence[Turn] = ()
    ) -> Prompt:
        if question != "?":
            made.append(Asked(list(contexts), question, list(history)))
        return question_prompt(reader, contexts, question, history)

    def say(stream: AnswerStream) -> Iterator[str]:
        yield f"Said {made[-1].question}"

    monkeypatch.setattr(AnswerStream, "__iter__", say)
    monkeypatch.setattr(prompt, "question_prompt", ask)
    return made


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """What is answered; every answer is `Said.`."""
    made: list[Plan] = []

    def begin(stream: AnswerStream, reader: Reader, plan: Plan, settings: object) -> None:
        made.append(plan)

    def say(stream: AnswerStream) -> Iterator[str]:
        yield "Said."

    monkeypatch.setattr(AnswerStream, "__init__", begin)
    monkeypatch.setattr(AnswerStream, "__iter__", say)
    return made


def raw_text(reader: Reader, plan: Plan) -> str:
    """What is read raw of the contexts."""
    spans = plan.prompt.spans
    return "".join(reader.decode(each.context.token_ids[each.start : each.end]) for each in spans)


@pytest.fixture
def walks() -> str:
    """A text that is much longer than the window of 512."""
    names = "abcdefghijklmnopqrstuvwxyz"
    Path("walks.txt").write_text(" ".join(f"Miss {name * 9} went up the hill." for name in names))
    return "walks.txt"


def test_each_question_has_its_passages_raw(
    run: Run, walks: str, tiny_reader: Reader, plans: list[Plan]
) -> None:
    result = run("chat", walks, *SHORT, stdin="Is it kkkkkkkkk?\nOr sssssssss?\n")
    assert result.exit_code == 0, result.output
    first, second = (raw_text(tiny_reader, each) for each in plans)
    assert "kkkkkkkkk went" in first
    assert "sssssssss went" in second
    assert "kkkkkkkkk" not in second
    assert run("chat", walks, *SHORT, "--expand", "off", stdin="Is it k?\n").exit_code == 0
    assert plans[-1].prompt.spans == []


@pytest.mark.parametrize("k", ["auto", "16"])
@pytest.mark.parametrize("kept", [SHORT, KEPT])
def test_turns_leave_room_for_passages(
    run: Run, walks: str, tiny_reader: Reader, plans: list[Plan], kept: tuple[str], k: str
) -> None:
    questions = [f"{letter * 60}?" for letter in "ABCDEFGH"]
    said = "\n".join([*questions, "Is it kkkkkkkkk?"])
    result = run("chat", walks, *kept, "--k", k, stdin=said)
    assert result.exit_code == 0, result.output
    assert "Error" not in result.stderr
    assert all(each.prompt_rows + 4 <= 512 for each in plans)
    assert "kkkkkkkkk went" in raw_text(tiny_reader, plans[-1])
    assert all(sum(map(len, each.prompt.spans)) > 100 for each in plans)
    head, tail = plans[-1].prompt.parts[0], plans[-1].prompt.parts[-1]
    assert isinstance(tail, Tensor)
    assert questions[-1] in tiny_reader.decode(tail) + tiny_reader.decode(head)  # of the history


def test_passages_take_no_more_than_asked(run: Run, walks: str, plans: list[Plan]) -> None:
    assert run("chat", walks, *SHORT, "--expand", "70", stdin="Is it kkkkkkkkk?\n").exit_code == 0
    assert 0 < sum(map(len, plans[0].prompt.spans)) <= 70


def test_chat_cites(run: Run, walks: str) -> None:
    result = run("chat", walks, *SHORT, "--cite", stdin="Is it kkkkkkkkk?\n")
    assert result.exit_code == 0, result.output
    assert re.search(r"\[1\] walks, bytes [\d,]+ to [\d,]+, read raw", result.stdout)
    assert "Miss kkkkkkkkk went up the hill." in plain(result.stdout)


def test_ctrl_c_while_passages_are_looked_for_does_not_end_the_chat(
    run: Run, walks: str, plans: list[Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    rank, pressed = ByWords.rank, []

    def once(*arguments: object) -> list[int]:
        if not pressed:
            pressed.append(True)
            raise KeyboardInterrupt
        return rank(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(ByWords, "rank", once)
    result = run("chat", walks, *SHORT, stdin="Is it k?\nIs it s?\n")
    assert result.exit_code == 0, result.output
    assert "[stopped]" in result.stderr
    assert len(plans) == 1


@pytest.mark.usefixtures("no_reader")
def test_chat_refuses_an_expand_that_is_no_number(run: Run, walks: str) -> None:
    refused(run("chat", walks, "--expand", "some"), 2, "--expand is a number of tokens")


def test_a_chat_goes_on_after_a_restart(run: Run, library: Path, asked: list[Asked]) -> None:
    assert run("chat", library, *KEPT, stdin="Who?\nWhy?\n").exit_code == 0
    result = run("chat", library, *KEPT, stdin="Where?\n")
    assert result.exit_code == 0, result.output
    assert "talks:mine goes on after 2 turns" in result.stderr
    assert asked[-1].history == [("Who?", "Said Who?"), ("Why?", "Said Why?")]
    assert ContextStore("talks")["mine"].text().count("Question: ") == 3


def test_each_turn_is_kept_before_the_next_question(
    run: Run, library: Path, asked: list[Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    lines = iter(["Who?", "Why?"])

    def next_line(*arguments: object, **settings: object) -> str:
        store = ContextStore("talks")
        seen.append(store["mine"].text() if "mine" in store else "")
        line = next(lines, None)
        if line is None:
            raise EOFError
        return line

    monkeypatch.setattr("rich.console.Console.input", next_line)
    assert run("chat", library, *KEPT).exit_code == 0
    assert [text.count("Answer: Said") for text in seen] == [0, 1, 2]


def test_old_turns_become_rows(run: Run, library: Path, asked: list[Asked]) -> None:
    """The window of 512 holds a quarter of raw turns, and the conversation outgrows it."""
    questions = [f"{letter * 20}?" for letter in "abcdefghij"]
    result = run("chat", library, *KEPT, stdin="\n".join(questions))
    assert result.exit_code == 0, result.output
    assert "Error" not in result.stderr
    document, earlier = asked[-1].contexts
    text = ContextStore("talks")["mine"].text()
    assert len(text.encode()) > 512
    assert (document.title, earlier.title) == ("A book", conversation.TITLE)
    assert 0 < len(asked[-1].history) < 7
    raw = "".join(conversation.written(*turn) for turn in asked[-1].history)
    older = text[: text.index(questions[-1]) - len("Question: ") - len(raw)]
    assert 0 <= earlier.num_tokens - len(older) < 4


def test_what_no_longer_fits_goes_from_the_prompt_alone(
    run: Run, library: Path, asked: list[Asked]
) -> None:
    """At a fixed k, the oldest rows are left out; the store has them all."""
    ContextStore(library).delete("book")
    Path("note.txt").write_text("A short note.")
    questions = [f"{letter * 150}?" for letter in "abcdefghij"]
    result = run("chat", "note.txt", *KEPT, "--k", "4", stdin="\n".join(questions))
    assert result.exit_code == 0, result.output
    assert "Error" not in result.stderr
    text = ContextStore("talks")["mine"].text()
    assert text.count("Question: ") == len(questions)
    assert any(
        len(each.contexts) == 2 and each.contexts[1].num_tokens < len(text) / 2 for each in asked
    )


def test_forget_deletes_the_conversation(run: Run, library: Path, asked: list[Asked]) -> None:
    result = run("chat", library, *KEPT, stdin="Who?\n/forget\nWhy?\n/forget\n")
    assert result.exit_code == 0, result.output
    assert result.stderr.count("Forgotten.") == 2
    assert asked[-1].history == []
    assert list(ContextStore("talks")) == []
    assert not list(Path("talks").rglob("*.txt"))


def test_ctrl_c_keeps_what_was_said(
    run: Run, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def say(stream: AnswerStream) -> Iterator[str]:
        yield "Once "
        raise KeyboardInterrupt

    monkeypatch.setattr(AnswerStream, "__iter__", say)
    assert run("chat", library, *KEPT, stdin="Who?\n").exit_code == 0
    assert ContextStore("talks")["mine"].text() == "Question: Who?\nAnswer: Once\n\n"


@pytest.mark.parametrize("there", [False, True])
def test_ctrl_c_while_a_turn_is_kept_keeps_it_once(
    run: Run, library: Path, asked: list[Asked], monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    """Be it before or after the store has it."""
    add, pressed = ContextStore.add, []

    def interrupted(*arguments: object, **settings: object) -> object:
        if pressed:
            return add(*arguments, **settings)  # type: ignore[arg-type]
        pressed.append(True)
        if there:
            add(*arguments, **settings)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(ContextStore, "add", interrupted)
    assert run("chat", library, *KEPT, stdin="Who?\nWhy?\n").exit_code == 130
    assert ContextStore("talks")["mine"].text() == "Question: Who?\nAnswer: Said Who?\n\n"


def test_the_conversation_is_no_document_of_its_store(
    run: Run, library: Path, asked: list[Asked]
) -> None:
    for _ in range(2):
        result = run("chat", library, *SHORT, "--store", library, stdin="Who?\n")
        assert result.exit_code == 0, result.output
    assert [context.title for context in asked[-1].contexts] == ["A book"]
    assert "conversation" in ContextStore(library)


def test_conversations_that_cannot_go_on(
    run: Run, library: Path, tiny_embedder: ExtensibleEmbedder, asked: list[Asked]
) -> None:
    chat = ("chat", library, *SHORT)
    refused(run(*chat, "--name", "mine"), 2, "without --store")
    refused(run(*chat, "--store", library, "--name", "book"), 2, "'book' is a text", "choose")
    refused(run(*chat, "--store", "talks", "--name", "a/b"), 2, "no path")
    refused(run(*chat, "--store", "memory://talks"), 2, "behind a URL")
    assert run(*chat, "--store", "talks", stdin="Who?\n").exit_code == 0
    result = run("chat", "note.txt", *SHORT, "--store", "talks", "--k", "6")
    refused(result, 2, "note.txt")
    Path("note.txt").write_text("A short note.")
    result = run("chat", "note.txt", *SHORT, "--store", "talks", "--k", "6")
    refused(result, 2, "talks:conversation' was compressed at k=4", "store reembed talks")
    other = run("chat", "note.txt", *SHORT, "--store", "more", "--k", "6", stdin="Who?\n")
    assert other.exit_code == 0
    assert ContextStore("more")["conversation"].settings.k == 6
