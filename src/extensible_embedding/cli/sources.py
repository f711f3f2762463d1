"""What `ask` and `chat` are given, FILE or DIR -> contexts.

Saved contexts are loaded, files are read and compressed on the way; the embedder is loaded only
if there is something to compress.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError, MismatchError, WindowError
from ..text import Document, read_document
from .console import load_embedder, progress_bar
from .options import Models

if TYPE_CHECKING:
    from ..context import Context
    from ..embedder import EmbedderConfig, ExtensibleEmbedder
    from ..prompt import Prompt
    from ..reader import Reader

SourcesArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="FILE-or-DIR",
        help="Files to read and compress on the way, and folders that `extensible compress` wrote "
        "(or that hold several of those).",
    ),
]
_SHOWN_KS = 6


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file that was read, or a context that was saved."""

    path: Path
    content: Document | Context

    @property
    def saved(self) -> Context | None:
        """The saved context; None where rows are still to be made, as of raw text."""
        if isinstance(self.content, Document) or self.content.k == 1:
            return None
        return self.content


def open_sources(paths: Sequence[Path], k: int | str) -> list[Source]:
    """Saved contexts and documents, in the order given.

    Raises:
        InputError: a file cannot be read, a folder holds no context or one that k cannot read.
        CheckpointError: a saved context is damaged.
    """
    sources: list[Source] = []
    for path in paths:
        if path.is_dir():
            sources += _saved_in(path)
        else:
            sources.append(Source(path=path, content=read_document(path)))
    for source in sources:
        if source.saved is not None and isinstance(k, int):
            _check_readable(source.path, source.saved, k)
    return sources


def _saved_in(folder: Path) -> list[Source]:
    from ..context import Context

    children = [child for child in sorted(folder.iterdir()) if not child.name.startswith(".")]
    places = [folder] if Context.is_saved_at(folder) else children
    found = [
        Source(path=place, content=Context.load(place))
        for place in places
        if Context.is_saved_at(place)
    ]
    if not found:
        raise InputError(
            f"A folder holds one or more saved contexts, but {str(folder)!r} holds none; make one "
            f"with `extensible compress FILE --out DIR`, or give files."
        )
    return found


def _check_readable(path: Path, context: Context, k: int) -> None:
    if not _readable_at(context, k):
        ks = [str(n) for n in range(1, context.chunk_tokens + 1) if _readable_at(context, n)]
        more = f" and so on to {ks[-1]}" if len(ks) > _SHOWN_KS else ""
        raise InputError(
            f"{str(path)!r} was compressed at k={context.k} and can be read at "
            f"{', '.join(ks[:_SHOWN_KS])}{more}, but --k is {k}; choose one of these, or compress "
            f"the text again with `--k {k}`."
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
    k: int | str,
    prompt_of: PromptOf,
    room: int,
) -> list[Context]:
    """Contexts of all sources; texts are compressed at k, a text shorter than k to one row.

    Args:
        sources: from `open_sources`.
        reader: that will read them.
        models: the embedder, loaded only if there is something to compress.
        k: scale factor, or "auto": the smallest at which the prompt fits.
        prompt_of: makes the prompt that is to fit.
        room: the most rows that it may take.

    Raises:
        InputError: k is not usable.
        MismatchError: the embedder or a saved context was made for another reader.
        WindowError: the prompt fits at no k.
    """
    contexts = [_for_reader(source, reader, models.derivative) for source in sources]
    saved = [context for context in contexts if context is not None]
    if len(saved) == len(sources):
        return saved
    embedder = load_embedder(models, reader)
    unmade = [
        context or _stand_in(source, embedder)
        for source, context in zip(sources, contexts, strict=True)
    ]
    number = k if isinstance(k, int) else _smallest_k(sources, prompt_of(unmade), embedder, room)
    return [
        context or _compress(source, stand_in, embedder, number)
        for source, context, stand_in in zip(sources, contexts, unmade, strict=True)
    ]


def _for_reader(source: Source, reader: Reader, derivative: bool) -> Context | None:
    """The saved context of a source, if it has one."""
    content = source.content
    if isinstance(content, Document):
        return None
    if derivative:
        content = reader.adopt(content)
    elif not reader.is_same(content.reader_fingerprint):
        raise MismatchError(
            f"Saved contexts are read by the reader that they were made for, but {reader.name!r} "
            f"is not that of {str(source.path)!r}; choose it with --reader, compress the text "
            "again, or give --derivative if this one is a fine-tune of it."
        )
    return None if source.saved is None else content


def _stand_in(source: Source, embedder: ExtensibleEmbedder) -> Context:
    """A context without rows, of a text that is still to be compressed."""
    from ..context import Context

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
    )


def _compress(source: Source, stand_in: Context, embedder: ExtensibleEmbedder, k: int) -> Context:
    ids, title = stand_in.token_ids, stand_in.title
    if len(ids) < k <= embedder.config.chunk_tokens:
        return dataclasses.replace(embedder.compress(ids, k=len(ids), title=title), k=k)
    if k == 1:
        return embedder.compress(ids, k=k, title=title)
    with progress_bar(f"Compressing {source.path.name}", "tokens") as progress:
        return embedder.compress(ids, k=k, title=title, progress=progress)


def _smallest_k(
    sources: Sequence[Source], prompt: Prompt, embedder: ExtensibleEmbedder, room: int
) -> int:
    """The smallest scale factor at which the prompt fits and saved rows can be read."""
    saved = [source for source in sources if source.saved is not None]
    allowed, all_ks = _common_ks(saved, embedder.config)
    fitting = next((k for k in all_ks if prompt.num_rows(k) <= room), None)
    if fitting is not None and fitting <= allowed:
        return fitting
    if len(all_ks) == 1:
        raise WindowError(_no_common_k(saved, embedder.config))
    largest = max(k for k in all_ks if k <= allowed)
    advice = f"`--k {fitting}` would fit" if fitting else "give less text, it fits at no k"
    raise WindowError(
        f"Text, question and answer must fit the window, which leaves {room} rows for text and "
        f"question, but at k={largest}, the largest allowed, these take "
        f"{prompt.num_rows(largest)}; {advice}.",
        smallest_k=fitting,
    )


def _common_ks(saved: Sequence[Source], config: EmbedderConfig) -> tuple[int, list[int]]:
    """The largest k that "auto" may choose, and every k at which all can be read, in order."""
    contexts = [source.saved for source in saved if source.saved is not None]
    longest = min([config.chunk_tokens, *(context.chunk_tokens for context in contexts)])
    allowed = min([config.max_k, *(context.max_k for context in contexts)])
    made_at = max([1, *(context.k for context in contexts)])
    ks = [k for k in range(1, longest + 1) if all(_readable_at(context, k) for context in contexts)]
    return max(allowed, made_at), ks


def _no_common_k(saved: Sequence[Source], config: EmbedderConfig) -> str:
    made_at = [f"{str(s.path)!r} at {s.saved.k}" for s in saved if s.saved is not None]
    return (
        "What does not fit raw is read at one k, a multiple of the k of every saved context and "
        f"at most a chunk ({config.chunk_tokens} tokens), but these have none in common: "
        f"{', '.join(made_at)}; compress one of them again at the k of another."
    )
