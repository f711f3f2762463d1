"""`extensible ask`: one question about files and contexts that were kept."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ..errors import InputError, WindowError
from .console import load_reader, note, quiet_libraries
from .options import AUTO, JsonOption, Models, NewTokensOption, ReadingKOption, parse_k, with_models
from .sources import Source, SourcesArgument, contexts_of, open_sources

if TYPE_CHECKING:
    from collections.abc import Generator

    from ..answer import AnswerStream, Plan
    from ..reader import Reader


@with_models
def ask(
    sources: SourcesArgument,
    question: Annotated[
        str, typer.Option("--question", "-q", metavar="TEXT", help="What you want to know.")
    ],
    k: ReadingKOption = AUTO,
    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream/--no-stream",
            help="Print the answer as it comes (unless --json asks for all of it), or when done.",
        ),
    ] = None,
    max_new_tokens: NewTokensOption = 128,
    as_json: JsonOption = False,
    *,
    models: Models,
) -> None:
    """Ask a question about long documents.

    A file is compressed on the way; what `extensible compress` kept is ready at once: STORE stands
    for all contexts of a store, STORE:NAME for one. The answer goes to stdout; what was read, at
    which k and in how many rows, to stderr.
    """
    if as_json and stream:
        raise InputError(
            "--json prints an answer when it is whole, but --stream asks for its pieces; leave out "
            "one of the two."
        )
    if not question.strip():
        raise InputError("--question is empty; ask something, for example `-q 'Who is Emma?'`.")
    scale_factor = parse_k(k)
    opened = open_sources(sources, scale_factor)
    reply = Reply(k=scale_factor, max_new_tokens=max_new_tokens, stream=stream is not False)
    _ask(opened, question, reply, models, as_json=as_json)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """How a question is to be answered."""

    k: int | str
    max_new_tokens: int
    stream: bool = True


@quiet_libraries()
def _ask(
    sources: Sequence[Source], question: str, how: Reply, models: Models, *, as_json: bool
) -> None:
    from ..answer import Answer
    from ..prompt import question_prompt

    reader = load_reader(models.reader, models)
    room = room_for_prompt(reader, question, how.max_new_tokens)
    prompt_of = partial(question_prompt, reader, question=question)
    contexts = contexts_of(sources, reader, models, k=how.k, prompt_of=prompt_of, room=room)
    prompt = prompt_of(contexts)
    plan = reader.plan(prompt, how.k, how.max_new_tokens)
    note(describe(plan, reader, how.k))
    reply = reader.respond(
        plan, stream=how.stream and not as_json, max_new_tokens=how.max_new_tokens
    )
    if not isinstance(reply, Answer):
        print_stream(reply)
    elif as_json:
        typer.echo(json.dumps(dataclasses.asdict(reply), indent=2, ensure_ascii=False))
    else:
        typer.echo(reply.text)


def room_for_prompt(reader: Reader, question: str, max_new_tokens: int) -> int:
    """Rows of the window that are left for text and question.

    Raises:
        WindowError: the question or the answer leaves none for the text.
    """
    from ..prompt import question_prompt

    rows = question_prompt(reader, [], question).num_raw
    left = reader.window - rows - 1  # a row of text at the least
    if left < 1:
        raise WindowError(
            f"The reader's window holds {reader.window} rows, but the question alone takes "
            f"{rows}; ask a shorter one."
        )
    if max_new_tokens > left:
        raise WindowError(
            f"--max-new-tokens must leave room for text and question ({rows} rows) in the reader's "
            f"window of {reader.window} rows, but it is {max_new_tokens}; give at most {left}, "
            "better far less."
        )
    return reader.window - max_new_tokens


def describe(plan: Plan, reader: Reader, asked: int | str) -> str:
    """One line: what is read, at which k, in how many rows."""
    rows = plan.prompt_rows - plan.prompt.num_raw
    kind = "compressed"
    if plan.k == 1:
        kind = "raw text" if asked == 1 else "the text fits, so it is read raw; --k 4 forces rows"
    return (
        f"k={plan.k} ({kind}): {plan.num_context_tokens:,} context tokens in {rows:,} rows; the "
        f"prompt takes {plan.prompt_rows:,} of the window's {reader.window:,} rows."
    )


def print_stream(stream: AnswerStream, *, stoppable: bool = False) -> str:
    """Prints an answer as it comes and returns it; if stoppable, as far as it came at Ctrl-C."""
    pieces: list[str] = []
    # Closed at once, so that nothing is generated on after Ctrl-C.
    with closing(cast("Generator[str]", iter(stream))) as coming:
        try:
            for piece in coming:
                pieces.append(piece)
                typer.echo(piece, nl=False)
        except KeyboardInterrupt:
            if not stoppable:
                raise
            typer.echo(" [stopped]", nl=False, err=True)
    typer.echo()
    return "".join(pieces).strip()
