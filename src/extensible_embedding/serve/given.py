"""What all that clients send has in common, and what OpenAI's protocol has that says nothing here.

In: JSON. Out: checked values. Fields that are not listed are refused, so that a misspelt setting is
not ignored; but popular clients send all that they know of, and so a field of the protocol is
accepted where its value asks for nothing, or is a hint. Knows nothing of how requests are answered.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

_MOST_FIELDS = 100
"""Of one object; each that is refused takes memory."""
Unused = Annotated[JsonValue, Field(description="Accepted, and not used.")]
Empty = Annotated[list[Any], Field(max_length=0)]
Off = Annotated[float, Field(ge=0, le=0)]
One = Annotated[int, Field(ge=1, le=1)]


def _check_characters(data: Any) -> None:
    if isinstance(data, str):
        try:
            data.encode()
        except UnicodeEncodeError:
            raise ValueError("text holds whole characters, but there is half of one") from None
    elif isinstance(data, dict):
        _check_characters([*data, *data.values()])
    elif isinstance(data, list):
        for each in data:
            _check_characters(each)


class Given(BaseModel):
    """Something that a client sends."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _sound(cls, data: Any) -> Any:
        """JSON can spell half of a character, which nothing behind can take."""
        if isinstance(data, dict) and len(data) > _MOST_FIELDS:
            raise ValueError(f"an object has {_MOST_FIELDS} fields at most, but this one has more")
        try:
            _check_characters(data)
        except RecursionError:
            raise ValueError("values are nested, but not as deep as these") from None
        return data


class TextFormat(Given):
    """The format that every answer has."""

    type: Literal["text"]


class ProtocolFields(Given):
    """Fields of OpenAI's protocol, and of servers like it, with the values that ask for nothing."""

    n: One | None = None
    presence_penalty: Off | None = None
    frequency_penalty: Off | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=0)] | None = None
    min_p: Off | None = None
    repetition_penalty: Annotated[float, Field(ge=1, le=1)] | None = None
    metadata: Unused = None
    prompt_cache_key: Unused = None
    prompt_cache_retention: Unused = None
    safety_identifier: Unused = None
    service_tier: Unused = None
    store: Unused = None
    user: Unused = None


class ChatFields(Given):
    """As `ProtocolFields`, of chats alone."""

    logprobs: Literal[False] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=0)] | None = None
    tools: Empty | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: Unused = None
    functions: Empty | None = None
    response_format: TextFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(fail_fast=True)] | None = None
    reasoning_effort: Unused = None
    verbosity: Unused = None


class MessageFields(Given):
    """What answers have beside their text when a client sends them back: nothing."""

    name: Unused = None
    annotations: Empty | None = None
    audio: None = None
    function_call: None = None
    refusal: None = None
    tool_calls: Empty | None = None
