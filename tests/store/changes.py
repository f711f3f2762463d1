"""Random changes of a store, what it then holds, and whether it holds that and nothing by halves.

A context's text is some lines of a poem, whose number is kept beside it: half of a change shows.
"""

from __future__ import annotations

import random
import shutil
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from extensible_embedding import ExtensibleEmbedder
from extensible_embedding.store.mending import reembed, repair
from extensible_embedding.store.portable import export_context, import_context, merge_stores
from extensible_embedding.store.segment import keep
from extensible_embedding.store.store import ContextStore

NAMES = ("a log", "Novel", "\u65e5\u672c", "x", "y")
KINDS = (
    *("add", "append", "append", "append", "replace", "reembed"),
    *("rename", "import", "merge", "delete", "delete", "compact"),
)
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
    return stages(state, change)[-1]


def stages(state: State, change: Change) -> list[State]:
    """What a store may hold while a change is made: first what it did, last what it is to hold."""
    others = {name: kept for name, kept in state.items() if name != change.name}
    made = Kept(change.poem, change.lines, change.k, change.row_type)
    if change.kind in ("add", "replace"):
        return [state, {**others, change.name: made}]
    if change.kind == "append":
        kept = state[change.name]
        return [state, {**others, change.name: replace(kept, lines=kept.lines + change.lines)}]
    if change.kind == "reembed":
        kept = replace(state[change.name], k=change.k, row_type=change.row_type)
        return [state, {**others, change.name: kept}]
    if change.kind == "rename":
        return [state, {**others, change.new_name: state[change.name]}]
    if change.kind == "import":
        return [state, {**state, change.new_name: state[change.name]}]
    if change.kind == "merge":  # of two contexts, in any order
        one, two = ({**state, name: made} for name in (change.name, change.new_name))
        return [state, one, two, {**one, **two}]
    return [state, others if change.kind == "delete" else dict(state)]


def drawn(state: State, draw: random.Random) -> Change:
    """A random change that such a store can take."""
    free = [name for name in NAMES if name not in state]
    kind = draw.choice(KINDS) if len(state) > 1 else "add"
    if kind in ("add", "merge") and free:
        twin = draw.choice([None, None, *state.values()])  # its content is shared
        kept = asdict(twin or _drawn_context(draw))
        if kind == "merge":
            return Change("merge", free[0], free[-1], **kept)
        return Change("add", draw.choice(free), **kept)
    name = draw.choice(sorted(state))
    if kind in ("rename", "import") and free:
        return Change(kind, name, draw.choice(free))
    if kind == "delete" or state[name].lines > MOST_LINES:
        return Change("delete", name)
    if kind == "append":
        return Change("append", name, lines=draw.randint(1, 5), poem=state[name].poem)
    if kind == "replace":
        return Change("replace", name, **asdict(_drawn_context(draw)))
    if kind == "reembed":
        made = _drawn_context(draw)
        return Change("reembed", name, k=made.k, row_type=made.row_type)
    return Change("compact")


def _drawn_context(draw: random.Random) -> Kept:
    number, lines = draw.randrange(1000), draw.randint(1, 20)
    return Kept(number, lines, draw.choice([4, 8]), draw.choice(["bfloat16", "int8"]))


def poem(number: int, first: int, last: int) -> str:
    """Lines `first` to before `last` of a poem without an end."""
    return "".join(f"{number * line % 991}: caf\u00e9 {line}\n" for line in range(first, last))


def prepare(store: ContextStore, change: Change, embedder: ExtensibleEmbedder) -> None:
    """Makes what a change takes from outside of the store, beside its folder."""
    file, other = _beside(store)
    if change.kind == "import":
        export_context(store, change.name, file)
    elif change.kind == "merge":
        shutil.rmtree(other, ignore_errors=True)
        for name in {change.name, change.new_name}:
            _add(ContextStore(other), replace(change, name=name), embedder)


def _beside(store: ContextStore) -> tuple[Path, Path]:
    """An exported context, and another store."""
    folder = store.place.folder
    return folder.with_name(f"{folder.name}.xctx"), folder.with_name(f"{folder.name}.other")


def apply(store: ContextStore, change: Change, state: State, embedder: ExtensibleEmbedder) -> None:
    """Makes a change that was prepared."""
    file, other = _beside(store)
    if change.kind in ("add", "replace"):
        _add(store, change, embedder, replace=change.kind == "replace")
    elif change.kind == "append":
        first = state[change.name].lines
        store.append(change.name, poem(change.poem, first, first + change.lines), embedder)
    elif change.kind == "reembed":
        reembed(store, change.name, embedder, k=change.k, row_type=change.row_type)
    elif change.kind == "repair":
        repair(store, embedder)
    elif change.kind == "rename":
        store.rename(change.name, change.new_name)
    elif change.kind == "import":
        import_context(store, file, change.new_name)
    elif change.kind == "merge":
        merge_stores(store, ContextStore(other))
    elif change.kind == "delete":
        store.delete(change.name)
    else:
        store.compact()


def _add(
    store: ContextStore, change: Change, embedder: ExtensibleEmbedder, *, replace: bool = False
) -> None:
    store.add(
        change.name,
        poem(change.poem, 0, change.lines),
        embedder,
        k=change.k,
        row_type=change.row_type,
        metadata={"poem": change.poem},
        replace=replace,
    )


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
