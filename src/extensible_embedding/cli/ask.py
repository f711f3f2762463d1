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
from .citing import (
    WORDS,
    CiteOption,
    ExpandOption,
    SpansOption,
    parse_expand,
    print_citations,
    ranker_of,
)
from .console import load_reader, note, quiet_libraries, spinner
from .options import (
    AUTO,
    EachKOption,
    JsonOption,
    Models,
    NewTokensOption,
    parse_each_k,
    with_models,
)
from .sources import Source, SourcesArgument, contexts_of, open_sources

if TYPE_CHECKING:
    from collections.abc import Generator

    from ..answer import AnswerStream, Plan
    from ..context import Context
    from ..expand import SpanRanker
    from ..prompt import Prompt, Turn
    from ..reader import Reader


@with_models
def ask(
    sources: SourcesArgument,
    question: Annotated[
        str, typer.Option("--question", "-q", metavar="TEXT", help="What you want to know.")
    ],
    k: EachKOption = AUTO,
    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream/--no-stream",
            help="Print the answer as it comes (unless --json asks for all of it), or when done.",
        ),
    ] = None,
    expand: ExpandOption = AUTO,
    spans: SpansOption = WORDS,
    cite: CiteOption = False,
    max_new_tokens: NewTokensOption = 128,
    as_json: JsonOption = False,
    *,
    models: Models,
) -> None:
    """Ask a question about long documents.

    A file is compressed on the way; what `extensible compress` kept is ready at once: STORE stands
    for all contexts of a store, STORE:NAME for one. The answer goes to stdout; what was read, at
    which k and in how many rows, to stderr. Rows give the gist; passages that share words with the
    question are read raw beside them, for exact names and numbers (`--expand off`: rows alone). Add
    `--cite` to see where an answer comes from.
    """
    if as_json and stream:
        raise InputError(
            "--json prints an answer when it is whole, but --stream asks for its pieces; leave out "
            "one of the two."
        )
    if not question.strip():
        raise InputError("--question is empty; ask something, for example `-q 'Who is Emma?'`.")
    scale_factor = parse_each_k(k)
    opened = open_sources(sources, scale_factor)
    reply = Reply(
        k=scale_factor,
        max_new_tokens=max_new_tokens,
        stream=stream is not False,
        expand=parse_expand(expand),
        spans=spans,
        cite=cite,
    )
    _ask(opened, question, reply, models, as_json=as_json)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """How a question is to be answered."""

    k: int | str | tuple[int, ...]
    """Of all sources, or of each."""
    max_new_tokens: int
    stream: bool = True
    expand: int | str = 0
    """Tokens of spans that are read raw, or "auto"."""
    spans: str = WORDS
    """How they are chosen."""
    cite: bool = False


@quiet_libraries()
def _ask(
    sources: Sequence[Source], question: str, how: Reply, models: Models, *, as_json: bool
) -> None:
    from ..prompt import question_prompt

    ranker = ranker_of(how.spans) if how.expand else None
    reader = load_reader(models.reader, models)
    room = room_for_prompt(reader, question, how.max_new_tokens)
    prompt_of = partial(question_prompt, reader, question=question)
    contexts = contexts_of(sources, reader, models, k=how.k, prompt_of=prompt_of, room=room)
    prompt = expanded(reader, contexts, question, how, room, ranker)
    plan = reader.plan(prompt, how.k, how.max_new_tokens)
    note(describe(plan, reader, how.k))
    _reply(reader, plan, how, as_json=as_json)


def expanded(
    reader: Reader,
    contexts: Sequence[Context],
    question: str,
    how: Reply,
    room: int,
    ranker: SpanRanker | None,
    history: Sequence[Turn] = (),
) -> Prompt:
    """The prompt with the spans that matter raw; without a ranker, none."""
    from ..expand import expanded_prompt
    from ..prompt import question_prompt

    if ranker is None:
        return question_prompt(reader, contexts, question, history)
    with spinner("Looking for the spans that matter ..."):
        return expanded_prompt(
            reader,
            contexts,
            question,
            k=how.k,
            expand=how.expand,
            room=room,
            history=history,
            ranker=ranker,
        )


def _reply(reader: Reader, plan: Plan, how: Reply, *, as_json: bool) -> None:
    """Answers, and says where the answer comes from if that was asked."""
    from ..answer import Answer
    from ..cite import citations

    reply = reader.respond(
        plan, stream=how.stream and not as_json, max_new_tokens=how.max_new_tokens
    )
    text = reply.text if isinstance(reply, Answer) else print_stream(reply)
    cited = citations(reader, plan, text) if how.cite else []
    if as_json:
        assert isinstance(reply, Answer)
        result = dataclasses.asdict(reply)
        if how.cite:
            result["citations"] = [dataclasses.asdict(each) for each in cited]
        typer.echo(json.dumps(result, indent=2, ensure_ascii=False))
        return
    if isinstance(reply, Answer):
        typer.echo(reply.text)
    print_citations(cited)


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


def describe(plan: Plan, reader: Reader, asked: int | str | tuple[int, ...]) -> str:
    """One line: what is read, at which k, in how many rows."""
    rows = plan.prompt_rows - plan.prompt.num_raw
    kind = "compressed"
    if plan.k == 1:
        forced = asked == 1 or (isinstance(asked, tuple) and set(asked) == {1})
        kind = "raw text" if forced else "the text fits, so it is read raw; --k 4 forces rows"
    shown = ", ".join(map(str, plan.ks)) if len(set(plan.ks)) > 1 else plan.k
    return (
        f"k={shown} ({kind}): {plan.num_context_tokens:,} context tokens in {rows:,} rows; the "
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
