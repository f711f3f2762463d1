"""`extensible chat`: questions in turn about files and saved contexts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import typer

from ..errors import WindowError
from .ask import Reply, describe, print_stream, room_for_prompt
from .compress import reserve_rows
from .console import load_reader, note, quiet_libraries, stderr
from .options import AUTO, Models, NewTokensOption, ReadingKOption, parse_k, with_models
from .sources import Source, SourcesArgument, contexts_of, open_sources

if TYPE_CHECKING:
    from ..answer import Plan
    from ..context import Context
    from ..prompt import Turn
    from ..reader import Reader

QUIT = "/quit"


@with_models
def chat(
    sources: SourcesArgument,
    k: ReadingKOption = AUTO,
    max_new_tokens: NewTokensOption = 128,
    *,
    models: Models,
) -> None:
    """Talk about long documents, turn by turn.

    Type a question and press Enter. Ctrl-C stops an answer; `/quit`, the end of input (Ctrl-D) or
    Ctrl-C at the prompt ends. Earlier turns are kept as far as the window allows, the oldest are
    dropped first.
    """
    scale_factor = parse_k(k)
    opened = open_sources(sources, scale_factor)
    _chat(opened, Reply(k=scale_factor, max_new_tokens=max_new_tokens), models)


@quiet_libraries()
def _chat(sources: Sequence[Source], how: Reply, models: Models) -> None:
    from ..prompt import question_prompt

    reader = load_reader(models.reader, models)
    room = room_for_prompt(reader, "?", how.max_new_tokens)
    room = max(room - reserve_rows(reader), room // 2)  # for questions and earlier turns
    prompt_of = partial(question_prompt, reader, question="?")
    contexts = contexts_of(sources, reader, models, k=how.k, prompt_of=prompt_of, room=room)
    note(f"Ask away; Ctrl-C stops an answer, {QUIT} or Ctrl-D ends.")
    history: list[Turn] = []
    for question in _questions():
        try:
            said = _turn(reader, contexts, question, history, how)
        except WindowError as error:
            typer.echo(f"Error: {error}", err=True)
            continue
        if said:
            history.append((question, said))


def _questions() -> Iterator[str]:
    while True:
        try:
            line = stderr().input("> ", markup=False).strip()
        except (EOFError, KeyboardInterrupt):
            typer.echo(err=True)
            return
        if line == QUIT:
            return
        if line:
            yield line


def _turn(
    reader: Reader, contexts: Sequence[Context], question: str, history: list[Turn], how: Reply
) -> str:
    """Answers a question; Ctrl-C leaves what was said so far."""
    room_for_prompt(reader, question, how.max_new_tokens)
    plan = _plan(reader, contexts, question, history, how)
    note(describe(plan, contexts, reader, how.k))
    reply = reader.reply(plan.prompt, k=plan.k, stream=True, max_new_tokens=how.max_new_tokens)
    return print_stream(reply, stoppable=True)


def _plan(
    reader: Reader, contexts: Sequence[Context], question: str, history: list[Turn], how: Reply
) -> Plan:
    """The prompt with as much history as fits; drops the oldest turns from `history` itself.

    A question that does not fit without any leaves it as it was.
    """
    from ..prompt import question_prompt

    kept = list(history)
    while True:
        prompt = question_prompt(reader, contexts, question, kept)
        try:
            plan = reader.plan(prompt, how.k, how.max_new_tokens)
        except WindowError:
            if not kept:
                raise
            kept.pop(0)
        else:
            history[:] = kept
            return plan
