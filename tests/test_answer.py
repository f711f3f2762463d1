"""Answers whole, as they come, and in batches are the same text."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from extensible_embedding import Answer, AnswerStream, Context, ExtensibleEmbedder, Reader
from extensible_embedding.errors import InputError, WindowError
from extensible_embedding.prompt import question_prompt, text_prompt

KEEP_GOING = {"eos_token_id": None}


@pytest.fixture
def context(tiny_embedder: ExtensibleEmbedder, text: str) -> Context:
    return tiny_embedder.compress(text[:200], k=4)


def whole(reader: Reader, context: Context, **settings: Any) -> Answer:
    answer = reader.answer(context, "Who?", **settings)
    assert isinstance(answer, Answer)
    return answer


def streamed(reader: Reader, context: Context, **settings: Any) -> AnswerStream:
    answer = reader.answer(context, "Who?", stream=True, **settings)
    assert isinstance(answer, AnswerStream)
    return answer


def test_an_answer_says_what_it_was_read_from(tiny_reader: Reader, context: Context) -> None:
    answer = whole(tiny_reader, context, k=4, expand=0, max_new_tokens=4)
    prompt = question_prompt(tiny_reader, [context], "Who?")
    assert answer.k == 4
    assert answer.num_context_tokens == 200
    assert answer.prompt_rows == prompt.num_rows(4)
    assert answer.window == 512
    assert str(answer) == answer.text


def test_an_answer_is_greedy_over_the_prompts_embeddings(
    tiny_reader: Reader, context: Context
) -> None:
    prompt = question_prompt(tiny_reader, [context], "Who?")
    embeds, ids = prompt.embeds(tiny_reader, 4), []
    for _ in range(6):
        with torch.inference_mode():
            logits = tiny_reader.model(inputs_embeds=embeds[None]).logits[0, -1]
        ids.append(int(logits.argmax()))
        embeds = torch.cat([embeds, tiny_reader.embed_tokens(torch.tensor(ids[-1:]))])
    answer = whole(tiny_reader, context, k=4, expand=0, max_new_tokens=6, **KEEP_GOING)
    assert answer.text == tiny_reader.decode(ids).strip()


@pytest.mark.parametrize("k", [1, 4, 16, "auto"])
def test_a_stream_is_the_whole_answer(tiny_reader: Reader, context: Context, k: int | str) -> None:
    stream = streamed(tiny_reader, context, k=k, max_new_tokens=24)
    answer = whole(tiny_reader, context, k=k, max_new_tokens=24)
    assert stream.ttft_s is None
    assert (stream.k, stream.prompt_rows) == (answer.k, answer.prompt_rows)
    assert "".join(stream).strip() == answer.text
    assert stream.ttft_s is not None
    assert stream.ttft_s > 0


def test_leaving_the_loop_early_stops_the_thread(tiny_reader: Reader, context: Context) -> None:
    before = threading.active_count()
    steps: list[int] = []

    def count(ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        steps.append(1)
        return torch.zeros(len(ids), dtype=torch.bool)

    pieces = iter(
        streamed(tiny_reader, context, max_new_tokens=250, stopping_criteria=[count], **KEEP_GOING)
    )
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    assert 0 < len(steps) < 250


def test_an_error_while_generating_is_raised_in_the_loop(
    tiny_reader: Reader, context: Context
) -> None:
    def fail(ids: Tensor, scores: Tensor) -> Tensor:
        raise RuntimeError("broken on purpose")

    stream = streamed(tiny_reader, context, max_new_tokens=8, logits_processor=[fail])
    with pytest.raises(RuntimeError, match="broken on purpose"):
        list(stream)


def test_a_batch_is_the_single_answers(
    tiny_reader: Reader, tiny_embedder: ExtensibleEmbedder, text: str
) -> None:
    contexts = [tiny_embedder.compress(text[:n], k=2) for n in (40, 200, 90)]
    questions = ["Who?", "Why is that so?", "When was it?"]
    batch = tiny_reader.answers(contexts, questions, k=2, max_new_tokens=12)
    single = [
        tiny_reader.answer(context, question, k=2, max_new_tokens=12)
        for context, question in zip(contexts, questions, strict=True)
    ]
    assert batch == single


def test_one_context_serves_a_batch_of_questions(tiny_reader: Reader, context: Context) -> None:
    batch = tiny_reader.answers(context, ["Who?", "Why?"], max_new_tokens=6)  # type: ignore[arg-type]
    assert batch[0] == whole(tiny_reader, context, max_new_tokens=6)
    assert len(batch) == 2


def test_a_batch_of_generations(tiny_reader: Reader, context: Context) -> None:
    texts = ["and then", "so it was that"]
    batch = tiny_reader.generate(context, texts, max_new_tokens=8, do_sample=False)
    assert batch == [
        tiny_reader.generate(context, text, max_new_tokens=8, do_sample=False) for text in texts
    ]


def test_generation_after_raw_context_is_the_plain_models(
    tiny_reader: Reader, context: Context
) -> None:
    ids = torch.cat([torch.tensor([256]), context.token_ids, tiny_reader.encode("so")])
    plain = tiny_reader.model.generate(
        ids[None],
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=10,
        do_sample=False,
    )[0, len(ids) :]
    ours = tiny_reader.generate(context, "so", k=1, max_new_tokens=10, do_sample=False)
    assert ours == tiny_reader.decode(plain)
    assert text_prompt(tiny_reader, [context], "so").num_rows(1) == len(ids)


def test_generate_arguments_pass_through(tiny_reader: Reader, context: Context) -> None:
    greedy = whole(tiny_reader, context, max_new_tokens=12, **KEEP_GOING)
    first = tiny_reader.encode(greedy.text)[:1].tolist()
    banned = whole(tiny_reader, context, max_new_tokens=12, suppress_tokens=first, **KEEP_GOING)
    assert banned.text != greedy.text
    torch.manual_seed(0)
    drawn = whole(
        tiny_reader, context, max_new_tokens=12, do_sample=True, temperature=2.0, **KEEP_GOING
    )
    assert drawn.text != greedy.text
    torch.manual_seed(0)
    again = whole(
        tiny_reader, context, max_new_tokens=12, do_sample=True, temperature=2.0, **KEEP_GOING
    )
    assert again.text == drawn.text
    detailed = whole(
        tiny_reader, context, max_new_tokens=12, return_dict_in_generate=True, **KEEP_GOING
    )
    assert detailed.text == greedy.text


@pytest.mark.parametrize("stream", [False, True])
def test_own_stopping_criteria_are_kept(
    tiny_reader: Reader, context: Context, stream: bool
) -> None:
    def after_three(ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        return torch.full((len(ids),), ids.shape[1] >= 3, dtype=torch.bool)

    settings = {"max_new_tokens": 12, "stopping_criteria": [after_three], **KEEP_GOING}
    expected = whole(tiny_reader, context, max_new_tokens=3, **KEEP_GOING).text
    if stream:
        assert "".join(streamed(tiny_reader, context, **settings)).strip() == expected
    else:
        assert whole(tiny_reader, context, **settings).text == expected


def test_new_tokens_count_against_the_window(tiny_reader: Reader, context: Context) -> None:
    rows = question_prompt(tiny_reader, [context], "Who?").num_rows(1)
    assert whole(tiny_reader, context, max_new_tokens=2).k == 1
    plan = tiny_reader.plan(
        question_prompt(tiny_reader, [context], "Who?"), max_new_tokens=512 - rows
    )
    assert plan.k == 1
    plan = tiny_reader.plan(
        question_prompt(tiny_reader, [context], "Who?"), max_new_tokens=513 - rows
    )
    assert plan.k == 4
    with pytest.raises(WindowError, match="would fit"):
        whole(tiny_reader, context, k=1, max_new_tokens=513 - rows)


def test_bad_calls_are_refused(tiny_reader: Reader, context: Context) -> None:
    with pytest.raises(InputError, match="max_new_tokens is 0; ask for 1"):
        tiny_reader.answer(context, "Who?", max_new_tokens=0)
    with pytest.raises(
        WindowError, match="window of 512, but max_new_tokens is 1040; ask for fewer"
    ):
        tiny_reader.answer(context, "Who?", max_new_tokens=1040)
    with pytest.raises(WindowError, match=r"question alone take 5\d\d and no k would fit; ask a"):
        tiny_reader.answer(context, "Who? " * 100, max_new_tokens=2)
    with pytest.raises(InputError, match="at least 1 context, but there is none; compress a text"):
        tiny_reader.answer([], "Who?")
    for call in (tiny_reader.answer, tiny_reader.generate):
        with pytest.raises(InputError, match="num_return_sequences is 3; ask again for each"):
            call(context, "Who?", do_sample=True, num_return_sequences=3, max_new_tokens=2)
    with pytest.raises(InputError, match="num_return_sequences is 2"):
        tiny_reader.answers([context], ["Who?"], num_return_sequences=2)
    with pytest.raises(InputError, match="2 contexts and 1 texts"):
        tiny_reader.answers([context, context], ["Who?"])
    with pytest.raises(InputError, match="whole number"):
        tiny_reader.answer(context, "Who?", k="most")


def test_an_answer_says_why_it_ended(tiny_reader: Reader, context: Context) -> None:
    long = whole(tiny_reader, context, max_new_tokens=9, **KEEP_GOING)
    assert (long.num_new_tokens, long.finish_reason) == (9, "length")
    embeds = question_prompt(tiny_reader, [context], "Who?").embeds(tiny_reader, long.k)[None]
    ids = tiny_reader.model.generate(
        inputs_embeds=embeds,
        attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
        max_new_tokens=9,
        do_sample=False,
        **KEEP_GOING,
    )[0].tolist()
    third = ids[2]
    first = ids.index(third)
    for end in (third, [third, 257]):
        short = whole(tiny_reader, context, max_new_tokens=9, eos_token_id=end)
        assert (short.num_new_tokens, short.finish_reason) == (first + 1, "stop")
    last = whole(tiny_reader, context, max_new_tokens=first + 1, eos_token_id=third)
    assert (last.num_new_tokens, last.finish_reason) == (first + 1, "stop")

    def after_three(ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        return torch.full((len(ids),), ids.shape[1] >= 3, dtype=torch.bool)

    cut = whole(
        tiny_reader, context, max_new_tokens=9, stopping_criteria=[after_three], **KEEP_GOING
    )
    assert (cut.num_new_tokens, cut.finish_reason) == (3, "stop")


@pytest.mark.parametrize("settings", [KEEP_GOING, {"eos_token_id": list(range(0, 256, 9))}])
def test_a_stream_says_so_after_its_end(
    tiny_reader: Reader, context: Context, settings: dict[str, Any]
) -> None:
    stream = streamed(tiny_reader, context, max_new_tokens=30, **settings)
    answer = whole(tiny_reader, context, max_new_tokens=30, **settings)
    assert (stream.num_new_tokens, stream.finish_reason) == (None, None)
    list(stream)
    assert (stream.num_new_tokens, stream.finish_reason) == (
        answer.num_new_tokens,
        answer.finish_reason,
    )
    assert stream.num_context_tokens == answer.num_context_tokens == 200


def test_a_batch_says_of_each_why_it_ended(
    tiny_reader: Reader, tiny_embedder: ExtensibleEmbedder, text: str
) -> None:
    contexts = [tiny_embedder.compress(text[:n], k=2) for n in (40, 200, 90)]
    settings = {"max_new_tokens": 12, "eos_token_id": list(range(0, 256, 9))}
    batch = tiny_reader.answers(contexts, ["Who?"] * 3, k=2, **settings)
    assert batch == [tiny_reader.answer(one, "Who?", k=2, **settings) for one in contexts]
    assert {answer.num_new_tokens for answer in batch} != {12}


@pytest.mark.filterwarnings("ignore:Passing .* with .inputs_embeds. and without .input_ids.")
@pytest.mark.parametrize("settings", [{"repetition_penalty": 50.0}, {"no_repeat_ngram_size": 1}])
def test_repetition_can_be_discouraged(
    tiny_reader: Reader, context: Context, settings: dict[str, Any]
) -> None:
    free = whole(tiny_reader, context, max_new_tokens=60, **KEEP_GOING)
    held = whole(tiny_reader, context, max_new_tokens=60, **settings, **KEEP_GOING)
    assert held.text != free.text


def test_a_first_token_makes_logits_of_the_last_row_and_copies_no_head(
    tiny_reader: Reader, context: Context
) -> None:
    """Strides of a slice of a longer sequence would have torch copy the whole head on a CPU."""
    seen: list[tuple[torch.Size, tuple[int, ...]]] = []
    head = tiny_reader.model.get_output_embeddings()
    hook = head.register_forward_pre_hook(
        lambda module, inputs: seen.append((inputs[0].shape, inputs[0].stride()))
    )
    whole(tiny_reader, context, k=4, max_new_tokens=2, **KEEP_GOING)
    hook.remove()
    assert seen == [((1, 1, 32), (32, 32, 1))] * 2


def test_beams_are_searched(tiny_reader: Reader, context: Context) -> None:
    """Every beam has logits of its own last row."""
    settings = {"k": 4, "expand": 0, "max_new_tokens": 6, "num_beams": 3, **KEEP_GOING}
    ours = whole(tiny_reader, context, **settings)
    embeds = question_prompt(tiny_reader, [context], "Who?").embeds(tiny_reader, 4)[None]
    ids = tiny_reader.model.generate(
        inputs_embeds=embeds, do_sample=False, max_new_tokens=6, num_beams=3, pad_token_id=258,
        attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long), **KEEP_GOING,
    )  # fmt: skip
    assert ours.text == tiny_reader.decode(ids[0]).strip()
