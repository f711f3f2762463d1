"""Mixed precision: the spans that matter to a question raw, everything else as rows.

In: contexts and a question. Out: a prompt in which each context's rows are followed by its best
spans, read raw, under one budget of rows. What matters is the business of a `SpanRanker`: words
(BM25) by default, the reader's own attention, or an embedding model. Rows lose exact names and
numbers; raw spans have them as they are.
"""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .attend import attention_to_rows
from .context import Context
from .errors import InputError, MissingExtraError
from .pieces import PIECE_TOKENS, best_fitting, cut, joined
from .prompt import AUTO, BETWEEN_SPANS, Prompt, RawSpan, Turn, choose_k, fit, question_prompt
from .spans import SpanIndex, rank_spans

if TYPE_CHECKING:
    from .reader import Reader

_SHARE = 1 / 3
_LARGEST_SHARE = 5 / 6
_ENOUGH_TOKENS = 512
_OF_TEXT = 2
"""Spans and their marks take one of so many tokens of the texts at most."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of a context that may be read raw."""

    context: int
    """Number of the context."""
    start: int
    """First token."""
    end: int
    """Token after the last."""
    reader: Reader = field(repr=False, compare=False)
    """With the tokenizer."""
    token_ids: Tensor = field(repr=False, compare=False)
    """Of the piece, (end - start,)."""

    @property
    def text(self) -> str:
        """Made when it is asked for."""
        return self.reader.decode(self.token_ids)


class SpanRanker(ABC):
    """One obligatory method: which pieces matter most to a question."""

    @abstractmethod
    def rank(
        self, reader: Reader, contexts: Sequence[Context], pieces: Sequence[Piece], question: str
    ) -> list[int]:
        """Numbers of the pieces, best first; any number of them."""


class ByWords(SpanRanker):
    """Pieces that share most and rarest words with the question (BM25).

    Args:
        kept_bytes: of the words of contexts that are kept, so that the next question on the same
            ones costs little; those asked about longest ago go first. 0 keeps none. For several
            threads.

    Raises:
        InputError: `kept_bytes` is no number of bytes.
    """

    def __init__(self, kept_bytes: int = 0) -> None:
        if isinstance(kept_bytes, bool) or not isinstance(kept_bytes, int) or kept_bytes < 0:
            raise InputError(
                f"Words are kept in a number of bytes, 0 or more, but kept_bytes is "
                f"{kept_bytes!r}; give such a number."
            )
        self.kept_bytes, self._bytes = kept_bytes, 0
        self._kept: OrderedDict[bytes, SpanIndex] = OrderedDict()
        self._lock = threading.Lock()

    def rank(
        self, reader: Reader, contexts: Sequence[Context], pieces: Sequence[Piece], question: str
    ) -> list[int]:
        """All of them, equal ones latest first."""
        if not self.kept_bytes:
            return rank_spans([piece.text for piece in pieces], question)
        key = _digest(reader, pieces)
        with self._lock:
            index = self._kept.get(key)
            if index is not None:
                self._kept.move_to_end(key)
        if index is None:
            index = SpanIndex([piece.text for piece in pieces])
            self._keep(key, index)
        return index.rank(question)

    def _keep(self, key: bytes, index: SpanIndex) -> None:
        """Unless it is larger than all that may be kept."""
        with self._lock:
            if key in self._kept or index.num_bytes > self.kept_bytes:
                return
            self._kept[key] = index
            self._bytes += index.num_bytes
            while self._bytes > self.kept_bytes:
                self._bytes -= self._kept.popitem(last=False)[1].num_bytes


def _digest(reader: Reader, pieces: Sequence[Piece]) -> bytes:
    """Of their tokens, what these say, and where each piece ends."""
    ends = [piece.end - piece.start for piece in pieces]
    found = hashlib.sha256(f"{reader.tokenizer_fingerprint} {ends}".encode())
    for piece in pieces:
        found.update(piece.token_ids.cpu().numpy().tobytes())
    return found.digest()


class ByAttention(SpanRanker):
    """Pieces whose rows the reader attends to most when it has read the question.

    One reader pass more, over the contexts as rows at the smallest k that fits.
    """

    def rank(
        self, reader: Reader, contexts: Sequence[Context], pieces: Sequence[Piece], question: str
    ) -> list[int]:
        """All of them, by the attention that each of their tokens gets."""
        prompt = question_prompt(reader, contexts, question)
        ks = prompt.each_k(choose_k(prompt, reader.window))
        tail = prompt.parts[-1]
        assert isinstance(tail, torch.Tensor)
        weights = attention_to_rows(reader, prompt, ks, len(tail))
        before = [
            _before_each(of_rows, context.row_ends_at(k))
            for of_rows, context, k in zip(weights, contexts, ks, strict=True)
        ]
        scores = [
            float(before[piece.context][piece.end] - before[piece.context][piece.start])
            / (piece.end - piece.start)
            for piece in pieces
        ]
        return sorted(range(len(pieces)), key=lambda number: -scores[number])


def _before_each(weights: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Attention (n + 1,) to what stands before each token: that of a row (R,) is of its tokens.

    Args:
        weights: (R,).
        ends: (R,) token after the last of each row.
    """
    lengths = ends.diff(prepend=ends.new_zeros(1))
    each = (weights.double().cpu() / lengths).repeat_interleave(lengths)  # (n,)
    return torch.cat([each.new_zeros(1), each.cumsum(0)])


class ByEmbedding(SpanRanker):
    """Pieces nearest to the question by an embedding model of sentence-transformers.

    Args:
        model: its name or folder.

    Raises:
        MissingExtraError: sentence-transformers is not installed.
    """

    def __init__(self, model: str) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise MissingExtraError(
                "Spans are ranked by an embedding model with the package sentence-transformers, "
                "which is not installed; run `pip install 'extensible-embedding[embedding]'`."
            ) from error
        self.model = SentenceTransformer(model)

    def rank(
        self, reader: Reader, contexts: Sequence[Context], pieces: Sequence[Piece], question: str
    ) -> list[int]:
        vectors = self.model.encode([piece.text for piece in pieces], normalize_embeddings=True)
        asked = self.model.encode([question], normalize_embeddings=True)[0]
        scores = (vectors @ asked).tolist()
        return sorted(range(len(pieces)), key=lambda number: -scores[number])


def expanded_prompt(
    reader: Reader,
    contexts: Sequence[Context],
    question: str,
    *,
    k: int | str | Sequence[int] = AUTO,
    expand: int | str = AUTO,
    room: int,
    history: Sequence[Turn] = (),
    ranker: SpanRanker | None = None,
) -> Prompt:
    """A question's prompt with the best spans of its contexts raw; where all is read raw, as it is.

    Args:
        reader: that is asked.
        contexts: as of `question_prompt`.
        question: as of `question_prompt`.
        k: at which the contexts are to be read.
        expand: the most tokens of spans, or "auto": `tokens_of_spans`; less where rows need
            more, and half of the texts' tokens at most: more would save hardly a row. Spans are
            pieces of a text (`pieces.cut`), so that a few tokens are left over; a number below that
            of one piece means one.
        room: rows of the whole prompt.
        history: as of `question_prompt`.
        ranker: says which spans are best, by default `ByWords`.

    Raises:
        InputError: `expand` is neither a number of tokens nor "auto", or the ranker gives numbers
            that no piece has.
        WindowError: even the rows alone do not fit.
    """
    contexts = _each_once(contexts)
    plain = question_prompt(reader, contexts, question, history)
    spans = best_spans(
        reader, contexts, question, plain, k=k, expand=expand, room=room, ranker=ranker
    )
    return question_prompt(reader, contexts, question, history, spans) if spans else plain


def _each_once(contexts: Sequence[Context]) -> list[Context]:
    """The same, where one that is read twice is two: a span is of one of them."""
    return [
        dataclasses.replace(each) if any(each is other for other in contexts[:number]) else each
        for number, each in enumerate(contexts)
    ]


def best_spans(
    reader: Reader,
    contexts: Sequence[Context],
    question: str,
    plain: Prompt,
    *,
    k: int | str | Sequence[int] = AUTO,
    expand: int | str = AUTO,
    room: int,
    ranker: SpanRanker | None = None,
) -> list[RawSpan]:
    """The spans for which there is room beside a prompt without any; none where all is read raw.

    Args:
        plain: the prompt, which has the contexts in this order; else as of `expanded_prompt`.
    """
    most = rows_of_spans(reader, contexts, plain, k=k, expand=expand, room=room)
    if not most:
        return []
    chosen = plain.each_k(fit(plain, k, room))
    parts = [
        _pieces(reader, number, each)
        for number, (each, read_at) in enumerate(zip(contexts, chosen, strict=True))
        if read_at > 1  # else all of it is raw
    ]
    pieces = [piece for part in parts for piece in part]
    between = len(reader.encode(BETWEEN_SPANS))
    ranked = list((ranker or ByWords()).rank(reader, contexts, pieces, question))
    if strange := [each for each in ranked if not 0 <= each < len(pieces)]:
        raise InputError(
            f"A ranker gives numbers of pieces, 0 to {len(pieces) - 1}, but it gave {strange[0]}; "
            "give places in the list of pieces."
        )
    numbers = best_fitting(
        ranked,
        [piece.end - piece.start + between for piece in pieces],
        most,
        {end - 1 for end in accumulate(map(len, parts))},
    )
    return _merged([pieces[number] for number in numbers], contexts)


def rows_of_spans(
    reader: Reader,
    contexts: Sequence[Context],
    plain: Prompt,
    *,
    k: int | str | Sequence[int] = AUTO,
    expand: int | str = AUTO,
    room: int,
) -> int:
    """The most rows of spans, with their marks, beside a prompt without any; 0 if all is read raw.

    Arguments and errors are those of `best_spans`.
    """
    asked = _most_tokens(expand, room - plain.num_raw)
    chosen = plain.each_k(fit(plain, k, room))
    if not asked or set(chosen) <= {1}:
        return 0
    coarsest = tuple(context.coarsest_k for context in contexts)
    left = room - plain.num_rows(coarsest if k == AUTO else chosen)
    pairs = zip(contexts, chosen, strict=True)
    text_tokens = sum(context.num_tokens for context, read_at in pairs if read_at > 1)
    return min(room_of_spans(asked, len(reader.encode(BETWEEN_SPANS)), text_tokens), left)


def tokens_of_spans(room: int) -> int:
    """The most tokens that spans take by themselves of a room for contexts, in rows.

    A third of it; of a small room more, since a few passages that hold the answer are worth more
    than finer rows of all the rest: up to 512 tokens, as long as a sixth is left for rows.
    """
    return int(max(_SHARE * room, min(_LARGEST_SHARE * room, _ENOUGH_TOKENS)))


def room_of_spans(num_tokens: int, mark_tokens: int, text_tokens: int) -> int:
    """Rows for spans of so many tokens, each with a mark before it: half of the texts' at most."""
    marks = mark_tokens * -(-num_tokens // PIECE_TOKENS)
    return min(num_tokens + marks, text_tokens // _OF_TEXT)


def at_least_a_piece(num_tokens: int) -> int:
    """Tokens of spans that are asked for as a number: room for one piece, unless it is 0."""
    return max(num_tokens, PIECE_TOKENS) if num_tokens else 0


def _most_tokens(expand: int | str, room: int) -> int:
    """Of all spans, as asked for."""
    if expand == AUTO:
        return tokens_of_spans(room)
    if isinstance(expand, bool) or not isinstance(expand, int) or expand < 0:
        raise InputError(
            f'Spans take a number of tokens, 0 or more, or "auto", but expand is {expand!r}; give '
            "one of these."
        )
    return at_least_a_piece(expand)


def _pieces(reader: Reader, number: int, context: Context) -> list[Piece]:
    return [
        Piece(
            context=number,
            start=start,
            end=end,
            reader=reader,
            token_ids=context.token_ids[start:end],
        )
        for start, end in cut(reader, context.token_ids)
    ]


def _merged(pieces: Sequence[Piece], contexts: Sequence[Context]) -> list[RawSpan]:
    """Pieces in the order of the texts as spans, neighbours together."""
    return [
        RawSpan(context=contexts[number], start=start, end=end)
        for number, part in groupby(pieces, key=lambda piece: piece.context)
        for start, end in joined((piece.start, piece.end) for piece in part)
    ]
