"""`extensible chat`: questions in turn about files and contexts that were kept."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ..errors import InputError, WindowError
from .ask import Reply, describe, expanded, print_stream, room_for_prompt
from .citing import (
    WORDS,
    CiteOption,
    ExpandOption,
    SpansOption,
    parse_expand,
    print_citations,
    ranker_of,
)
from .console import load_embedder, load_reader, note, quiet_libraries, spinner, stderr
from .options import AUTO, Models, NewTokensOption, ReadingKOption, parse_k, with_models
from .sources import (
    Source,
    SourcesArgument,
    check_readable,
    contexts_of,
    open_sources,
    stored_source,
)
from .stores import KEPT_K, store_to_fill

if TYPE_CHECKING:
    from ..answer import AnswerStream, Plan
    from ..context import Context
    from ..embedder import ExtensibleEmbedder
    from ..expand import SpanRanker
    from ..prompt import Turn
    from ..reader import Reader
    from ..store.conversation import Conversation
    from ..store.store import ContextStore

QUIT, FORGET = "/quit", "/forget"
CONVERSATION = "conversation"
RESERVE_ROWS = 512
"""Rows kept free for questions, answers and earlier turns."""
_PARTS = (1.0, 0.5, 0.25, 0.125, 0.0)
"""Of the earlier conversation, the latest first: how much is read as rows, as far as it fits."""
_KEPT_BYTES = 64 << 20
"""Of the words of the texts, so that passages for the next question are found at once."""


@with_models
def chat(
    sources: SourcesArgument,
    k: ReadingKOption = AUTO,
    expand: ExpandOption = AUTO,
    spans: SpansOption = WORDS,
    cite: CiteOption = False,
    max_new_tokens: NewTokensOption = 128,
    store: Annotated[
        str | None,
        typer.Option(
            "--store",
            metavar="STORE",
            help="Keep what is said in this store, and go on with what was said before.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            metavar="NAME",
            help=f"What the conversation is called in --store; by default `{CONVERSATION}`.",
        ),
    ] = None,
    *,
    models: Models,
) -> None:
    """Talk about long documents, turn by turn.

    Type a question and press Enter. Ctrl-C stops an answer; `/quit`, the end of input (Ctrl-D) or
    Ctrl-C at the prompt ends. Recent turns are read raw as far as the window allows, and the oldest
    are dropped first. With --store they are kept, each before the next question; older turns are
    then read as rows, and the next chat of that name goes on. `/forget` deletes them. Passages that
    share words with the question are read raw, as `ask` does, also those of such turns.
    """
    how = Reply(
        k=parse_k(k),
        max_new_tokens=max_new_tokens,
        expand=parse_expand(expand),
        spans=spans,
        cite=cite,
    )
    kept = _where(store, name)
    opened = open_sources(sources, how.k)
    if kept is not None:
        opened = [source for source in opened if not _is_at(source, *kept)]
        if not opened:
            note("These sources hold this conversation alone: nothing else is read.")
    _chat(opened, how, models, kept)


def _where(store: str | None, name: str | None) -> tuple[ContextStore, str] | None:
    """Where the conversation is kept, if it is."""
    from ..store.names import check_name

    if store is None and name is not None:
        raise InputError(
            f"--name says which conversation of a store goes on, but it is {name!r} without "
            "--store; give both."
        )
    if store is None:
        return None
    return store_to_fill("--store", store), check_name(name or CONVERSATION)


def _is_at(source: Source, store: ContextStore, name: str) -> bool:
    """Whether a source is the conversation itself: it is read as such."""
    if source.stored is None:
        return False
    place, kept_name = source.stored
    same_store = os.path.realpath(place) == os.path.realpath(store.place.folder)
    return same_store and kept_name == name


@quiet_libraries()
def _chat(
    sources: Sequence[Source],
    how: Reply,
    models: Models,
    kept: tuple[ContextStore, str] | None,
) -> None:
    ranker = ranker_of(how.spans, _KEPT_BYTES) if how.expand else None
    reader = load_reader(models.reader, models)
    embedder = load_embedder(models, reader) if kept else None
    memory = _memory(reader, embedder, kept, how.k)
    contexts = _documents(sources, reader, how, models, embedder)
    note(f"Ask away; Ctrl-C stops an answer, {QUIT} or Ctrl-D ends, {FORGET} forgets all turns.")
    for question in _questions():
        if question == FORGET:
            memory.forget()
            note("Forgotten.")
            continue
        try:
            plan, said = _turn(reader, contexts, question, memory, how, ranker)
        except WindowError as error:
            typer.echo(f"Error: {error}", err=True)
            continue
        except KeyboardInterrupt:  # before the answer began
            typer.echo("[stopped]", err=True)
            continue
        if said:
            _keep(memory, question, said)
            _cite(reader, plan, said, how)


def _memory(
    reader: Reader,
    embedder: ExtensibleEmbedder | None,
    kept: tuple[ContextStore, str] | None,
    k: int | str | tuple[int, ...],
) -> Conversation:
    """What was said before, if it was kept."""
    from ..store.conversation import Conversation, KeptConversation

    if kept is None or embedder is None:
        return Conversation(reader)
    store, name = kept
    new_k = k if isinstance(k, int) and k > 1 and k % int(KEPT_K) else int(KEPT_K)
    memory = KeptConversation(store, name, embedder, k=new_k)
    if memory.turns:
        source = stored_source(store, store.place.name, name)
        if isinstance(k, int) and source.saved is not None:
            check_readable(source, source.saved, k)
        note(f"{source.name} goes on after {len(memory.turns)} turns.")
    return memory


def _documents(
    sources: Sequence[Source],
    reader: Reader,
    how: Reply,
    models: Models,
    embedder: ExtensibleEmbedder | None,
) -> list[Context]:
    """Contexts of all sources, with room for questions and earlier turns."""
    from ..prompt import question_prompt

    room = room_for_prompt(reader, "?", how.max_new_tokens)
    return contexts_of(
        sources,
        reader,
        models,
        k=how.k,
        prompt_of=partial(question_prompt, reader, question="?"),
        room=max(room - reserve_rows(reader), room // 2),
        embedder=embedder,
    )


def reserve_rows(reader: Reader) -> int:
    """Rows kept free for question and answer: fewer where the window itself is small."""
    return min(RESERVE_ROWS, reader.window // 2)


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
    reader: Reader,
    contexts: Sequence[Context],
    question: str,
    memory: Conversation,
    how: Reply,
    ranker: SpanRanker | None,
) -> tuple[Plan, str]:
    """Answers a question; Ctrl-C leaves what was said so far."""
    room = room_for_prompt(reader, question, how.max_new_tokens)
    read, history = _read(reader, contexts, question, memory, how, room)
    prompt = expanded(reader, read, question, how, room, ranker, history)
    plan = reader.plan(prompt, how.k, how.max_new_tokens)
    note(describe(plan, reader, how.k))
    reply = reader.respond(plan, stream=True, max_new_tokens=how.max_new_tokens)
    return plan, print_stream(cast("AnswerStream", reply), stoppable=True)


def _read(
    reader: Reader,
    contexts: Sequence[Context],
    question: str,
    memory: Conversation,
    how: Reply,
    room: int,
) -> tuple[list[Context], Sequence[Turn]]:
    """As much of the conversation as fits: older turns with the documents, recent ones raw.

    The oldest rows go first, then the oldest raw turns. Unless all is raw, spans have rows left.
    """
    from ..prompt import fit, question_prompt

    free = _rows_for_spans(reader, contexts, question, how, room)
    most = memory.num_recent(int(reader.window * memory.raw_share))
    for num_raw, part in product(range(most, -1, -1), _PARTS):
        earlier = memory.earlier(num_raw, part)
        if earlier is None and part:
            continue
        read = [*contexts, earlier] if earlier is not None else list(contexts)
        history = memory.turns[len(memory.turns) - num_raw :]
        prompt = question_prompt(reader, read, question, history)
        try:
            ks = prompt.each_k(fit(prompt, how.k, room))
            fit(prompt, how.k, room - (free if max(ks, default=1) > 1 else 0))
            return read, history
        except WindowError as error:
            refused = error
    raise refused


def _rows_for_spans(
    reader: Reader, contexts: Sequence[Context], question: str, how: Reply, room: int
) -> int:
    """Rows that turns leave to spans: half of what these could take of the documents alone."""
    from ..expand import rows_of_spans
    from ..prompt import fit, question_prompt

    plain = question_prompt(reader, contexts, question)
    fit(plain, how.k, room)  # raises: not even the documents fit
    k = tuple(context.coarsest_k for context in contexts) if how.k == AUTO else how.k
    most = rows_of_spans(reader, contexts, plain, k=k, expand=how.expand, room=room)
    return most // 2


def _keep(memory: Conversation, question: str, said: str) -> None:
    """Keeps a turn; Ctrl-C meanwhile ends the chat after that."""
    num_before = len(memory.turns)
    with spinner("Keeping what was said ..."):
        try:
            memory.keep(question, said)
        except KeyboardInterrupt:
            memory.reload()
            if len(memory.turns) == num_before:  # else it came after the store had it
                memory.keep(question, said)
            raise


def _cite(reader: Reader, plan: Plan, said: str, how: Reply) -> None:
    """Says where an answer comes from if that was asked; Ctrl-C stops it."""
    from ..cite import citations

    if how.cite:
        try:
            print_citations(citations(reader, plan, said))
        except KeyboardInterrupt:
            typer.echo(" [stopped]", err=True)
