"""OpenAI's protocol: models, chat and completions, whole or as a stream.

In: a request that the schema has checked. Out: JSON, or server-sent events that end with [DONE]. An
error before the first piece is an answer of its own, one after it is the last event.
"""

from __future__ import annotations

import dataclasses
import json
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ...generation import FinishReason
from ..completing import Piece
from ..errors import CLIENT_LEFT, ApiError, api_error, body_of
from ..openapi import events_of
from ..schema import (
    AnswerMessage,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatRequest,
    ChunkChoice,
    Completion,
    CompletionRequest,
    Delta,
    Generation,
    Model,
    ModelList,
    Source,
    Sources,
    StreamOptions,
    TextChoice,
)
from ..service import Answering, Service
from .common import (
    ClientOf,
    EventStream,
    Responses,
    ServiceOf,
    errors_of,
    event,
    note,
    while_there,
)

router = APIRouter(prefix="/v1", tags=["answers"])
Head = dict[str, Any]
"""Of an answer and each of its events: id, created and model."""


def _answers(chunk: type[ChatChunk | Completion]) -> Responses:
    """What a route may answer: JSON, a stream of `chunk`, or an error."""
    words = f"The answer; with `stream`, events of which each is a {chunk.__name__}."
    return {
        200: {"description": words, "content": {"text/event-stream": events_of(chunk)}},
        **errors_of(404, 409, 502, 504, 507),
    }


@router.get("/models", responses=errors_of())
async def models(service: ServiceOf) -> ModelList:
    """The models: the one reader."""
    return ModelList(data=[_model(service)])


@router.get("/models/{model:path}", responses=errors_of(404))
async def model(model: str, service: ServiceOf) -> Model:
    """One model."""
    _check_model(service, model)
    return _model(service)


@router.post("/chat/completions", response_model=ChatCompletion, responses=_answers(ChatChunk))
async def chat(
    request: Request, body: ChatRequest, client: ClientOf, service: ServiceOf
) -> Response | ChatCompletion:
    """Answers messages, which may be longer than the window, and about contexts that are kept."""
    _check_model(service, body.model)
    answering = await while_there(request, service.chat(client, body, start=request.state.start))
    head = _head("chatcmpl", body)
    if body.stream:
        return EventStream(_events(request, body, answering, head, _chat_chunk))
    reason = await while_there(request, _whole(request, answering))
    message = AnswerMessage(content=answering.text)
    return ChatCompletion(
        **head,
        choices=[ChatChoice(message=message, finish_reason=reason)],
        usage=answering.usage,
        extensible=_sources(answering),
    )


@router.post("/completions", response_model=Completion, responses=_answers(Completion))
async def complete(
    request: Request, body: CompletionRequest, client: ClientOf, service: ServiceOf
) -> Response | Completion:
    """Goes on with a text, which may be longer than the window, without a chat template."""
    _check_model(service, body.model)
    answering = await while_there(
        request, service.complete(client, body, start=request.state.start)
    )
    head = _head("cmpl", body)
    if body.stream:
        return EventStream(_events(request, body, answering, head, _text_chunk))
    reason = await while_there(request, _whole(request, answering))
    return Completion(
        **head,
        choices=[TextChoice(text=answering.text, finish_reason=reason)],
        usage=answering.usage,
        extensible=_sources(answering),
    )


async def _whole(request: Request, answering: Answering) -> FinishReason:
    """Waits for the whole answer, and says how it ended."""
    reason: FinishReason = "length"
    async for piece in answering.pieces:
        reason = piece.finish_reason or reason
    _note(request, answering)
    return reason


async def _events(
    request: Request,
    body: Generation,
    answering: Answering,
    head: Head,
    chunk: Callable[[Head, Piece], ChatChunk | Completion],
) -> AsyncGenerator[str]:
    """The events of a stream."""
    options = body.stream_options or StreamOptions()
    try:
        if chunk is _chat_chunk:
            role = ChunkChoice(delta=Delta(role="assistant", content=""))
            usage = answering.usage if options.continuous_usage_stats else None
            yield _event(ChatChunk(**head, choices=[role], usage=usage))
        async for piece in answering.pieces:
            made = chunk(head, piece)
            made.usage = answering.usage if options.continuous_usage_stats else None
            if piece.finish_reason:
                made.extensible = _sources(answering)
            yield _event(made)
        if options.include_usage:
            kind = ChatChunk if chunk is _chat_chunk else Completion
            yield _event(kind(**head, choices=[], usage=answering.usage))
        yield event("[DONE]")
    except Exception as error:  # the status is sent already: an event is all that can be said
        made_error = api_error(error)
        request.state.ended_as = made_error.status_code
        if made_error.status_code >= 500:
            request.state.failure = error
        yield event(json.dumps(body_of(made_error)))
    except BaseException:  # the client left, or the server stops
        request.state.ended_as = CLIENT_LEFT
        raise
    finally:
        _note(request, answering)
        await answering.pieces.aclose()


def _chat_chunk(head: Head, piece: Piece) -> ChatChunk:
    delta = Delta(content=piece.text) if piece.text else Delta()
    return ChatChunk(**head, choices=[ChunkChoice(delta=delta, finish_reason=piece.finish_reason)])


def _text_chunk(head: Head, piece: Piece) -> Completion:
    return Completion(
        **head, choices=[TextChoice(text=piece.text, finish_reason=piece.finish_reason)]
    )


def _event(chunk: ChatChunk | Completion) -> str:
    """Without what is not there, but for the reason that clients look for."""
    fields = chunk.model_dump(exclude_none=True)
    for choice in fields["choices"]:
        choice.setdefault("finish_reason", None)
    return event(json.dumps(fields))  # in ASCII: some clients take more than LF for an end of line


def _head(kind: str, body: Generation) -> Head:
    return {"id": f"{kind}-{uuid.uuid4().hex}", "created": int(time.time()), "model": body.model}


def _sources(answering: Answering) -> Sources | None:
    if answering.citations is None:
        return None
    return Sources(citations=[Source(**dataclasses.asdict(each)) for each in answering.citations])


def _note(request: Request, answering: Answering) -> None:
    usage = answering.usage
    note(
        request,
        k=usage.extensible.k,
        rows=usage.extensible.rows,
        prompt_tokens=usage.prompt_tokens,
        new_tokens=usage.completion_tokens,
    )


def _model(service: Service) -> Model:
    return Model(
        id=service.settings.model,
        created=service.created,
        reader=service.reader.name,
        engine=service.engine.name,
        window=service.reader.window,
        k=service.settings.k,
        max_k=service.embedder.config.max_k,
        chunk_tokens=service.embedder.config.chunk_tokens,
    )


def _check_model(service: Service, name: str) -> None:
    if name != service.settings.model:
        raise ApiError(
            404,
            f"A model is one that GET /v1/models lists, but {name[:100]!r} is not; ask for "
            f"{service.settings.model!r}.",
            code="model_not_found",
            param="model",
        )
