"""Random changes of a store, what it then holds, and whether it holds that and nothing by halves.

A context's text is some lines of a poem, whose number is kept beside it: half of a change shows.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from extensible_embedding import ExtensibleEmbedder
from extensible_embedding.store.segment import keep
from extensible_embedding.store.store import ContextStore

NAMES = ("a log", "Novel", "\u65e5\u672c", "x", "y")
KINDS = ("add", "append", "append", "append", "rename", "delete", "compact")
MOST_LINES = 40


@dataclass(frozen=True)
class Kept:
    """What is known of a context."""

    poem: int
    lines: int
    k: int
    row_type: str


@dataclass(frozen=True)
class Change:
    """What is done to a store."""

    kind: str
    name: str = ""
    new_name: str = ""
    poem: int = 0
    lines: int = 0
    k: int = 4
    row_type: str = "bfloat16"


State = dict[str, Kept]


def after(state: State, change: Change) -> State:
    """What a store holds after a change."""
    others = {name: kept for name, kept in state.items() if name != change.name}
    if change.kind == "add":
        return {**state, change.name: Kept(change.poem, change.lines, change.k, change.row_type)}
    if change.kind == "append":
        kept = state[change.name]
        return {**others, change.name: replace(kept, lines=kept.lines + change.lines)}
    if change.kind == "rename":
        return {**others, change.new_name: state[change.name]}
    return others if change.kind == "delete" else dict(state)


def drawn(state: State, draw: random.Random) -> Change:
    """A random change that such a store can take."""
    free = [name for name in NAMES if name not in state]
    kind = draw.choice(KINDS) if len(state) > 1 else "add"
    if kind == "add" and free:
        twin = draw.choice([None, None, *state.values()])  # its content is shared
        kept = twin or Kept(
            draw.randrange(1000),
            draw.randint(1, 20),
            draw.choice([4, 8]),
            draw.choice(["bfloat16", "int8"]),
        )
        return Change("add", draw.choice(free), **asdict(kept))
    name = draw.choice(sorted(state))
    if kind == "rename" and free:
        return Change("rename", name, draw.choice(free))
    if kind == "delete" or state[name].lines > MOST_LINES:
        return Change("delete", name)
    if kind == "append":
        return Change("append", name, lines=draw.randint(1, 5), poem=state[name].poem)
    return Change("compact")


def poem(number: int, first: int, last: int) -> str:
    """Lines `first` to before `last` of a poem without an end."""
    return "".join(f"{number * line % 991}: caf\u00e9 {line}\n" for line in range(first, last))


def apply(store: ContextStore, change: Change, state: State, embedder: ExtensibleEmbedder) -> None:
    """Makes a change."""
    if change.kind == "add":
        store.add(
            change.name,
            poem(change.poem, 0, change.lines),
            embedder,
            k=change.k,
            row_type=change.row_type,
            metadata={"poem": change.poem},
        )
    elif change.kind == "append":
        first = state[change.name].lines
        store.append(change.name, poem(change.poem, first, first + change.lines), embedder)
    elif change.kind == "rename":
        store.rename(change.name, change.new_name)
    elif change.kind == "delete":
        store.delete(change.name)
    else:
        store.compact()


class Checker:
    """Reads contexts whole and compares them with what an embedder makes of their text."""

    def __init__(self, folder: Path, embedder: ExtensibleEmbedder) -> None:
        self.folder, self.embedder = folder, embedder
        self.rows = cache(self._rows)

    def _rows(self, text: str, k: int, row_type: str) -> Tensor:
        made = self.embedder.compress(text, k=k, batch_chunks=1).rows
        rows, scales = keep(made, row_type)
        return rows if scales is None else rows.float() * scales[:, None]

    def read(self, store: ContextStore, name: str) -> Kept:
        """One context, whole; raises AssertionError if it is not."""
        stored = store.open(name)
        text, context = stored.text(), stored.context()
        kept = Kept(
            stored.metadata["poem"], text.count("\n"), stored.settings.k, stored.settings.row_type
        )
        assert text == poem(kept.poem, 0, kept.lines), (name, text)
        assert torch.equal(context.token_ids, self.embedder.reader.encode(text)), name
        assert torch.equal(context.rows, self.rows(text, kept.k, kept.row_type)), name
        assert stored.context(32).rows.shape[0] < len(context.rows) or len(context.rows) < 3, name
        return kept

    def state(self) -> State:
        """All contexts."""
        store = ContextStore(self.folder)
        return {each.name: self.read(store, each.name) for each in store}
