"""The official client against a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator

import openai
import pytest
from openai import OpenAI

from extensible_embedding import ContextStore, ExtensibleEmbedder, Reader
from extensible_embedding.serve.completing import Piece
from extensible_embedding.serve.routes.answers import _event, _text_chunk
from extensible_embedding.serve.service import Service

from .conftest import Make, SimpleEngine, client_of, serving

QUESTION = {"role": "user", "content": "Who is it?"}


@pytest.fixture
def client(service: Service) -> Iterator[OpenAI]:
    with serving(service) as url, client_of(url) as client:
        yield client


def test_models_are_listed(client: OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == "extensible"
    assert client.models.retrieve("extensible") == model
    assert (model.k, model.chunk_tokens) == (4, 64)
    with pytest.raises(openai.NotFoundError, match="extensible"):
        client.models.retrieve("other")


def test_a_model_may_be_named_like_those_of_a_hub(make: Make) -> None:
    with serving(make(model="maker/reader")) as url, client_of(url) as client:
        assert client.models.retrieve("maker/reader").id == "maker/reader"


def test_an_answer_is_that_of_the_reader(
    client: OpenAI,
    store: ContextStore,
    embedder: ExtensibleEmbedder,
    tiny_reader: Reader,
    text: str,
) -> None:
    context = store.add("book", text, embedder).context(8)
    expected = tiny_reader.answer(context, "Who is it?", k=8, max_new_tokens=8)
    extra = {"extensible": {"contexts": ["book"], "k": 8}}
    answer = client.chat.completions.create(
        model="extensible", messages=[QUESTION], max_tokens=8, extra_body=extra
    )
    assert answer.choices[0].message.content.strip() == expected.text
    assert answer.choices[0].finish_reason == expected.finish_reason
    assert answer.usage.completion_tokens == expected.num_new_tokens
    used = answer.usage.model_dump()["extensible"]
    assert used["k"] == 8
    assert used["rows"] == expected.prompt_rows
    assert used["context_tokens"] == len(text)


def test_a_stream_holds_the_same_text(
    client: OpenAI, store: ContextStore, embedder: ExtensibleEmbedder, text: str
) -> None:
    store.add("book", text, embedder)
    asked = {
        "model": "extensible",
        "messages": [QUESTION],
        "extra_body": {"extensible": {"contexts": ["book"]}},
    }
    whole = client.chat.completions.create(**asked)
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    *pieces, last = chunks
    assert last.usage == whole.usage
    said = "".join(each.choices[0].delta.content or "" for each in pieces)
    assert said == whole.choices[0].message.content
    assert pieces[0].choices[0].delta.role == "assistant"
    assert [each.choices[0].finish_reason for each in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_every_event_says_what_was_read_if_asked(client: OpenAI) -> None:
    asked = {"model": "extensible", "max_tokens": 4, "stream": True}
    options = {"stream_options": {"continuous_usage_stats": True}}
    for chunks in (
        list(client.chat.completions.create(**asked, **options, messages=[QUESTION])),
        list(client.completions.create(**asked, **options, prompt="It is a truth")),
    ):
        used = [each.usage.model_dump() for each in chunks]
        assert {each["extensible"]["rows"] for each in used} == {used[0]["prompt_tokens"]}
        written = [each["completion_tokens"] for each in used]
        assert written == sorted(written)
        assert written[-1] == 4
        assert all(each.choices for each in chunks)  # none is for usage alone
    quiet = client.chat.completions.create(**asked, messages=[QUESTION])
    assert all(each.usage is None for each in quiet)


def test_a_message_longer_than_the_window_is_compressed(client: OpenAI, text: str) -> None:
    long = f"{text}\n\nWho is it?"
    answer = client.chat.completions.create(
        model="extensible", messages=[{"role": "user", "content": long}]
    )
    used = answer.usage.model_dump()["extensible"]
    assert used["compressed_messages"] == 1
    assert used["k"] > 1
    assert used["rows"] + 8 <= used["window"] < answer.usage.prompt_tokens


def test_completions_go_on(client: OpenAI, tiny_reader: Reader, text: str) -> None:
    asked = {"model": "extensible", "prompt": "It is a truth", "max_tokens": 6}
    whole = client.completions.create(**asked)
    stream = list(client.completions.create(**asked, stream=True))
    assert "".join(each.choices[0].text for each in stream) == whole.choices[0].text
    long = client.completions.create(model="extensible", prompt=text * 2, max_tokens=6)
    assert long.usage.model_dump()["extensible"]["compressed_messages"] == 1


def test_events_hold_nothing_that_a_client_takes_for_the_end_of_a_line() -> None:
    head = {"id": "a", "created": 0, "model": "m"}
    sent = _event(_text_chunk(head, Piece(text="a\u2028b\x85c", num_tokens=1)))
    assert len(sent.splitlines()) == 2
    assert json.loads(sent.removeprefix("data: "))["choices"][0]["text"] == "a\u2028b\x85c"


def test_stop_ends_an_answer_before_it(client: OpenAI) -> None:
    asked = {"model": "extensible", "prompt": "It is a truth", "max_tokens": 12}
    whole = client.completions.create(**asked).choices[0].text
    stop = whole[4:6]
    for streamed in (False, True):
        answer = client.completions.create(**asked, stop=[stop], stream=streamed)
        choices = [each.choices[0] for each in (answer if streamed else [answer])]
        assert "".join(each.text for each in choices) == whole[: whole.index(stop)]
        assert choices[-1].finish_reason == "stop"


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"model": "gpt"}, openai.NotFoundError, "GET /v1/models"),
        ({"temperature": -1}, openai.UnprocessableEntityError, "temperature"),
        ({"logprobs": True}, openai.UnprocessableEntityError, "logprobs"),
        ({"max_tokens": 600}, openai.BadRequestError, "window"),
        ({"messages": []}, openai.UnprocessableEntityError, "messages"),
        (
            {"extra_body": {"extensible": {"contexts": ["none"]}}},
            openai.NotFoundError,
            "GET /v1/contexts",
        ),
        (
            {"extra_body": {"extensible": {"context": ["none"]}}},
            openai.UnprocessableEntityError,
            "extensible.context",
        ),
    ],
)
def test_refusals(client: OpenAI, change: dict, kind: type, words: str) -> None:
    asked = {"model": "extensible", "messages": [QUESTION], **change}
    with pytest.raises(kind, match=words) as caught:
        client.chat.completions.create(**asked)
    assert set(caught.value.body) == {"message", "type", "param", "code"}
    assert caught.value.type == "invalid_request_error"


def test_a_broken_engine_is_told(client: OpenAI, engine: SimpleEngine) -> None:
    from extensible_embedding.errors import EngineError

    engine.fails = EngineError("The engine is gone; start it.")
    asked = {"model": "extensible", "messages": [QUESTION]}
    words = "does not answer as it should; the server's log says why"
    with pytest.raises(openai.InternalServerError, match=words) as caught:
        client.chat.completions.create(**asked)
    assert caught.value.status_code == 502
    assert "gone" not in str(caught.value)
    with pytest.raises(openai.APIError, match=words):
        list(client.chat.completions.create(**asked, stream=True))
