"""Text -> segments: rows are made once, and of as little as possible.

In: a text that begins a context, or goes on after its segments. Out: the context's segments.
Chunks are read one by one, so that a row depends on its chunk and not on the pieces that text came
in; what a growing text pays for is its new chunks and the last, unfinished one. Knows nothing of
names.

Axes: R row; n tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..chunks import chunk_spans
from ..downsampling import down_sampling
from ..embedder import ExtensibleEmbedder, Progress
from ..errors import InputError
from ..reader import Reader
from .files import is_whole
from .manifest import Settings
from .segment import Content, OpenSegment, Segment, all_finite, chain, keep, write_segment
from .stored import StoredContext

SEGMENT_CHUNKS = 1024
"""Chunks whose rows are made before they are written: what memory they take at once."""
MERGED_TOKENS = 1 << 22
"""Segments are merged up to this size."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Tokens with the text that they came from."""

    token_ids: Tensor
    """(n,)."""
    ends: Tensor
    """(n,) offset in the text after each token."""
    text: bytes

    def part(self, first: int, last: int) -> Piece:
        """Tokens `first` to before `last`; the text between two tokens goes with the later one."""
        start = int(self.ends[first - 1]) if first else 0
        end = int(self.ends[last - 1])
        return Piece(
            token_ids=self.token_ids[first:last],
            ends=self.ends[first:last] - start,
            text=self.text[start:end],
        )


def tokenized(reader: Reader, text: str, before: Sequence[int] = ()) -> Piece:
    """Tokens of a text, after tokens `before` whose text stands elsewhere.

    Raises:
        InputError: it has no tokens, or holds half of a character.
    """
    ids, ends = reader.encode_spans(text)
    ids = torch.cat([torch.tensor(before, dtype=torch.long), ids])
    reader.check_ids(ids)
    ends = torch.cat([torch.zeros(len(before), dtype=torch.long), ends])
    data = text.encode()
    ends[-1] = len(data)  # tokenizers may leave out blanks at the end
    return Piece(token_ids=ids, ends=ends, text=data)


def chunk_chains(piece: Piece, chunk_tokens: int, before: str) -> list[str]:
    """The chain after every chunk."""
    chains = [before]
    for first, last in chunk_spans(len(piece.token_ids), chunk_tokens):
        part = piece.part(first, last)
        chains.append(chain(chains[-1], part.token_ids, part.text))
    return chains[1:]


def make_segments(
    folder: Path,
    embedder: ExtensibleEmbedder,
    settings: Settings,
    piece: Piece,
    before: str = "",
    progress: Progress | None = None,
) -> Iterator[Segment]:
    """Rows of a piece that begins with a chunk, as segments; an unfinished chunk is its own.

    Args:
        folder: of the context.
        embedder: makes the rows.
        settings: of the context.
        piece: tokens and text.
        before: the chain before it.
        progress: called with (tokens done, tokens in all).
    """
    length, total = settings.chunk_tokens, len(piece.token_ids)
    chains = chunk_chains(piece, length, before)
    whole = total - total % length
    spans = [
        *chunk_spans(whole, length * SEGMENT_CHUNKS),
        *([(whole, total)] if whole < total else []),
    ]
    for first, last in spans:
        part = piece.part(first, last)

        def report(done: int, _: int, first: int = first) -> None:
            if progress is not None:
                progress(first + done, total)

        content = made_rows(embedder, settings, part, report)
        yield write_segment(folder, content, chains[-(-last // length) - 1])


def made_rows(
    embedder: ExtensibleEmbedder,
    settings: Settings,
    part: Piece,
    progress: Progress | None = None,
) -> Content:
    """Rows of tokens that begin with a chunk, in the type that they are kept in."""
    if len(part.token_ids) < settings.k:
        made = embedder.chunk_rows(part.token_ids[None], settings.k)
    else:
        made = embedder.compress(
            part.token_ids, k=settings.k, batch_chunks=1, progress=progress
        ).rows
    if not all_finite(made):
        raise InputError(
            "Rows are finite numbers, but this embedder makes NaN or infinity of the text; train "
            "it again, or load it in float32."
        )
    rows, scales = keep(made.cpu(), settings.row_type)
    sampler = down_sampling(settings.down_sampling)
    ends = sampler.context_row_ends(len(part.token_ids), settings.chunk_tokens, settings.k)
    return Content(
        rows=rows,
        scales=scales,
        token_ids=part.token_ids,
        row_bytes=part.ends[ends - 1],
        text=part.text,
        settings_key=settings.key,
    )


def unfinished(segments: Sequence[Segment], chunk_tokens: int) -> bool:
    """Whether the last segment is a chunk to which tokens can be added."""
    return bool(segments) and segments[-1].num_tokens % chunk_tokens != 0


def reopened(reader: Reader, tail: OpenSegment, text: str) -> Piece:
    """The unfinished chunk of a context with more text after it, tokenised together."""
    kept, ids = tail.text().decode(), tail.token_ids()
    again = reader.encode(kept)
    # The first tokens may end a character whose bytes belong to the chunk before.
    lead = len(ids) - len(again)
    same = lead > 0 and torch.equal(ids[lead:], again)
    return tokenized(reader, kept + text, ids[:lead].tolist() if same else ())


def merged(stored: StoredContext, segments: Sequence[Segment]) -> list[Segment]:
    """Segments with small neighbours made one, so that their number grows as a logarithm.

    A segment is merged into the one before it while that is less than twice as long, and both are
    whole: what is damaged stays as it is, to be found, and does not get a new hash.

    Args:
        stored: the context that they are to be of.
        segments: written already.
    """
    tail = list(segments[-1:]) if unfinished(segments, stored.settings.chunk_tokens) else []
    whole = list(segments[: len(segments) - len(tail)])
    folder = stored.place.folder / stored.folder
    while len(whole) > 1 and _worth_merging(*whole[-2:]) and _are_whole(folder, whole[-2:]):
        pair = [stored.opened(each) for each in whole[-2:]]
        whole[-2:] = [write_segment(folder, joined(pair), whole[-1].chain)]
    return whole + tail


def _worth_merging(one: Segment, other: Segment) -> bool:
    together = one.num_tokens + other.num_tokens
    return one.num_tokens < 2 * other.num_tokens and together <= MERGED_TOKENS


def _are_whole(folder: Path, segments: Sequence[Segment]) -> bool:
    files = (file for each in segments for file in (each.rows_file, each.text_file))
    return all(is_whole(folder / file) for file in files)


def joined(parts: Sequence[OpenSegment]) -> Content:
    """What neighbouring segments hold, as one."""
    contents = [part.content() for part in parts]
    offsets, starts = 0, []
    for each in contents:
        starts.append(each.row_bytes + offsets)
        offsets += len(each.text)
    scales = [each.scales for each in contents if each.scales is not None]
    return Content(
        rows=torch.cat([each.rows for each in contents]),
        token_ids=torch.cat([each.token_ids for each in contents]),
        row_bytes=torch.cat(starts),
        text=b"".join(each.text for each in contents),
        settings_key=contents[0].settings_key,
        scales=torch.cat(scales) if scales else None,
    )
