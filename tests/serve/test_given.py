"""What clients may send: what says nothing is accepted, what cannot be done is refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from extensible_embedding.serve.schema import ChatRequest, CompletionRequest

SAID = {"role": "user", "content": "Who?"}
NOTHING_SAID = [
    {"logprobs": False, "top_logprobs": None},
    {"tools": [], "tool_choice": "none", "parallel_tool_calls": True},
    {"tools": None, "tool_choice": None},
    {"response_format": {"type": "text"}},
    {"top_k": -1, "min_p": 0, "repetition_penalty": 1},
    {"logit_bias": {}, "n": 1, "presence_penalty": 0, "frequency_penalty": 0.0},
    {"store": True, "metadata": {"a": "b"}, "service_tier": "auto", "user": "me"},
    {"reasoning_effort": "low", "verbosity": "low", "modalities": ["text"]},
    {"safety_identifier": "me", "prompt_cache_key": "a", "prompt_cache_retention": "24h"},
    {"stream": None, "stop": [], "max_tokens": None, "seed": None},
    {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}},
]
CANNOT_BE_DONE = [
    {"logprobs": True},
    {"top_logprobs": 2},
    {"tools": [{"type": "function", "function": {"name": "f"}}]},
    {"tool_choice": "required"},
    {"response_format": {"type": "json_object"}},
    {"top_k": 40},
    {"logit_bias": {"5": -100}},
    {"presence_penalty": 0.5},
    {"modalities": ["text", "audio"]},
    {"n": 2},
    {"temprature": 0.5},
]


def chat(*messages: Any, **fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({"model": "m", "messages": list(messages), **fields})


@pytest.mark.parametrize("fields", NOTHING_SAID, ids=lambda fields: next(iter(fields)))
def test_what_says_nothing_is_accepted(fields: dict[str, Any]) -> None:
    assert chat(SAID, **fields).messages[0].text == "Who?"


@pytest.mark.parametrize("fields", CANNOT_BE_DONE, ids=lambda fields: next(iter(fields)))
def test_what_cannot_be_done_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(fields))):
        chat(SAID, **fields)


def test_an_answer_can_be_sent_back_as_clients_dump_it() -> None:
    nothing = dict.fromkeys(("refusal", "audio", "function_call", "tool_calls"))
    answer = {"role": "assistant", "content": "Emma.", "annotations": [], **nothing}
    assert chat(SAID, answer, SAID).messages[1].text == "Emma."
    part = {"type": "text", "text": "Why?", "cache_control": {"type": "ephemeral"}}
    assert chat({"role": "user", "content": [part, part]}).messages[0].text == "Why?Why?"
    with pytest.raises(ValidationError, match="tool_calls"):
        chat(SAID, {**answer, "tool_calls": [{"id": "1"}]})


def test_a_prompt_may_be_a_list_of_one() -> None:
    def asked(prompt: Any, **fields: Any) -> CompletionRequest:
        return CompletionRequest.model_validate({"model": "m", "prompt": prompt, **fields})

    assert asked(["Once"], echo=False, best_of=1, logprobs=None, suffix=None).text == "Once"
    assert asked("Once").text == "Once"
    for prompt in (["a", "b"], [], [1, 2]):
        with pytest.raises(ValidationError):
            asked(prompt)


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "user", "content": [0] * 10_000}]},
        {"messages": [SAID], "stop": [0] * 10_000},
        {"messages": [SAID], **dict.fromkeys(map(str, range(10_000)), 0)},
        {"messages": [{**SAID, **dict.fromkeys(map(str, range(10_000)), 0)}]},
        {"messages": [0] * 10_000},
    ],
    ids=["parts", "stops", "fields", "fields of a message", "messages"],
)
def test_a_body_full_of_faults_is_refused_at_the_first(fields: dict[str, Any]) -> None:
    """Each fault that is told takes kilobytes: a body of them would take all memory."""
    with pytest.raises(ValidationError) as caught:
        ChatRequest.model_validate({"model": "m", **fields})
    assert caught.value.error_count() < 5
