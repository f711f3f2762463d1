"""A request -> its prompt: what is raw, what is rows, and that it fits."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from extensible_embedding import Context, ExtensibleEmbedder, Reader
from extensible_embedding.errors import WindowError
from extensible_embedding.expand import expanded_prompt
from extensible_embedding.prompt import question_prompt
from extensible_embedding.serve.chat import Planner, Ready, split_long
from extensible_embedding.serve.schema import ChatRequest, CompletionRequest
from extensible_embedding.serve.settings import ServeSettings

LONG = "".join(f"{number}. The heron waits by the mill. " for number in range(40))


@pytest.fixture
def planner(tiny_reader: Reader, embedder: ExtensibleEmbedder) -> Planner:
    settings = ServeSettings(max_new_tokens=8, expand=0)
    return Planner(tiny_reader, embedder.config, embedder.fingerprint, settings)


@pytest.fixture
def context(embedder: ExtensibleEmbedder, text: str) -> Context:
    return embedder.compress(text, k=4, title="book")


def chat(*messages: tuple[str, str], **fields: Any) -> ChatRequest:
    said = [{"role": role, "content": content} for role, content in messages]
    return ChatRequest.model_validate({"model": "m", "messages": said, **fields})


def planned(
    planner: Planner, embedder: ExtensibleEmbedder, request: ChatRequest, *contexts: Context
) -> Ready:
    draft = planner.chat(request, contexts)
    made = [embedder.compress(each.token_ids, k=each.k) for each in draft.missing]
    return planner.finish(draft, made)


def rows_of(reader: Reader, ready: Ready) -> torch.Tensor:
    parts = ready.request.parts
    return torch.cat([part if part.ndim == 2 else reader.embed_tokens(part) for part in parts])


def raw_of(reader: Reader, ready: Ready) -> str:
    """What is read raw, with [] for rows."""
    return "".join(
        "[]" if part.ndim == 2 else str(reader.tokenizer.decode(part.tolist()))
        for part in ready.request.parts
    )


@pytest.mark.parametrize("k", ["auto", 4, 16])
def test_a_question_on_contexts_is_that_of_the_library(
    planner: Planner, embedder: ExtensibleEmbedder, tiny_reader: Reader, context: Context, k: Any
) -> None:
    other = dataclasses.replace(context, title="other")
    request = chat(("user", "Who?"), ("assistant", "Emma."), ("user", "Why?"), extensible={"k": k})
    ready = planned(planner, embedder, request, context, other)
    expected = question_prompt(tiny_reader, [context, other], "Why?", [("Who?", "Emma.")])
    plan = tiny_reader.plan(expected, k, 8)
    assert ready.plan.ks == plan.ks
    assert torch.equal(rows_of(tiny_reader, ready), expected.embeds(tiny_reader, plan.ks))
    assert ready.request.num_shared == len(ready.request.parts) - 1
    assert torch.equal(ready.request.parts[-1], expected.parts[-1])


@pytest.mark.parametrize("expand", ["auto", 200])
def test_a_text_that_was_pasted_twice_has_its_spans_once(
    planner: Planner, embedder: ExtensibleEmbedder, tiny_reader: Reader, expand: Any
) -> None:
    """Also in the second turn, when its rows are kept already."""
    text = LONG * 2
    said = (("user", text), ("assistant", "Yes."), ("user", text), ("assistant", "Yes."))
    for _ in range(2):
        request = chat(*said, ("user", "Where does it wait?"), extensible={"expand": expand})
        ready = planned(planner, embedder, request)
        prompt = ready.plan.prompt
        assert prompt.num_rows(ready.plan.ks) <= tiny_reader.window - 8
        places = [(id(span.context), span.start) for span in prompt.spans]
        assert places
        assert len(set(places)) == len(places)


def test_spans_are_those_of_the_library(
    planner: Planner, embedder: ExtensibleEmbedder, tiny_reader: Reader, context: Context
) -> None:
    how = {"k": 16, "expand": 64}
    ready = planned(planner, embedder, chat(("user", "A wife?"), extensible=how), context)
    room = tiny_reader.window - 8
    expected = expanded_prompt(tiny_reader, [context], "A wife?", k=16, expand=64, room=room)
    assert expected.spans
    assert torch.equal(rows_of(tiny_reader, ready), expected.embeds(tiny_reader, 16))
    assert ready.request.num_shared == 2  # head and rows: the next question has other spans
    usage = ready.usage(tiny_reader.window, 0)
    assert usage.extensible.span_tokens == sum(map(len, expected.spans))


def test_what_fits_is_the_plain_chat(
    planner: Planner, embedder: ExtensibleEmbedder, tiny_reader: Reader
) -> None:
    messages = [("system", "Be brief."), ("user", "Who?"), ("assistant", "Emma."), ("user", "Why?")]
    ready = planned(planner, embedder, chat(*messages))
    said = [{"role": role, "content": content} for role, content in messages]
    expected = tiny_reader.tokenizer.apply_chat_template(
        said, tokenize=False, add_generation_prompt=True
    )
    assert raw_of(tiny_reader, ready) == expected
    usage = ready.usage(512, 3)
    assert usage.prompt_tokens == sum(map(len, ready.request.parts))
    assert usage.total_tokens == usage.prompt_tokens + 3
    assert (usage.extensible.k, usage.extensible.compressed_messages) == (1, 0)


def test_the_longest_message_becomes_rows_but_for_its_ends(
    planner: Planner, embedder: ExtensibleEmbedder, tiny_reader: Reader
) -> None:
    request = chat(
        ("system", "Be brief."),
        ("user", f"Read this:\n\n{LONG}\n\nWho waits?"),
    )
    ready = planned(planner, embedder, request)
    raw = raw_of(tiny_reader, ready)
    assert raw.startswith("<s>system\nBe brief.</s>\n<s>user\nRead this:\n\n[]")
    assert raw.endswith("[]Who waits?</s>\n<s>assistant\n")
    usage = ready.usage(tiny_reader.window, 0)
    assert usage.extensible.compressed_messages == 1
    assert usage.extensible.rows + 8 <= tiny_reader.window
    plain = f"<s>system\nBe brief.</s>\n<s>user\nRead this:\n\n{LONG}\n\nWho waits?"
    assert usage.prompt_tokens >= len(plain) - 12


def test_as_few_messages_as_rows_as_fit(
    planner: Planner, embedder: ExtensibleEmbedder, tiny_reader: Reader
) -> None:
    middle = LONG[:200]
    request = chat(("user", LONG), ("assistant", middle), ("user", "Who?"))
    raw = raw_of(tiny_reader, planned(planner, embedder, request))
    assert middle in raw
    assert raw.count("[]") == 1
    both = chat(("user", LONG), ("assistant", LONG), ("user", LONG), ("user", "Who?"))
    ready = planned(planner, embedder, both)
    assert ready.compressed > 1
    assert raw_of(tiny_reader, ready).endswith("<s>user\nWho?</s>\n<s>assistant\n")


def test_contexts_come_before_a_long_message(
    planner: Planner, embedder: ExtensibleEmbedder, tiny_reader: Reader, context: Context
) -> None:
    request = chat(("user", f"{LONG}\n\nWho?"), extensible={"k": 16})
    ready = planned(planner, embedder, request, context)
    first, second = ready.plan.prompt.contexts
    assert first is context
    assert torch.equal(second.token_ids, tiny_reader.encode(f"{LONG}\n\n"))


def test_rows_of_a_long_message_are_made_once(
    planner: Planner, embedder: ExtensibleEmbedder
) -> None:
    turns = [("user", f"{LONG}\n\nWho waits?")]
    first = planner.chat(chat(*turns), [])
    assert len(first.missing) == 1
    planner.finish(first, [embedder.compress(each.token_ids, k=4) for each in first.missing])
    turns += [("assistant", "The heron."), ("user", "Where?")]
    again = planner.chat(chat(*turns), [])
    assert again.missing == ()
    assert again.compressed == 1


def test_the_rows_that_are_kept_are_limited(
    tiny_reader: Reader, embedder: ExtensibleEmbedder
) -> None:
    settings = ServeSettings(cache_bytes=1, expand=0)
    planner = Planner(tiny_reader, embedder.config, embedder.fingerprint, settings)
    for _ in range(2):
        draft = planner.chat(chat(("user", LONG), max_tokens=8), [])
        assert len(draft.missing) == 1
        planner.finish(draft, [embedder.compress(draft.missing[0].token_ids, k=4)])


@pytest.mark.parametrize(("asked", "made"), [("auto", 4), (8, 4), (6, 6), (3, 3)])
def test_rows_are_made_so_that_they_can_be_read_at_any_k(
    planner: Planner, embedder: ExtensibleEmbedder, asked: Any, made: int
) -> None:
    request = chat(("user", LONG[:1000]), extensible={"k": asked})
    assert [each.k for each in planner.chat(request, []).missing] == [made]
    ready = planned(planner, embedder, request)
    assert asked in ("auto", ready.plan.k)


def test_a_long_text_goes_on(
    planner: Planner, embedder: ExtensibleEmbedder, tiny_reader: Reader
) -> None:
    request = CompletionRequest(model="m", prompt=LONG)
    draft = planner.completion(request, [])
    made = [embedder.compress(each.token_ids, k=each.k) for each in draft.missing]
    raw = raw_of(tiny_reader, planner.finish(draft, made))
    assert raw.startswith("<s>[]")
    assert LONG.endswith(raw.removeprefix("<s>[]"))


def test_what_cannot_fit_is_told(planner: Planner) -> None:
    with pytest.raises(WindowError, match="window"):
        planner.chat(chat(("user", "Who?"), max_tokens=600), [])
    with pytest.raises(WindowError):
        planner.chat(chat(("user", LONG * 50)), [])
    with pytest.raises(WindowError, match="k=4"):
        planner.chat(chat(("user", LONG * 2), extensible={"k": 4}), [])


@pytest.mark.parametrize("most", [1, 7, 20, 100, 10_000])
@pytest.mark.parametrize(
    "text", ["", "a", LONG, f"Do:\n\n{LONG}\n\nWho?\n", "\n\n\n\n", f"{LONG}\n\n", "x" * 300]
)
def test_a_split_text_is_whole_again(text: str, most: int) -> None:
    before, middle, after = split_long(text, most)
    assert before + middle + after == text
    assert len(after) <= most
    assert len(before) <= most


def test_questions_stay_raw() -> None:
    assert split_long(f"Do this:\n\n{LONG}\n\nWho?\n", 100) == (
        "Do this:\n\n",
        f"{LONG}\n\n",
        "Who?\n",
    )
    before, _, after = split_long(f"{LONG}Who?", 100)
    assert before == ""
    assert after.endswith(" Who?")


def turns(count: int, text: str) -> list[tuple[str, str]]:
    return [("user" if n % 2 == 0 else "assistant", f"{n}. {text}") for n in range(count)]


@pytest.mark.parametrize(("count", "length"), [(3, 400), (5, 200), (5, 120)])
def test_a_chat_that_outgrew_the_window_goes_on(
    planner: Planner, embedder: ExtensibleEmbedder, count: int, length: int
) -> None:
    """Though no message is long, and all of them are more than the window."""
    ready = planned(planner, embedder, chat(*turns(count, LONG[:length]), max_tokens=8))
    assert ready.compressed >= 1
    assert ready.request.num_rows + 8 <= planner.reader.window


def test_a_chat_of_many_messages_is_planned_in_few_tries(
    planner: Planner, tiny_reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each try encodes all of it: with as many tries as messages it would take hours."""
    tries: list[int] = []
    plan = tiny_reader.plan
    monkeypatch.setattr(tiny_reader, "plan", lambda *args: tries.append(1) or plan(*args))
    with pytest.raises(WindowError):
        planner.chat(chat(*turns(41, LONG[:200])), [])
    assert len(tries) < 10


def test_one_message_less_as_rows_would_not_fit(
    planner: Planner, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = chat(*turns(3, LONG[:400]), extensible={"k": 4})
    count = planner.chat(request, []).compressed
    assert count > 1
    longest = planner._longest
    monkeypatch.setattr(planner, "_longest", lambda *args: longest(*args)[: count - 1])
    with pytest.raises(WindowError):
        planner.chat(request, [])
