"""Prompt assembly: [head: raw][rows of the contexts][tail: raw], and the choice of k.

In: token ids and contexts. Out: the input embeddings that the reader sees, and the scale factor
that makes them fit its window. It does not run the reader.

The head is not optional: without a raw first token the reader loses its attention sink. Training
and reading put the same kind of head first.

Axes: R row, S prompt row, H reader hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .context import Context
from .downsampling import check_scale_factor, down_sampling
from .errors import InputError, WindowError
from .template import Message, Role, around_places

if TYPE_CHECKING:
    from .reader import Reader

AUTO = "auto"
BETWEEN_SPANS = "\n...\n"
"""Before a span that is read raw."""
Turn = tuple[str, str]
"""One earlier (question, answer)."""


ScaleFactors = int | tuple[int, ...]
"""Tokens per row, of all contexts or of each in order."""


@dataclass(frozen=True, kw_only=True)
class RawSpan:
    """Tokens of a context that are read raw, beside its rows."""

    context: Context
    start: int
    """First token."""
    end: int
    """Token after the last."""

    def __len__(self) -> int:
        return self.end - self.start


Part = Tensor | Context | RawSpan


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What stands before the generated tokens, in order.

    A part is raw token ids (t,), a context, a span of one that is read raw, or rows (R, H) that are
    read as they are.
    """

    parts: tuple[Part, ...]

    @property
    def contexts(self) -> list[Context]:
        """The parts that are contexts."""
        return [part for part in self.parts if isinstance(part, Context)]

    @property
    def spans(self) -> list[RawSpan]:
        """The parts that are spans read raw."""
        return [part for part in self.parts if isinstance(part, RawSpan)]

    @property
    def num_raw(self) -> int:
        """Rows of all parts that are not contexts: head, titles, spans, tail."""
        return sum(len(part) for part in self.parts if not isinstance(part, Context))

    def each_k(self, k: ScaleFactors) -> tuple[int, ...]:
        """The scale factor of each context."""
        return (k,) * len(self.contexts) if isinstance(k, int) else k

    def num_rows(self, k: ScaleFactors) -> int:
        """Rows of the whole prompt when its contexts are read at k."""
        pairs = zip(self.contexts, self.each_k(k), strict=True)
        return self.num_raw + sum(context.rows_at(each) for context, each in pairs)

    def part_rows(self, k: ScaleFactors) -> list[int]:
        """Rows of each part when contexts are read at k."""
        ks = iter(self.each_k(k))
        return [
            part.rows_at(next(ks)) if isinstance(part, Context) else len(part)
            for part in self.parts
        ]

    def tensors(self, reader: Reader, k: ScaleFactors) -> list[Tensor]:
        """The parts in order: token ids (t,) of what is read raw, rows (R, H) of the others.

        Raises:
            MismatchError, InputError: see `context_rows`.
        """
        ks = iter(self.each_k(k))
        return [
            context_rows(reader, part, next(ks)) if isinstance(part, Context) else _tensor(part)
            for part in self.parts
        ]

    def embeds(self, reader: Reader, k: ScaleFactors) -> Tensor:
        """Input embeddings (S, H), in the reader's dtype and on its device."""
        rows = [
            part if part.ndim == 2 else reader.embed_tokens(part)
            for part in self.tensors(reader, k)
            if len(part)
        ]
        return torch.cat([part.to(reader.device, reader.dtype) for part in rows])


def _tensor(part: Tensor | RawSpan) -> Tensor:
    if isinstance(part, RawSpan):
        return part.context.token_ids[part.start : part.end]
    return part


def context_rows(reader: Reader, context: Context, k: int) -> Tensor:
    """Rows (R, H) of a context at k; at k=1 its token ids (n,).

    Raises:
        MismatchError: the context was made for another reader, or by another tokenizer.
        InputError: k is not usable with this context.
    """
    reader.check_same(context.reader_fingerprint, f"Context {context.title!r}")
    reader.check_tokenizer(context.tokenizer_fingerprint, f"Context {context.title!r}")
    if check_scale_factor(k) == 1:
        return context.token_ids
    return context.at(k).rows


def language_head(reader: Reader) -> Tensor:
    """The head of plain text, (1,): the tokenizer's first special token."""
    tokenizer = reader.tokenizer
    known = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, 0)
    return torch.tensor([next(token for token in known if token is not None)])


def question_prompt(
    reader: Reader,
    contexts: Sequence[Context],
    question: str,
    history: Sequence[Turn] = (),
    spans: Sequence[RawSpan] = (),
) -> Prompt:
    """A chat prompt: header and titles raw, contexts as rows, the question raw.

    Uses the reader's chat template; a reader without one gets "Question: ... Answer:". Special
    tokens are the template's alone: in titles, questions and history they are text.

    Args:
        reader: that is asked.
        contexts: in order; where there are several, each begins with its title.
        question: after them.
        history: earlier (question, answer) turns.
        spans: of the contexts, to be read raw as well; they follow the rows of their context.

    Raises:
        InputError: the question is empty.
    """
    head, tail = question_frame(reader, question, history)
    return Prompt(parts=(head, *document_parts(reader, contexts, spans), tail))


def document_parts(
    reader: Reader, contexts: Sequence[Context], spans: Sequence[RawSpan] = ()
) -> list[Part]:
    """Contexts in order, with their titles where there are several, and with their raw spans."""
    parts: list[Part] = []
    for number, context in enumerate(contexts):
        opening = ("\n\n" if number else "") + _title(context, len(contexts))
        parts += [reader.encode(opening), context]
        for span in (span for span in spans if span.context is context):
            parts += [reader.encode(BETWEEN_SPANS), span]
    return parts


def chat_prompt(
    reader: Reader, messages: Sequence[Message], places: Sequence[Sequence[Part]]
) -> Prompt:
    """A prompt of a chat whose messages have places; `places` says what goes into each, in order.

    Raises:
        InputError: the reader's chat template refuses the messages.
    """
    first, *others = around_places(reader, messages, language_head(reader))
    parts: list[Part] = [first]
    for place, after in zip(places, others, strict=True):
        parts += [*place, after]
    return Prompt(parts=tuple(parts))


def question_frame(
    reader: Reader, question: str, history: Sequence[Turn] = ()
) -> tuple[Tensor, Tensor]:
    """Head and tail, (h,) and (t,), between which the context goes; see `question_prompt`."""
    if not question.strip():
        raise InputError("A question has words, but this one is empty; ask something.")
    roles: tuple[Role, Role] = ("user", "assistant")
    said = [text for turn in history for text in turn] + [question]
    first, *later = (
        Message(role=roles[number % 2], texts=(text,)) for number, text in enumerate(said)
    )
    opening = Message(role="user", texts=("", f"\n\n{first.texts[0]}"))
    head, tail = around_places(reader, [opening, *later], language_head(reader))
    return head, tail


def message_frame(
    reader: Reader, before: str, after: str, *, chat: bool = True
) -> tuple[Tensor, Tensor]:
    """Head and tail, (h,) and (t,), of one message with words before and after the context.

    Not a word is added to it but the reader's chat template, and not that without `chat`.
    """
    if not chat or reader.tokenizer.chat_template is None:
        return torch.cat([language_head(reader), reader.encode(before)]), reader.encode(after)
    message = Message(role="user", texts=(before, after))
    head, tail = around_places(reader, [message], language_head(reader))
    return head, tail


def text_prompt(reader: Reader, contexts: Sequence[Context], text: str = "") -> Prompt:
    """A prompt of plain text: one head token, the contexts, and the text that goes on."""
    return Prompt(parts=(language_head(reader), *contexts, reader.encode(text)))


def choose_k(prompt: Prompt, room: int) -> ScaleFactors:
    """The smallest scale factors at which the prompt takes at most `room` rows.

    One for all contexts where all can be read at it; else each is read at the smallest of its own
    that is no smaller, or at its largest.

    Raises:
        WindowError: even the largest allowed do not fit; names the k that would.
    """
    allowed = list(_candidates(prompt.contexts, beyond=False))
    for k in allowed:
        if prompt.num_rows(k) <= room:
            return k
    raise _too_long(prompt, allowed[-1], room, ", the largest allowed,")


def fit(prompt: Prompt, k: int | str | Sequence[int], room: int) -> ScaleFactors:
    """The scale factors to read at: those asked for if they fit, or the smallest that do.

    Raises:
        InputError: k is neither a whole number nor "auto", nor one number for each context.
        WindowError: it does not fit.
    """
    if isinstance(k, str) and k == AUTO:
        return choose_k(prompt, room)
    if isinstance(k, Sequence) and not isinstance(k, str):
        return _fit_each(prompt, k, room)
    number = check_scale_factor(k)
    if prompt.num_rows(number) > room:
        raise _too_long(prompt, number, room)
    return number


def _fit_each(prompt: Prompt, ks: Sequence[int], room: int) -> tuple[int, ...]:
    if len(ks) != len(prompt.contexts):
        raise InputError(
            f"Several k are one for each context, but there are {len(ks)} for "
            f"{len(prompt.contexts)} contexts; give as many, or one for all."
        )
    chosen = tuple(check_scale_factor(k) for k in ks)
    if prompt.num_rows(chosen) > room:
        raise WindowError(
            f"The prompt must fit in {room} rows, but at k={', '.join(map(str, chosen))} it takes "
            f'{prompt.num_rows(chosen)}; give larger ones, or k="auto".'
        )
    return chosen


def _too_long(prompt: Prompt, k: ScaleFactors, room: int, which: str = "") -> WindowError:
    if prompt.contexts and prompt.num_raw >= room:
        return WindowError(
            f"The prompt must fit in {room} rows, but head, titles and question alone take "
            f"{prompt.num_raw} and no k would fit; ask a shorter question or for fewer new tokens."
        )
    candidates = _candidates(prompt.contexts, beyond=True)
    fitting = next((each for each in candidates if prompt.num_rows(each) <= room), None)
    advice = f"k={_shown(fitting)} would fit" if fitting else "no k would fit, give less text"
    return WindowError(
        f"The prompt must fit in {room} rows, but at k={_shown(k)}{which} it takes "
        f"{prompt.num_rows(k)}; {advice}.",
        smallest_k=fitting if isinstance(fitting, int) else None,
    )


def _shown(k: ScaleFactors) -> str:
    return str(k) if isinstance(k, int) else ", ".join(map(str, k))


def smallest_k(num_tokens: int, *, room: int, chunk_tokens: int, max_k: int) -> int:
    """The scale factor to compress a text at, so that its rows fit in `room`.

    Raises:
        WindowError: even `max_k` does not fit; names the k that would.
    """
    if room < 1:
        raise WindowError(
            "Head, question and new tokens must leave rows for the context in the reader's window, "
            f"but they fill it and need {1 - room} more; ask for fewer new tokens, ask a shorter "
            "question or use a reader with a larger window."
        )
    full, rest = divmod(num_tokens, chunk_tokens)
    for k in range(1, chunk_tokens + 1):
        if full * -(-chunk_tokens // k) + -(-rest // k) <= room:
            if k <= max_k:
                return k
            raise WindowError(
                f"The context must fit in {room} rows, but its {num_tokens} tokens do not at "
                f"k={max_k}, the largest allowed; k={k} would fit.",
                smallest_k=k,
            )
    raise WindowError(
        f"The context must fit in {room} rows, but its {num_tokens} tokens do not at any k; give "
        "less text or a reader with a larger window."
    )


def _candidates(contexts: Sequence[Context], *, beyond: bool) -> Iterator[ScaleFactors]:
    """Scale factors in order, raw first; up to the largest that "auto" may choose, or beyond it."""
    allowed = [_allowed(context, beyond=beyond) for context in contexts]
    last = None
    for least in sorted({1, *(k for ks in allowed for k in ks)}):
        each = [next((k for k in ks if k >= least), ks[-1]) for ks in allowed]
        found = least if all(k == least for k in each) else tuple(each)
        if found != last:
            yield found
        last = found


def _allowed(context: Context, *, beyond: bool) -> list[int]:
    """Scale factors at which a context can be read, in order."""
    if context.k == 1:
        return [1]
    if not down_sampling(context.down_sampling).nests:
        return [1, context.k]
    most = context.chunk_tokens if beyond else context.coarsest_k
    return [1, *range(context.k, most + 1, context.k)]


def _title(context: Context, how_many: int) -> str:
    whole = context.title.encode(
        errors="replace"
    ).decode()  # a file's name may have half characters
    return f"Document: {whole}\n" if whole and how_many > 1 else ""
