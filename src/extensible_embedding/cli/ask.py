"""`extensible ask`: one question about files and saved contexts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Annotated

import typer

from ..answer import Answer, AnswerStream, Plan
from ..context import Context
from ..prompt import AUTO, question_prompt
from ..reader import Reader
from .console import load_reader, stderr
from .options import (
    RELEASED,
    EmbedderOption,
    JsonOption,
    KOption,
    NewTokensOption,
    ReaderOption,
    parse_k,
)
from .sources import Source, SourcesArgument, contexts_of, open_sources


def ask(
    sources: SourcesArgument,
    question: Annotated[
        str, typer.Option("--question", "-q", metavar="TEXT", help="What you want to know.")
    ],
    k: KOption = AUTO,
    stream: Annotated[
        bool,
        typer.Option("--stream/--no-stream", help="Print the answer as it comes, or when done."),
    ] = True,
    max_new_tokens: NewTokensOption = 128,
    reader: ReaderOption = "default",
    embedder: EmbedderOption = RELEASED,
    as_json: JsonOption = False,
) -> None:
    """Ask a question about long documents.

    A FILE is compressed on the way; a DIR was compressed before and is ready at once. The answer
    goes to stdout; what was read, at which k and in how many rows, to stderr.
    """
    scale_factor, opened = parse_k(k), open_sources(sources)
    loaded = load_reader(reader)
    reserve = question_rows(opened, loaded, question) + max_new_tokens
    contexts = contexts_of(opened, loaded, embedder, k=scale_factor, reserve=reserve)
    prompt = question_prompt(loaded, contexts, question)
    plan = loaded.plan(prompt, scale_factor, max_new_tokens)
    stderr().print(describe(plan, contexts, loaded), markup=False)
    reply = loaded.reply(
        prompt, k=plan.k, stream=stream and not as_json, max_new_tokens=max_new_tokens
    )
    if isinstance(reply, AnswerStream):
        print_stream(reply)
    else:
        typer.echo(_as_json(reply) if as_json else reply.text)


def question_rows(sources: Sequence[Source], reader: Reader, question: str) -> int:
    """Rows that a question and the titles of its sources take."""
    titles = "".join(f"\n\nDocument: {source.title}\n" for source in sources)
    return question_prompt(reader, [], question).num_raw + len(reader.encode(titles)) + len(sources)


def describe(plan: Plan, contexts: Sequence[Context], reader: Reader) -> str:
    """One line: what is read, at which k, in how many rows."""
    tokens = sum(context.num_tokens for context in contexts)
    rows = sum(context.rows_at(plan.k) for context in contexts)
    kind = "raw text" if plan.k == 1 else "compressed"
    return (
        f"k={plan.k} ({kind}): {tokens:,} context tokens in {rows:,} rows; the prompt takes "
        f"{plan.prompt_rows:,} of the window's {reader.window:,} rows."
    )


def print_stream(stream: AnswerStream) -> str:
    """Prints an answer as it comes and returns it."""
    pieces = []
    for piece in stream:
        pieces.append(piece)
        typer.echo(piece, nl=False)
    typer.echo()
    return "".join(pieces).strip()


def _as_json(answer: Answer) -> str:
    return json.dumps(dataclasses.asdict(answer), indent=2, ensure_ascii=False)
