"""`extensible chat`: questions in turn about files and saved contexts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import typer

from ..answer import AnswerStream, Plan
from ..context import Context
from ..errors import WindowError
from ..prompt import AUTO, Turn, question_prompt
from ..reader import Reader
from .ask import describe, print_stream
from .compress import reserve_rows
from .console import load_reader, stderr
from .options import RELEASED, EmbedderOption, KOption, NewTokensOption, ReaderOption, parse_k
from .sources import SourcesArgument, contexts_of, open_sources

QUIT = "/quit"


def chat(
    sources: SourcesArgument,
    k: KOption = AUTO,
    max_new_tokens: NewTokensOption = 128,
    reader: ReaderOption = "default",
    embedder: EmbedderOption = RELEASED,
) -> None:
    """Talk about long documents, turn by turn.

    Type a question and press Enter; `/quit` or the end of input (Ctrl-D) ends. Earlier turns are
    kept as far as the window allows, the oldest are dropped first.
    """
    scale_factor, opened = parse_k(k), open_sources(sources)
    loaded = load_reader(reader)
    reserve = reserve_rows(loaded) + max_new_tokens
    contexts = contexts_of(opened, loaded, embedder, k=scale_factor, reserve=reserve)
    stderr().print(f"Ask away; {QUIT} or Ctrl-D ends.", markup=False)
    history: list[Turn] = []
    for question in _questions():
        plan = _plan(loaded, contexts, question, history, scale_factor, max_new_tokens)
        stderr().print(describe(plan, contexts, loaded), style="dim", markup=False)
        reply = loaded.reply(plan.prompt, k=plan.k, stream=True, max_new_tokens=max_new_tokens)
        assert isinstance(reply, AnswerStream)
        history.append((question, print_stream(reply)))


def _questions() -> Iterator[str]:
    while True:
        try:
            line = stderr().input("> ", markup=False).strip()
        except EOFError:
            typer.echo(err=True)
            return
        if line == QUIT:
            return
        if line:
            yield line


def _plan(
    reader: Reader,
    contexts: Sequence[Context],
    question: str,
    history: list[Turn],
    k: int | str,
    max_new_tokens: int,
) -> Plan:
    """The prompt with as much history as fits; drops the oldest turns from `history` itself."""
    while True:
        prompt = question_prompt(reader, contexts, question, history)
        try:
            return reader.plan(prompt, k, max_new_tokens)
        except WindowError:
            if not history:
                raise
            history.pop(0)
