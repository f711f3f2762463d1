"""What goes over the wire: requests and answers, as pydantic models.

In: JSON. Out: checked values, and JSON again; the OpenAPI schema is made of this. Knows nothing of
how they are answered.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, JsonValue

from .given import ChatFields, Given, MessageFields, One, ProtocolFields, Unused

Name = Annotated[str, Field(min_length=1, max_length=200, description="Of a context.")]
MAX_METADATA_BYTES = 1 << 16
"""Of a context; they are no part of the text that a key may keep, and read with every list."""
ScaleFactor = Annotated[int, Field(ge=1, le=4096)]


class Extensible(Given):
    """What a request reads beside its messages, and how."""

    contexts: list[Name] = Field(
        default=[],
        max_length=64,
        fail_fast=True,
        description="Contexts to read, in order, before the messages.",
    )
    k: ScaleFactor | Literal["auto"] = Field(
        default="auto", description='Tokens per row; "auto" is the smallest that fits the window.'
    )
    expand: Annotated[int, Field(ge=0, le=1 << 20)] | Literal["auto"] | None = Field(
        default=None,
        description="The most tokens of passages that share words with the question, read raw as "
        'well; "auto" takes a third of the room, more of a small one; half of the texts at most. '
        "By default as the server is set.",
    )
    cite: bool = Field(default=False, description="Say where the answer comes from.")


class TextPart(Given):
    """A part of a message."""

    type: Literal["text"]
    text: str
    cache_control: Unused = None


class ChatMessage(MessageFields):
    """A message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)]

    @property
    def text(self) -> str:
        """Its text, whole."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class StreamOptions(Given):
    """What a stream holds beside the answer."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = Field(
        default=None, description="Say with every event what was read, and how much is written."
    )
    include_obfuscation: Unused = None


class Generation(ProtocolFields):
    """How an answer is generated; what OpenAI's protocol can ask for beyond it is refused."""

    model: str = Field(max_length=200)
    max_tokens: Annotated[int, Field(ge=1, le=1 << 20)] | None = Field(
        default=None, description="By default as the server is set."
    )
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(
        default=None, description="By default 0: the likeliest token each time."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None
    stop: (
        Annotated[str, Field(min_length=1, max_length=200)]
        | Annotated[
            list[Annotated[str, Field(min_length=1, max_length=200)]],
            Field(max_length=16, fail_fast=True),
        ]
        | None
    ) = Field(default=None, description="The answer ends before this text.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    extensible: Extensible = Field(default_factory=Extensible)

    @property
    def stops(self) -> list[str]:
        """The texts that end the answer."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class ChatRequest(ChatFields, Generation):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=10_000, fail_fast=True)
    max_completion_tokens: Annotated[int, Field(ge=1, le=1 << 20)] | None = Field(
        default=None, description="As `max_tokens`, which it goes before."
    )


class CompletionRequest(Generation):
    """POST /v1/completions."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=1, fail_fast=True)]
    best_of: One | None = None
    echo: Literal[False] | None = None
    logprobs: None = None
    suffix: None = None

    @property
    def text(self) -> str:
        """What goes on."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]


class ExtensibleUsage(BaseModel):
    """What was read, in rows."""

    k: int = Field(description="Tokens per row, of several the largest; 1 is raw text.")
    rows: int = Field(description="Of the window, that the prompt takes.")
    window: int = Field(description="Rows that prompt and answer may take.")
    context_tokens: int = Field(description="Tokens that stand in rows, or would at k=1.")
    span_tokens: int = Field(description="Of these, tokens that were read raw as well.")
    compressed_messages: int = Field(description="Messages of which a part was read as rows.")


class UsageCounts(BaseModel):
    """What a request took."""

    prompt_tokens: int = Field(description="Tokens of messages and contexts, however many rows.")
    completion_tokens: int
    total_tokens: int
    extensible: ExtensibleUsage


class Source(BaseModel):
    """A part of a context that an answer draws on."""

    title: str
    context: int = Field(description="Number of the context in the prompt, from 0.")
    start_byte: int
    end_byte: int
    quote: str
    raw: bool = Field(description="Whether it was read raw; else rows stand for it.")
    weight: float = Field(description="Its part of the attention that all rows of contexts got.")


class Sources(BaseModel):
    """Where an answer comes from."""

    citations: list[Source]


FinishReason = Literal["stop", "length"]


class AnswerMessage(BaseModel):
    """The message that answers."""

    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(BaseModel):
    """The one answer."""

    index: int = 0
    message: AnswerMessage
    logprobs: None = None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    """An answer to messages."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageCounts
    extensible: Sources | None = None


class Delta(BaseModel):
    """A piece of a message."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(BaseModel):
    """A piece of the one answer."""

    index: int = 0
    delta: Delta
    logprobs: None = None
    finish_reason: FinishReason | None = None


class ChatChunk(BaseModel):
    """One event of a stream."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: UsageCounts | None = None
    extensible: Sources | None = None


class TextChoice(BaseModel):
    """Text that goes on; a piece of it in a stream."""

    index: int = 0
    text: str
    logprobs: None = None
    finish_reason: FinishReason | None = None


class Completion(BaseModel):
    """Text that goes on from a prompt; one event of a stream of it."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: UsageCounts | None = None
    extensible: Sources | None = None


class Model(BaseModel):
    """The reader."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "extensible-embedding"
    reader: str = Field(description="The language model that answers.")
    engine: str = Field(description="What runs it.")
    window: int = Field(description="Rows that it may hold.")
    k: int = Field(description="Tokens per row, as contexts are kept.")
    max_k: int = Field(description='Most tokens per row that "auto" takes.')
    chunk_tokens: int = Field(description="Tokens that become rows together.")


class ModelList(BaseModel):
    """All models: one."""

    object: Literal["list"] = "list"
    data: list[Model]


def _small(metadata: dict[str, JsonValue]) -> dict[str, JsonValue]:
    if len(json.dumps(metadata)) > MAX_METADATA_BYTES:
        raise ValueError(
            f"metadata take {MAX_METADATA_BYTES} bytes of JSON at most, but these take more; keep "
            "them elsewhere under the name of the context"
        )
    return metadata


class NewContext(Given):
    """POST /v1/contexts."""

    name: Name
    text: str = Field(description="May be empty, for a context that is to grow.")
    title: str = Field(default="", max_length=500, description="By default the name.")
    metadata: Annotated[dict[str, JsonValue], AfterValidator(_small)] = Field(
        default={}, description=f"Kept with it; at most {MAX_METADATA_BYTES} bytes as JSON."
    )
    replace: bool = Field(default=False, description="Take the place of one of that name.")


class MoreText(Given):
    """POST /v1/contexts/{name}/append."""

    text: str = Field(min_length=1)


class ContextObject(BaseModel):
    """A context that is kept."""

    object: Literal["context"] = "context"
    name: str
    title: str
    metadata: dict[str, Any]
    tokens: int
    rows: int
    k: int = Field(description="Tokens per row as kept; it can be read at multiples.")
    text_bytes: int
    created: float = Field(description="Seconds since 1970.")
    changed: float
    shared: bool = Field(description="Whether it is there for all, and cannot be changed.")


class ContextList(BaseModel):
    """Contexts by name."""

    object: Literal["list"] = "list"
    data: list[ContextObject]
    has_more: bool


class ContextText(BaseModel):
    """A part of a context's text."""

    object: Literal["context.text"] = "context.text"
    name: str
    start_byte: int
    end_byte: int
    text_bytes: int = Field(description="Of the whole text, in UTF-8.")
    text: str


class Deleted(BaseModel):
    """A context that is gone."""

    object: Literal["context.deleted"] = "context.deleted"
    name: str
    deleted: Literal[True] = True


class UsageObject(BaseModel):
    """What a key keeps."""

    object: Literal["usage"] = "usage"
    contexts: int
    max_contexts: int
    tokens: int
    rows: int
    text_bytes: int = Field(description="Of all their texts, in UTF-8.")
    max_text_bytes: int


class ProgressObject(BaseModel):
    """How far the key's own text is that becomes rows now."""

    object: Literal["progress"] = "progress"
    done: int = Field(description="Of its tokens.")
    total: int = Field(description="Its tokens; 0 if there is none.")
    waiting: int = Field(description="Texts after it.")


class State(BaseModel):
    """Whether the server works."""

    status: Literal["ok"] = "ok"


class Fault(BaseModel):
    """What went wrong, as OpenAI says it."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Any answer that is an error."""

    error: Fault
