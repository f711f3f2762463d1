from __future__ import annotations

import itertools

import pytest
import torch
from conftest import byte_tokenizer, tiny_llama
from test_architectures import ARCHITECTURES
from tiny_prompts import (
    PLAIN,
    RECURRENT,
    Asked,
    answers,
    by_generate,
    make_reader,
    prompts,
    request,
    run,
    tokens,
)

from extensible_embedding import Reader
from extensible_embedding.errors import EngineError, InputError
from extensible_embedding.serve.engines.base import Sampling
from extensible_embedding.serve.engines.transformers_schedule import (
    Choice,
    TransformersSchedule,
    TransformersSettings,
)


@pytest.fixture(scope="module", params=[*ARCHITECTURES, *RECURRENT])
def any_reader(request):
    return make_reader(request.param)


def test_every_architecture_answers_as_its_own_generate(any_reader):
    """Whether it can be read in pieces, kept and batched, or not."""
    asked = prompts(any_reader)
    expected = [by_generate(any_reader, each) for each in asked]
    schedule = TransformersSchedule(any_reader, TransformersSettings(prefill_rows=11))
    found = [Asked(schedule, each) for each in asked]
    run(schedule)
    assert [each.tokens for each in found] == expected
    assert (schedule.numbers()["prefix_cache_hits"] > 0) == (any_reader.name in PLAIN)
    assert schedule._passes.batches == (any_reader.name not in {*RECURRENT, "gemma2"})


def test_any_order_of_arrival_gives_the_same(tiny_reader):
    asked = prompts(tiny_reader)
    expected = [by_generate(tiny_reader, each) for each in asked]
    orders = list(itertools.permutations(range(len(asked))))[::11]
    for number, order in enumerate(orders):
        schedule = TransformersSchedule(
            tiny_reader, TransformersSettings(max_running=1 + number % 5, prefill_rows=7 + number)
        )
        found = {}
        for place in order:
            found[place] = Asked(schedule, asked[place])
            for _ in range(number % 4):
                schedule.step()
        run(schedule)
        assert [found[place].tokens for place in range(len(asked))] == expected


@pytest.mark.parametrize("temperature", [0.7, 2.0])
def test_a_seed_gives_the_same_tokens_whoever_is_beside(tiny_reader, temperature):
    sampled = [
        request(tokens(20), temperature=temperature, top_p=0.9, seed=seed, max_new_tokens=20)
        for seed in (1, 2)
    ]
    alone = [answers(tiny_reader, [each])[0] for each in sampled]
    beside = answers(tiny_reader, [prompts(tiny_reader)[0], sampled[1], sampled[0], sampled[1]])
    assert beside[1:] == [alone[1], alone[0], alone[1]]
    assert alone[0] != alone[1]


def test_without_a_seed_tokens_differ(tiny_reader):
    asked = request(tokens(20), temperature=2.0, max_new_tokens=20)
    assert len({tuple(answers(tiny_reader, [asked])[0]) for _ in range(5)}) > 1


def test_a_tiny_temperature_and_a_tiny_top_p_are_greedy(tiny_reader):
    greedy = by_generate(tiny_reader, request(tokens(20)))
    assert answers(tiny_reader, [request(tokens(20), temperature=1e-40)]) == [greedy]
    assert answers(tiny_reader, [request(tokens(20), temperature=1, top_p=1e-6)]) == [greedy]


def test_chosen_tokens_are_distributed_as_the_logits_say():
    logits = torch.tensor([1.0, 0.0, 2.0, -1.0, 1.5])
    sampling = Sampling(temperature=0.8, top_p=0.9, seed=5)
    choice = Choice(sampling, None, torch.device("cpu"))
    counts = torch.bincount(torch.tensor([choice.next_token(logits, []) for _ in range(2000)]))
    weights = (logits / 0.8).exp() * torch.tensor([1, 0, 1, 0, 1])  # those of 0.9 in all
    torch.testing.assert_close(counts / 2000, weights / weights.sum(), rtol=0, atol=0.04)


def test_the_penalty_of_the_generation_configuration_is_respected():
    reader = Reader(tiny_llama(3), byte_tokenizer())
    plain = by_generate(reader, request(tokens(9), max_new_tokens=30))
    reader.model.generation_config.repetition_penalty = 5.0
    asked = request(tokens(9), max_new_tokens=30)
    with pytest.warns(UserWarning, match="only to newly generated tokens"):
        expected = by_generate(reader, asked)
    assert answers(reader, [asked]) == [expected] != [plain]


@pytest.mark.parametrize("ends", [None, "one", "several"])
def test_it_ends_where_the_generation_configuration_says(ends):
    reader = Reader(tiny_llama(3), byte_tokenizer())
    reader.model.generation_config.eos_token_id = None
    asked = request(tokens(9), max_new_tokens=30)
    free = by_generate(reader, asked)
    end = free[10]
    reader.model.generation_config.eos_token_id = {"one": end, "several": [end, 257]}.get(ends)
    schedule = TransformersSchedule(reader, TransformersSettings())
    found = Asked(schedule, asked)
    run(schedule)
    assert found.tokens == (free if ends is None else free[: free.index(end) + 1])
    assert found.pieces[-1].finish_reason == ("length" if ends is None else "stop")
    assert all(piece.finish_reason is None for piece in found.pieces[:-1])


def test_prompts_are_read_in_pieces_between_tokens(tiny_reader):
    schedule = TransformersSchedule(tiny_reader, TransformersSettings(prefill_rows=10))
    short = Asked(schedule, request(tokens(3), max_new_tokens=100))
    schedule.step()
    long = Asked(schedule, request(tokens(95), max_new_tokens=1))
    seen = []
    while not long.pieces:
        before = schedule.numbers()
        schedule.step()
        after = schedule.numbers()
        seen.append(
            (after["rows_read"] - before["rows_read"], after["new_tokens"] - before["new_tokens"])
        )
    assert seen == [(10, 1)] * 9 + [(5, 2)]
    assert len(short.pieces) == 11


def test_short_prompts_share_what_may_be_read_at_once(tiny_reader):
    schedule = TransformersSchedule(tiny_reader, TransformersSettings(prefill_rows=10))
    found = [Asked(schedule, request(tokens(4, seed))) for seed in range(4)]
    schedule.step()
    assert [len(each.pieces) for each in found] == [1, 1, 0, 0]
    assert schedule.numbers()["rows_read"] == 10


def test_no_more_run_than_may_and_none_overtakes(tiny_reader):
    schedule = TransformersSchedule(
        tiny_reader, TransformersSettings(max_running=2, max_rows=60, prefill_rows=1000)
    )
    lengths = [20, 45, 2, 2, 2]  # the second must wait for the first, and the others for it
    found = [Asked(schedule, request(tokens(n, n), max_new_tokens=10)) for n in lengths]
    started = []
    while schedule.busy:
        schedule.step()
        started += [n for n, each in enumerate(found) if each.pieces and n not in started]
        assert schedule.numbers()["running"] <= 2
        assert schedule.numbers()["rows_held"] <= 60
    assert started == [0, 1, 2, 3, 4]
    assert len(found[0].pieces) == 10
    assert schedule.numbers()["waiting"] == 0


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_cancelled_request_frees_its_place_at_the_next_step(tiny_reader, steps):
    schedule = TransformersSchedule(
        tiny_reader, TransformersSettings(max_running=1, prefill_rows=20)
    )
    first = Asked(schedule, request(tokens(30), max_new_tokens=100))
    second = Asked(schedule, request(tokens(3)))
    third = Asked(schedule, request(tokens(3)))
    for _ in range(steps):
        schedule.step()
    first.job.cancelled = second.job.cancelled = True
    before = len(first.pieces)
    schedule.step()
    assert len(first.pieces) == before
    assert len(third.pieces) == 1
    run(schedule)
    assert second.pieces == []
    assert schedule.numbers()["rows_held"] == 0


def test_a_failing_request_is_the_only_one_to_fail(tiny_reader, monkeypatch):
    asked = prompts(tiny_reader)
    schedule = TransformersSchedule(tiny_reader, TransformersSettings(prefill_rows=50))
    read = schedule._passes.read

    def failing(piece, cache):
        if len(piece) == 19:
            raise RuntimeError("no memory")
        return read(piece, cache)

    monkeypatch.setattr(schedule._passes, "read", failing)
    found = [Asked(schedule, each) for each in asked]
    run(schedule)
    with pytest.raises(EngineError, match=r"failed on this request \(RuntimeError: no memory\)"):
        _ = found[3].tokens
    for place in (0, 1, 2, 4):
        assert found[place].tokens == by_generate(tiny_reader, asked[place])


def test_after_a_failed_step_the_next_requests_are_answered(tiny_reader, monkeypatch):
    schedule = TransformersSchedule(tiny_reader, TransformersSettings())
    write = schedule._passes.write
    failures = [RuntimeError("out of memory")]

    def failing(*given):
        if failures:
            raise failures.pop()
        return write(*given)

    monkeypatch.setattr(schedule._passes, "write", failing)
    first = [Asked(schedule, each) for each in prompts(tiny_reader)]
    run(schedule)
    errors = [each.pieces[-1] for each in first]
    assert all(isinstance(error, EngineError) for error in errors)
    assert len({id(error) for error in errors}) == len(errors)
    assert schedule.numbers()["running"] == 0
    assert answers(tiny_reader, prompts(tiny_reader)[:1]) == [
        by_generate(tiny_reader, prompts(tiny_reader)[0])
    ]


def test_logits_that_are_no_numbers_fail_one_request(tiny_reader, monkeypatch):
    schedule = TransformersSchedule(tiny_reader, TransformersSettings())
    write = schedule._passes.write

    def broken(*given):
        logits = write(*given)
        logits[0] = float("nan")
        return logits

    monkeypatch.setattr(schedule._passes, "write", broken)
    sampled = Asked(schedule, request(tokens(5), temperature=1.0))
    greedy = Asked(schedule, request(tokens(9)))
    schedule.step()
    schedule.step()
    assert isinstance(sampled.pieces[-1], EngineError)
    assert len(greedy.tokens) == 2


def test_whoever_watches_the_readers_attention_disturbs_nothing(tiny_reader):
    schedule = TransformersSchedule(tiny_reader, TransformersSettings())
    asked = prompts(tiny_reader)[0]
    expected = by_generate(tiny_reader, asked)
    before = tiny_reader.model.config._attn_implementation
    weights = {name: weight.data_ptr() for name, weight in tiny_reader.model.named_parameters()}
    for twin in (schedule._passes._one, schedule._passes._each):
        assert {name: weight.data_ptr() for name, weight in twin.named_parameters()} == weights
    assert tiny_reader.model.config._attn_implementation == before
    tiny_reader.model.set_attn_implementation("eager")
    try:
        found = Asked(schedule, asked)
        run(schedule)
        assert found.tokens == expected
        assert schedule._passes._one.config._attn_implementation == before
    finally:
        tiny_reader.model.set_attn_implementation(before)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"max_running": 0}, "at least 1 request"),
        ({"prefill_rows": 0}, "reads at least 1 row"),
        ({"max_rows": 0}, "max_rows=0"),
        ({"prefix_cache_bytes": -1}, "no less than 0 bytes"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, match):
    with pytest.raises(InputError, match=match):
        TransformersSettings(**settings)
