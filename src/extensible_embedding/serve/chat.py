"""A request -> the prompt that an engine goes on from.

In: messages or text, and contexts. Out: a plan that fits the window, and the parts of its prompt.
Where messages are longer than the window, the longest become rows: the middle of a text, whose
beginning and end stay raw, the question among them. Runs in the reading thread; rows that are not
there yet are made between `draft` and `finish`, by others. Knows nothing of engines and HTTP.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..answer import Plan
from ..context import Context
from ..embedder import EmbedderConfig
from ..errors import WindowError
from ..expand import SpanRanker, best_spans
from ..prompt import (
    Part,
    Prompt,
    RawSpan,
    chat_prompt,
    document_parts,
    language_head,
)
from ..reader import Reader
from ..template import Message, Role
from .engines.base import Request, Sampling
from .made import Made
from .schema import ChatRequest, CompletionRequest, ExtensibleUsage, Generation, UsageCounts
from .settings import ServeSettings

MIN_TOKENS = 32
"""Of a text that is worth to be read as rows."""
_RAW_SHARE = 4
"""The raw beginning and end of a text have at most so many characters: the room, by this."""
_LESS_RAW = (1, 4, 16)
"""Of messages other than the question so many times less, until all of them fit."""
Spans = Sequence[RawSpan]


@dataclass(frozen=True, kw_only=True)
class LongText:
    """A text that can be read as rows: its beginning and end are not."""

    message: int
    """Number of its message."""
    before: str
    context: Context
    after: str


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A plan that fits, of which some rows may still have to be made."""

    plan: Plan
    sampling: Sampling
    missing: tuple[Context, ...]
    """Contexts of its prompt without rows."""
    compressed: int
    """Messages that are read as rows in part."""


@dataclass(frozen=True, kw_only=True)
class Ready:
    """All that is needed to answer."""

    plan: Plan
    request: Request
    compressed: int

    def usage(self, window: int, new_tokens: int) -> UsageCounts:
        """What it takes."""
        prompt = self.plan.prompt
        span_tokens = sum(map(len, prompt.spans))
        tokens = prompt.num_raw - span_tokens + self.plan.num_context_tokens
        return UsageCounts(
            prompt_tokens=tokens,
            completion_tokens=new_tokens,
            total_tokens=tokens + new_tokens,
            extensible=ExtensibleUsage(
                k=self.plan.k,
                rows=self.plan.prompt_rows,
                window=window,
                context_tokens=self.plan.num_context_tokens,
                span_tokens=span_tokens,
                compressed_messages=self.compressed,
            ),
        )


class Planner:
    """Plans prompts for a reader.

    Args:
        reader: with a tokenizer that nobody else uses.
        config: of the embedder that makes missing rows.
        fingerprint: of that embedder.
        settings: at which k they are made, and what requests do not say.
        made: contexts that were made lately, shared with other planners; by default its own.
        ranker: says which spans matter, and may be shared likewise; by default `ByWords`.
    """

    def __init__(
        self,
        reader: Reader,
        config: EmbedderConfig,
        fingerprint: str,
        settings: ServeSettings,
        made: Made | None = None,
        ranker: SpanRanker | None = None,
    ) -> None:
        self.reader, self.config, self.settings = reader, config, settings
        self._fingerprint = fingerprint
        self._made = Made(settings.cache_bytes) if made is None else made
        self._ranker = ranker

    def chat(self, request: ChatRequest, contexts: Sequence[Context]) -> Draft:
        """Plans an answer to messages.

        Raises:
            InputError: the messages, k or the number of new tokens are not usable.
            WindowError: it fits at no k.
        """
        roles = [_role(message.role) for message in request.messages]
        texts = [message.text for message in request.messages]
        asked = max((n for n, role in enumerate(roles) if role == "user"), default=len(roles) - 1)
        new_tokens = self._new_tokens(request, request.max_completion_tokens)
        make = partial(self._chat_prompt, roles, texts, contexts)
        return self._draft(request, make, texts, asked, new_tokens)

    def completion(self, request: CompletionRequest, contexts: Sequence[Context]) -> Draft:
        """Plans a text that goes on; raises as `chat`."""
        make = partial(self._text_prompt, request.text, contexts)
        new_tokens = self._new_tokens(request, None)
        return self._draft(request, make, [request.text], 0, new_tokens)

    def finish(self, draft: Draft, made: Sequence[Context]) -> Ready:
        """The parts of a prompt, with the rows of its missing contexts.

        Raises:
            MismatchError: a context was made for another reader.
            CheckpointError: a stored one is damaged.
        """
        for context in made:
            self._made.keep(context)
        whole = {id(old): new for old, new in zip(draft.missing, made, strict=True)}
        prompt = Prompt(parts=tuple(_replaced(part, whole) for part in draft.plan.prompt.parts))
        plan = dataclasses.replace(draft.plan, prompt=prompt)
        tensors = prompt.tensors(self.reader, plan.ks)
        request = Request(
            parts=tuple(part for part in tensors if len(part)),
            num_shared=sum(1 for part in tensors[: _num_shared(prompt)] if len(part)),
            sampling=draft.sampling,
        )
        return Ready(plan=plan, request=request, compressed=draft.compressed)

    def _draft(
        self,
        request: Generation,
        make: Callable[[Sequence[LongText], Spans], Prompt],
        texts: Sequence[str],
        asked: int,
        new_tokens: int,
    ) -> Draft:
        """The prompt with as few texts as rows as fit; text number `asked` is the question."""
        k, room = request.extensible.k, self.reader.window - new_tokens
        longest: Sequence[LongText] = ()
        try:
            prompt = self._planned(make, longest, k, new_tokens).prompt
        except WindowError:
            prompt, longest = self._shortened(make, texts, asked, k, new_tokens)
        ends = {each.message: each.after for each in longest}
        spans = self._spans(request, prompt, ends.get(asked, texts[asked]), room)
        plan = self.reader.plan(make(longest, spans), k, new_tokens)
        return Draft(
            plan=plan,
            sampling=_sampling(request, new_tokens),
            missing=_missing(plan, longest),
            compressed=len({each.message for each in longest}),
        )

    def _spans(self, request: Generation, prompt: Prompt, question: str, room: int) -> Spans:
        """What is read raw beside rows, if the request or the server wants it."""
        asked = request.extensible.expand
        expand: int | str = self.settings.expand if asked is None else asked
        if not expand or not prompt.contexts:
            return ()
        k = request.extensible.k
        return best_spans(
            self.reader,
            prompt.contexts,
            question,
            prompt,
            k=k,
            expand=expand,
            room=room,
            ranker=self._ranker,
        )

    def _planned(
        self,
        make: Callable[[Sequence[LongText], Spans], Prompt],
        longest: Sequence[LongText],
        k: int | str,
        new_tokens: int,
    ) -> Plan:
        return self.reader.plan(make(longest, ()), k, new_tokens)

    def _shortened(
        self,
        make: Callable[[Sequence[LongText], Spans], Prompt],
        texts: Sequence[str],
        asked: int,
        k: int | str,
        new_tokens: int,
    ) -> tuple[Prompt, Sequence[LongText]]:
        """A prompt that fits, with the longest texts as rows, and which these are."""
        raw_chars = max(1, (self.reader.window - new_tokens) // _RAW_SHARE)
        for less in _LESS_RAW if len(texts) > 1 else _LESS_RAW[:1]:
            most_chars = [raw_chars if n == asked else raw_chars // less for n in range(len(texts))]
            longest = self._longest(texts, most_chars, self._made_k(k))
            try:
                return self._fewest(make, longest, k, new_tokens)
            except WindowError as error:
                too_long = error
        raise too_long

    def _fewest(
        self,
        make: Callable[[Sequence[LongText], Spans], Prompt],
        longest: Sequence[LongText],
        k: int | str,
        new_tokens: int,
    ) -> tuple[Prompt, Sequence[LongText]]:
        """As `_shortened`, with as few of these as rows as fit; by halves, for chats are long."""
        found = self._planned(make, longest, k, new_tokens).prompt
        least, most = 1, len(longest)
        while least < most:
            count = (least + most) // 2
            try:
                found = self._planned(make, longest[:count], k, new_tokens).prompt
                most = count
            except WindowError:
                least = count + 1
        return found, longest[:most]

    def _longest(self, texts: Sequence[str], most_chars: Sequence[int], k: int) -> list[LongText]:
        """What can be read as rows, the longest first; of each, how much may stay raw."""
        found = []
        for number, (text, most) in enumerate(zip(texts, most_chars, strict=True)):
            before, middle, after = split_long(text, most)
            ids = self.reader.encode(middle) if len(middle) >= MIN_TOKENS else torch.zeros(0)
            if len(ids) >= MIN_TOKENS:
                made = self._made.get(ids, k)
                # Of two equal texts each has its own: a span is of one of them.
                context = dataclasses.replace(made) if made else self._without_rows(ids, k)
                found.append(LongText(message=number, before=before, context=context, after=after))
        return sorted(found, key=lambda each: -each.context.num_tokens)

    def _made_k(self, k: int | str) -> int:
        """At which k rows are made that are to be read at k: the usual, if that can be."""
        if isinstance(k, int) and k > 1 and k % self.settings.k:
            return k
        return self.settings.k

    def _without_rows(self, ids: Tensor, k: int) -> Context:
        return Context(
            rows=torch.empty(0, self.reader.hidden_size),
            token_ids=ids,
            k=k,
            chunk_tokens=self.config.chunk_tokens,
            down_sampling=self.config.down_sampling,
            max_k=self.config.max_k,
            embedder_fingerprint=self._fingerprint,
            reader_fingerprint=self.reader.fingerprint,
        )

    def _chat_prompt(
        self,
        roles: Sequence[Role],
        texts: Sequence[str],
        contexts: Sequence[Context],
        longest: Sequence[LongText],
        spans: Spans,
    ) -> Prompt:
        """Named contexts at the start of the first message of a user, long texts where they are."""
        long = {each.message: each for each in longest}
        first = roles.index("user") if "user" in roles else 0
        messages: list[Message] = []
        places: list[list[Part]] = []
        for number, (role, text) in enumerate(zip(roles, texts, strict=True)):
            pieces = [text]
            if number in long:
                pieces = [long[number].before, long[number].after]
                places.append(document_parts(self.reader, [long[number].context], spans))
            if number == first and contexts:
                pieces = ["", f"\n\n{pieces[0]}", *pieces[1:]]
                at = len(places) - (number in long)
                places.insert(at, document_parts(self.reader, contexts, spans))
            messages.append(Message(role=role, texts=tuple(pieces)))
        return chat_prompt(self.reader, messages, places)

    def _text_prompt(
        self, text: str, contexts: Sequence[Context], longest: Sequence[LongText], spans: Spans
    ) -> Prompt:
        parts: list[Part] = [language_head(self.reader)]
        parts += document_parts(self.reader, contexts, spans)
        for each in longest:
            parts += [self.reader.encode(each.before)]
            parts += document_parts(self.reader, [each.context], spans)
        end = longest[-1].after if longest else text
        return Prompt(parts=(*parts, self.reader.encode(end)))

    def _new_tokens(self, request: Generation, newer: int | None) -> int:
        asked = newer or request.max_tokens
        return asked or min(self.settings.max_new_tokens, max(1, self.reader.window // 4))


def split_long(text: str, most_chars: int) -> tuple[str, str, str]:
    """A text as its beginning, its middle and its end, of which the middle is read as rows.

    The end is the last paragraph, or as much of it as may stay raw; the beginning is the first
    paragraph, if it is short: questions and instructions stand there.
    """
    whole = text.rstrip()
    end = max(whole.rfind("\n\n") + 2, 2)
    if end == 2 or len(text) - end > most_chars:
        cut = max(0, len(text) - most_chars)
        space = text.find(" ", cut, cut + most_chars // 2)
        end = space if space >= 0 and cut else cut
    start = text.find("\n\n", 0, min(most_chars // 2, end)) + 2
    start = start if 2 <= start < end and text.find("\n\n", 0, start) >= 0 else 0
    return text[:start], text[start:end], text[end:]


def _role(role: str) -> Role:
    if role in ("system", "developer"):
        return "system"
    return "user" if role == "user" else "assistant"


def _sampling(request: Generation, new_tokens: int) -> Sampling:
    return Sampling(
        max_new_tokens=new_tokens,
        temperature=request.temperature or 0.0,
        top_p=1.0 if request.top_p is None else request.top_p,
        seed=request.seed,
    )


def _missing(plan: Plan, longest: Sequence[LongText]) -> tuple[Context, ...]:
    """Contexts without rows that are not read raw."""
    long = {id(each.context) for each in longest}
    return tuple(
        context
        for context, k in zip(plan.prompt.contexts, plan.ks, strict=True)
        if id(context) in long and k != 1 and not len(context.rows)
    )


def _num_shared(prompt: Prompt) -> int:
    """Parts that the next question on the same contexts begins with: spans are of this one."""
    first = next((n for n, part in enumerate(prompt.parts) if isinstance(part, RawSpan)), None)
    return len(prompt.parts) - 1 if first is None else first - 1  # what goes before a span is its


def _replaced(part: Part, whole: Mapping[int, Context]) -> Part:
    if isinstance(part, Context):
        return whole.get(id(part), part)
    if isinstance(part, RawSpan) and id(part.context) in whole:
        return dataclasses.replace(part, context=whole[id(part.context)])
    return part
