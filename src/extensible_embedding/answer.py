"""Answers: prompt -> reader -> text.

In: contexts and a question. Out: an answer, whole or as it comes. Generation itself is
transformers' `generate` on input embeddings. Knows nothing of how rows were made.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import torch
from torch import Tensor
from transformers import TextIteratorStreamer

from .context import Context
from .errors import InputError, WindowError
from .expand import ByWords, SpanRanker, expanded_prompt
from .generation import FinishReason, NewText, generate
from .prompt import AUTO, Prompt, Turn, fit, text_prompt
from .raw_end import with_raw_end

if TYPE_CHECKING:
    from .reader import Reader

Contexts = Context | Sequence[Context]
_KEPT_BYTES = 64 << 20
"""Of the words of a batch's contexts."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A generated text and what it was read from."""

    text: str
    k: int
    """Scale factor that the contexts were read at, of several the largest."""
    num_context_tokens: int
    """Tokens that the prompt's raw text and rows of contexts stand for."""
    prompt_rows: int
    """Rows of head, contexts and tail."""
    window: int
    """Rows that the reader may hold."""
    num_new_tokens: int
    """Tokens generated, the end token among them."""
    finish_reason: FinishReason

    def __str__(self) -> str:
        return self.text


class AnswerStream:
    """An answer as it comes: iterate for pieces of text; `k` and `prompt_rows` are known at once.

    After the first piece `ttft_s` is the time to it in seconds; after the last, `num_new_tokens`
    and `finish_reason` are as in `Answer`. Leaving the loop early stops the generation and leaves
    them None; an error in it is raised here.
    """

    def __init__(self, reader: Reader, plan: Plan, generation: dict[str, Any]) -> None:
        self.k, self.prompt_rows, self.window = plan.k, plan.prompt_rows, reader.window
        self.num_context_tokens = plan.num_context_tokens
        self.ttft_s: float | None = None
        self.num_new_tokens: int | None = None
        self.finish_reason: FinishReason | None = None
        self._reader, self._plan, self._generation = reader, plan, generation

    def __iter__(self) -> Iterator[str]:
        start, failure, stopped = time.monotonic(), [], threading.Event()
        texts: list[NewText] = []
        streamer = TextIteratorStreamer(self._reader.tokenizer, skip_special_tokens=True)

        def run() -> None:
            """Generates in the thread; a failure is kept for the reader of the stream."""
            try:
                texts.extend(
                    generate(self._reader, [self._plan], self._settings(streamer, stopped))
                )
            except BaseException as error:
                failure.append(error)
                streamer.end()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            for piece in streamer:
                if piece:
                    self.ttft_s = self.ttft_s or time.monotonic() - start
                    yield piece
        finally:
            stopped.set()
            thread.join()
        if failure:
            raise failure[0]
        self.num_new_tokens, self.finish_reason = texts[0].num_tokens, texts[0].finish_reason

    def _settings(self, streamer: TextIteratorStreamer, stopped: threading.Event) -> dict[str, Any]:
        criteria = self._generation.get("stopping_criteria", ())
        stop = [*criteria, lambda ids, scores, **_: _all(ids, stopped.is_set())]
        return {**self._generation, "streamer": streamer, "stopping_criteria": stop}


def _all(ids: Tensor, value: bool) -> Tensor:
    return torch.full((len(ids),), value, dtype=torch.bool, device=ids.device)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A prompt, and the scale factors at which it fits."""

    prompt: Prompt
    k: int
    """The largest scale factor that rows are read at, 1 if all is raw."""
    ks: tuple[int, ...] = ()
    """Of each context of the prompt, in order."""
    prompt_rows: int
    num_context_tokens: int


class AnswerMixin:
    """What a reader does with prompts: generate and answer."""

    def plan(
        self, prompt: Prompt, k: int | str | Sequence[int] = AUTO, max_new_tokens: int = 128
    ) -> Plan:
        """Chooses k so that head, rows, tail and the new tokens fit the window.

        Raises:
            InputError: k or max_new_tokens is not usable.
            WindowError: it does not fit.
        """
        chosen = fit(prompt, k, _room(cast("Reader", self), max_new_tokens))
        return Plan(
            prompt=prompt,
            k=max(prompt.each_k(chosen), default=1),
            ks=prompt.each_k(chosen),
            prompt_rows=prompt.num_rows(chosen),
            num_context_tokens=sum(context.num_tokens for context in prompt.contexts),
        )

    def generate(
        self,
        contexts: Contexts,
        text: str | Sequence[str] = "",
        *,
        k: int | str | Sequence[int] = AUTO,
        raw_end: bool = True,
        max_new_tokens: int = 128,
        **generation: Any,
    ) -> str | list[str]:
        """Goes on from contexts and the text after them, without a chat template.

        Args:
            contexts: one context, or one for each text.
            text: raw text after the rows; a list makes a batch.
            k: scale factor to read at, or "auto".
            raw_end: read the context at 2k and its last tokens raw, in as many places as rows at k;
                the text that follows depends most on these. False: rows alone.
            max_new_tokens: tokens to generate.
            generation: transformers' own generation arguments.

        Returns:
            The new text, or a list of them for a batch.

        Raises:
            InputError, WindowError, MismatchError: see `plan`.
        """
        reader = cast("Reader", self)
        texts = [text] if isinstance(text, str) else list(text)
        each = _spread(contexts, len(texts))
        prompts = [text_prompt(reader, part, t) for part, t in zip(each, texts, strict=True)]
        plans = [self.plan(prompt, k, max_new_tokens) for prompt in prompts]
        if raw_end:
            plans = [_with_raw_end(plan) for plan in plans]
        new = generate(reader, plans, {"max_new_tokens": max_new_tokens, **generation})
        return new[0].text if isinstance(text, str) else [each.text for each in new]

    @overload
    def answer(
        self,
        contexts: Contexts,
        question: str,
        *,
        k: int | str | Sequence[int] = AUTO,
        stream: Literal[False] = False,
        history: Sequence[Turn] = (),
        expand: int | str = AUTO,
        ranker: SpanRanker | None = None,
        max_new_tokens: int = 128,
        **generation: Any,
    ) -> Answer: ...

    @overload
    def answer(
        self,
        contexts: Contexts,
        question: str,
        *,
        k: int | str | Sequence[int] = AUTO,
        stream: Literal[True],
        history: Sequence[Turn] = (),
        expand: int | str = AUTO,
        ranker: SpanRanker | None = None,
        max_new_tokens: int = 128,
        **generation: Any,
    ) -> AnswerStream: ...

    @overload
    def answer(
        self,
        contexts: Contexts,
        question: str,
        *,
        k: int | str | Sequence[int] = AUTO,
        stream: bool,
        history: Sequence[Turn] = (),
        expand: int | str = AUTO,
        ranker: SpanRanker | None = None,
        max_new_tokens: int = 128,
        **generation: Any,
    ) -> Answer | AnswerStream: ...

    def answer(
        self,
        contexts: Contexts,
        question: str,
        *,
        k: int | str | Sequence[int] = AUTO,
        stream: bool = False,
        history: Sequence[Turn] = (),
        expand: int | str = AUTO,
        ranker: SpanRanker | None = None,
        max_new_tokens: int = 128,
        **generation: Any,
    ) -> Answer | AnswerStream:
        """Answers a question about one or more contexts.

        Args:
            contexts: what the answer draws on, in order; each may have its own title.
            question: asked after the rows.
            k: scale factor to read at, one for all contexts or one for each, or "auto": the
                smallest that fit the window, beside spans where it is not all raw.
            stream: return an `AnswerStream` at once.
            history: earlier (question, answer) turns on the same contexts.
            expand: the most tokens of the spans that matter to the question, read raw beside the
                rows, or "auto": a third of the room, more of a small one; half of the texts'
                tokens at most. 0: rows alone.
            ranker: says which spans matter, by default those that share words with the question.
            max_new_tokens: tokens to generate.
            generation: transformers' own generation arguments; greedy unless they say otherwise.

        Raises:
            InputError, WindowError, MismatchError: see `plan`.
        """
        reader = cast("Reader", self)
        given = [contexts] if isinstance(contexts, Context) else list(contexts)
        if not given:
            raise InputError(
                "An answer draws on at least 1 context, but there is none; compress a text, or ask "
                "the model itself with `reader.model.generate`."
            )
        prompt = expanded_prompt(
            reader,
            given,
            question,
            k=k,
            expand=expand,
            room=_room(reader, max_new_tokens),
            history=history,
            ranker=ranker,
        )
        return self.reply(prompt, k=k, stream=stream, max_new_tokens=max_new_tokens, **generation)

    @overload
    def reply(
        self, prompt: Prompt, *, stream: Literal[False] = False, **settings: Any
    ) -> Answer: ...

    @overload
    def reply(self, prompt: Prompt, *, stream: Literal[True], **settings: Any) -> AnswerStream: ...

    @overload
    def reply(self, prompt: Prompt, *, stream: bool, **settings: Any) -> Answer | AnswerStream: ...

    def reply(
        self,
        prompt: Prompt,
        *,
        k: int | str | Sequence[int] = AUTO,
        stream: bool = False,
        max_new_tokens: int = 128,
        **generation: Any,
    ) -> Answer | AnswerStream:
        """Generates after a prompt that is put together already; else as `answer`."""
        plan = self.plan(prompt, k, max_new_tokens)
        return self.respond(plan, stream=stream, max_new_tokens=max_new_tokens, **generation)

    def respond(
        self, plan: Plan, *, stream: bool = False, max_new_tokens: int = 128, **generation: Any
    ) -> Answer | AnswerStream:
        """Generates after a prompt for which `plan`, or the caller, has chosen k; else `answer`."""
        reader = cast("Reader", self)
        settings = {"do_sample": False, "max_new_tokens": max_new_tokens, **generation}
        if stream:
            return AnswerStream(reader, plan, settings)
        return _answer(reader, plan, generate(reader, [plan], settings)[0])

    def answers(
        self,
        contexts: Sequence[Context],
        questions: Sequence[str],
        *,
        k: int | str | Sequence[int] = AUTO,
        expand: int | str = AUTO,
        ranker: SpanRanker | None = None,
        max_new_tokens: int = 128,
        **generation: Any,
    ) -> list[Answer]:
        """Answers a batch: question i about context i, in one pass; without history.

        Else as `answer`; the words of a context are counted once, however many questions it has.
        """
        reader = cast("Reader", self)
        room, ranker = _room(reader, max_new_tokens), ranker or ByWords(kept_bytes=_KEPT_BYTES)
        prompts = [
            expanded_prompt(reader, part, question, k=k, expand=expand, room=room, ranker=ranker)
            for part, question in zip(_spread(contexts, len(questions)), questions, strict=True)
        ]
        plans = [self.plan(prompt, k, max_new_tokens) for prompt in prompts]
        settings = {"do_sample": False, "max_new_tokens": max_new_tokens, **generation}
        texts = generate(reader, plans, settings)
        return [_answer(reader, plan, text) for plan, text in zip(plans, texts, strict=True)]


def _with_raw_end(plan: Plan) -> Plan:
    prompt, ks = with_raw_end(plan.prompt, plan.ks)
    rows = prompt.num_rows(ks)
    return dataclasses.replace(plan, prompt=prompt, k=max(ks), ks=ks, prompt_rows=rows)


def _room(reader: Reader, max_new_tokens: int) -> int:
    """Rows of the window that are left for a prompt."""
    if max_new_tokens < 1:
        raise InputError(
            f"At least 1 token is generated, but max_new_tokens is {max_new_tokens}; ask for 1 "
            "or more."
        )
    if max_new_tokens >= reader.window:
        raise WindowError(
            f"New tokens must leave rows for the prompt in the window of {reader.window}, but "
            f"max_new_tokens is {max_new_tokens}; ask for fewer, or use a reader with a larger "
            "window."
        )
    return reader.window - max_new_tokens


def _spread(contexts: Contexts, how_many: int) -> list[list[Context]]:
    if isinstance(contexts, Context):
        return [[contexts]] * how_many
    if len(contexts) != how_many:
        raise InputError(
            f"A batch has one context for each text, but there are {len(contexts)} contexts and "
            f"{how_many} texts; give as many, or a single context for all."
        )
    return [[context] for context in contexts]


def _answer(reader: Reader, plan: Plan, new: NewText) -> Answer:
    return Answer(
        text=new.text.strip(),
        k=plan.k,
        num_context_tokens=plan.num_context_tokens,
        prompt_rows=plan.prompt_rows,
        window=reader.window,
        num_new_tokens=new.num_tokens,
        finish_reason=new.finish_reason,
    )
