"""What `ask` and `chat` are given, files and contexts that were kept -> contexts.

Contexts of stores and saved ones are opened, files are read and compressed on the way; the
embedder is loaded only if there is something to compress.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ..errors import InputError, MismatchError, WindowError
from ..text import Document, read_document
from .console import load_embedder, progress_bar
from .options import Models
from .stores import command, is_url, open_store, shown, split_source

if TYPE_CHECKING:
    from ..context import Context
    from ..embedder import ExtensibleEmbedder
    from ..prompt import Prompt
    from ..reader import Reader
    from ..store.store import ContextStore

SourcesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE",
        help="A file, read and compressed on the way; STORE, a folder or URL that `extensible "
        "compress` made, all its contexts; STORE:NAME, one of them; or a folder of contexts that "
        "`Context.save` wrote.",
    ),
]
_SHOWN_KS = 6


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file that was read, or a context that was kept."""

    name: str
    """As the user would give it."""
    content: Document | Context
    stored: tuple[str, str] | None = None
    """The store and the name that it is kept under, if it is."""

    @property
    def saved(self) -> Context | None:
        """The context that was kept; None where rows are still to be made, as of raw text."""
        if isinstance(self.content, Document) or self.content.k == 1:
            return None
        return self.content

    def remake(self, options: str = "") -> str:
        """What the user does to have its rows made anew."""
        if self.stored is None:
            return f"compress the text again with `{options}`" if options else "compress it again"
        reembed = f"{command('reembed', *self.stored)} {options}".rstrip()
        return f"make its rows anew with `{reembed}`"


def open_sources(values: Sequence[str], k: int | str | tuple[int, ...]) -> list[Source]:
    """Contexts that were kept and documents, in the order given.

    Raises:
        InputError: a file cannot be read, a folder holds no context or one that k cannot read, or
            there are not as many k as sources.
        CheckpointError: a context is damaged.
    """
    sources = [source for value in values for source in _opened(value)]
    if isinstance(k, tuple) and len(k) != len(sources):
        raise InputError(
            f"Several --k are one for each source, but there are {len(k)} for {len(sources)}: "
            f"{', '.join(source.name for source in sources)}; give as many, or one for all."
        )
    for source, number in zip(sources, _each(k, len(sources)), strict=True):
        if source.saved is not None and number is not None:
            check_readable(source, source.saved, number)
    return sources


def _each(k: int | str | tuple[int, ...], count: int) -> tuple[int | None, ...]:
    """The scale factor of each source; None where it is still to be chosen."""
    if isinstance(k, tuple):
        return k
    return (k if isinstance(k, int) else None,) * count


def _opened(value: str) -> list[Source]:
    """What a value stands for: a file of that name before anything else."""
    path = Path(value)
    if path.is_file():
        return [Source(name=value, content=read_document(path))]
    found = split_source(value)
    if found is not None:
        place, name = found
        store = open_store(place)
        return _all_of(store, place) if name is None else [stored_source(store, place, name)]
    if is_url(value):
        open_store(value)  # raises: there is none
    if path.is_dir():
        return _saved_in(path)
    return [Source(name=value, content=read_document(path))]  # raises: there is none


def stored_source(store: ContextStore, place: str, name: str) -> Source:
    """One context of a store.

    Raises:
        InputError: there is none of that name, or it is empty.
        CheckpointError: it is damaged.
    """
    from ..store.reading import lazy_context

    stored = store.open(name)
    if not stored.num_tokens:
        raise InputError(
            f"A context is read when it holds text, but {shown(place, name)!r} is empty; append "
            f"some with `{command('append', place, name)} FILE`."
        )
    return Source(
        name=shown(place, name), content=lazy_context(stored), stored=(place, stored.name)
    )


def _all_of(store: ContextStore, place: str) -> list[Source]:
    """Every context of a store that holds text, by name."""
    names = sorted(each.name for each in store.manifests() if each.num_tokens)
    if not names:
        raise InputError(
            f"A store is read when it holds contexts, but {place!r} holds no text; add some with "
            f"`extensible compress FILE --out {place}`."
        )
    return [stored_source(store, place, name) for name in names]


def _saved_in(folder: Path) -> list[Source]:
    from ..context import Context

    children = [child for child in sorted(folder.iterdir()) if not child.name.startswith(".")]
    places = [folder] if Context.is_saved_at(folder) else children
    found = [
        Source(name=str(place), content=Context.load(place))
        for place in places
        if Context.is_saved_at(place)
    ]
    if not found:
        raise InputError(
            f"A folder is a store or holds saved contexts, but {str(folder)!r} is and holds none; "
            "make one with `extensible compress FILE --out STORE`, or give files."
        )
    return found


def check_readable(source: Source, context: Context, k: int) -> None:
    """Raises InputError unless the rows of a source, `context`, can be read at k."""
    if not _readable_at(context, k):
        ks = [str(n) for n in range(1, context.chunk_tokens + 1) if _readable_at(context, n)]
        more = f" and so on to {ks[-1]}" if len(ks) > _SHOWN_KS else ""
        remake = f", or {source.remake(f'--k {k}')}" if k <= context.chunk_tokens else ""
        raise InputError(
            f"{source.name!r} was compressed at k={context.k} and can be read at "
            f"{', '.join(ks[:_SHOWN_KS])}{more}, but --k is {k}; choose one of these{remake}."
        )


def _readable_at(context: Context, k: int) -> bool:
    """Whether `Context.at` gives rows at k, or k is 1, the raw text."""
    from ..downsampling import down_sampling

    if k in (1, context.k):
        return True
    nests = down_sampling(context.down_sampling).nests
    return nests and k % context.k == 0 and k <= context.chunk_tokens


PromptOf = Callable[[Sequence["Context"]], "Prompt"]
"""What is to be asked about contexts; only their lengths and titles are looked at here."""


def contexts_of(
    sources: Sequence[Source],
    reader: Reader,
    models: Models,
    *,
    k: int | str | tuple[int, ...],
    prompt_of: PromptOf,
    room: int,
    embedder: ExtensibleEmbedder | None = None,
) -> list[Context]:
    """Contexts of all sources; texts are compressed at k, a text shorter than k to one row.

    Args:
        sources: from `open_sources`.
        reader: that will read them.
        models: the embedder, loaded only if there is something to compress.
        k: scale factor of all or of each, or "auto": the smallest at which the prompt fits.
        prompt_of: makes the prompt that is to fit.
        room: the most rows that it may take.
        embedder: if it is loaded already.

    Raises:
        InputError: k is not usable.
        MismatchError: the embedder or a saved context was made for another reader.
        WindowError: the prompt fits at no k.
    """
    contexts = [_for_reader(source, reader, models.derivative) for source in sources]
    saved = [context for context in contexts if context is not None]
    if len(saved) == len(sources):
        return saved
    embedder = embedder or load_embedder(models, reader)
    unmade = [
        context or _stand_in(source, embedder)
        for source, context in zip(sources, contexts, strict=True)
    ]
    ks = _each(k, len(sources))
    if None in ks:
        ks = (_smallest_k(sources, prompt_of(unmade), embedder, room),) * len(sources)
    return [
        context or _compress(source, stand_in, embedder, cast("int", number))
        for source, context, stand_in, number in zip(sources, contexts, unmade, ks, strict=True)
    ]


def _for_reader(source: Source, reader: Reader, derivative: bool) -> Context | None:
    """The context that a source was kept as, if it was."""
    content = source.content
    if isinstance(content, Document):
        return None
    if derivative:
        content = reader.adopt(content)
    elif not reader.is_same(content.reader_fingerprint):
        raise MismatchError(
            f"Contexts are read by the reader that they were made for, but {reader.name!r} is not "
            f"that of {source.name!r}; choose it with --reader, {source.remake()}, or give "
            "--derivative if this one is a fine-tune of it."
        )
    elif content.tokenizer_fingerprint not in ("", reader.tokenizer_fingerprint):
        raise MismatchError(
            f"Contexts are read with the tokenizer that made their tokens, but {reader.name!r} has "
            f"another than {source.name!r}; {source.remake()}, or give --derivative if both have "
            "the same tokens."
        )
    return None if source.saved is None else content


def _stand_in(source: Source, embedder: ExtensibleEmbedder) -> Context:
    """A context without rows, of a text that is still to be compressed."""
    from ..context import Context
    from ..source import GivenText

    content, reader, config = source.content, embedder.reader, embedder.config
    ids = reader.encode(content.text) if isinstance(content, Document) else content.token_ids
    return Context(
        rows=reader.embed_tokens(ids[:0]),
        token_ids=ids,
        k=1,
        chunk_tokens=config.chunk_tokens,
        down_sampling=config.down_sampling,
        max_k=config.max_k,
        embedder_fingerprint="",
        reader_fingerprint=reader.fingerprint,
        title=content.title,
        source=GivenText(content.text) if isinstance(content, Document) else content.source,
    )


def _compress(source: Source, stand_in: Context, embedder: ExtensibleEmbedder, k: int) -> Context:
    ids, title = stand_in.token_ids, stand_in.title
    if len(ids) < k <= embedder.config.chunk_tokens:
        made = dataclasses.replace(embedder.compress(ids, k=len(ids), title=title), k=k)
    elif k == 1:
        made = embedder.compress(ids, k=k, title=title)
    else:
        with progress_bar(f"Compressing {Path(source.name).name}", "tokens") as progress:
            made = embedder.compress(ids, k=k, title=title, progress=progress)
    return dataclasses.replace(made, source=stand_in.source)


def _smallest_k(
    sources: Sequence[Source], prompt: Prompt, embedder: ExtensibleEmbedder, room: int
) -> int:
    """The smallest scale factor of texts at which the prompt fits, with kept rows read alike."""
    config = embedder.config
    kept = [source.saved for source in sources]

    def num_rows(k: int) -> int:
        return prompt.num_rows(tuple(_at_least(context, k) if context else k for context in kept))

    ks = range(1, config.chunk_tokens + 1)
    fitting = next((k for k in ks if num_rows(k) <= room), None)
    if fitting is not None and fitting <= config.max_k:
        return fitting
    largest = min(config.max_k, config.chunk_tokens)
    advice = f"`--k {fitting}` would fit" if fitting else "give less text, it fits at no k"
    raise WindowError(
        f"Text, question and answer must fit the window, which leaves {room} rows for text and "
        f"question, but at k={largest}, the largest allowed, these take {num_rows(largest)}; "
        f"{advice}.",
        smallest_k=fitting,
    )


def _at_least(context: Context, k: int) -> int:
    """The scale factor of kept rows that is no smaller than k, or their largest."""
    return 1 if k == 1 else min(-(-k // context.k) * context.k, context.coarsest_k)
