from __future__ import annotations

import asyncio
import itertools
import threading
import time

import pytest
import torch
import transformers
from conftest import VOCAB_SIZE, byte_tokenizer, tiny_llama
from test_architectures import ARCHITECTURES, COMMON, tiny_config
from transformers import AutoModelForCausalLM

from extensible_embedding import Reader
from extensible_embedding.errors import EngineError, InputError
from extensible_embedding.serve.engines.base import Request, Sampling
from extensible_embedding.serve.engines.transformers import TransformersEngine
from extensible_embedding.serve.engines.transformers_schedule import (
    Choice,
    TransformersSchedule,
    TransformersSettings,
)
from extensible_embedding.serve.engines.worker import Job

RECURRENT = {
    "mamba": ("MambaConfig", {"state_size": 4, "time_step_rank": 4}),
    "lfm2": (
        "Lfm2Config",
        {
            "intermediate_size": 64,
            "num_key_value_heads": 2,
            "layer_types": ["conv", "full_attention"] * 2,
        },
    ),
}
PLAIN = {"llama", "mistral", "qwen2", "qwen3", "gemma", "phi3", "gpt2", "gpt-neox"}
PLAIN |= {"opt", "opt-narrow", "olmo2", "smollm3", "granite"}


def make_reader(name):
    torch.manual_seed(0)
    if name in RECURRENT:
        kind, extra = RECURRENT[name]
        config = getattr(transformers, kind)(**{**COMMON, **extra})
    else:
        config = tiny_config(name)
    return Reader(AutoModelForCausalLM.from_config(config), byte_tokenizer(), name=name, window=256)


def tokens(count, seed=0):
    return torch.randint(0, 256, (count,), generator=torch.Generator().manual_seed(seed))


def rows(reader, count, seed=0):
    """Near what the first layer expects, but no token's."""
    embeds = reader.embed_tokens(tokens(count, seed))
    noise = torch.randn(embeds.shape, generator=torch.Generator().manual_seed(seed))
    return embeds + 0.1 * noise * embeds.std()


def request(*parts, num_shared=0, **sampling):
    return Request(
        parts=parts, num_shared=num_shared, sampling=Sampling(**{"max_new_tokens": 8, **sampling})
    )


def prompts(reader):
    """Of different lengths, of which three begin alike."""
    head, book = tokens(5), rows(reader, 30)
    return [
        request(head, book, tokens(7, 1), num_shared=2),
        request(tokens(3, 2), max_new_tokens=12),
        request(head, book, tokens(1, 3), num_shared=2, max_new_tokens=3),
        request(head, rows(reader, 12, 4), tokens(19, 5), num_shared=2),
        request(head, book, rows(reader, 9, 6), tokens(2, 7), num_shared=3, max_new_tokens=10),
    ]


def by_generate(reader, asked):
    """The model's own greedy tokens."""
    parts = [part if part.ndim == 2 else reader.embed_tokens(part) for part in asked.parts]
    embeds = torch.cat(parts)[None]
    with torch.inference_mode():
        found = reader.model.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
            max_new_tokens=asked.sampling.max_new_tokens,
            do_sample=False,
        )
    return found[0].tolist()


class Asked:
    """A request in a schedule, without threads."""

    def __init__(self, schedule, asked):
        self.pieces = []
        self.job = Job(asked, self.pieces.append)
        schedule.submit(self.job)

    @property
    def tokens(self):
        for piece in self.pieces:
            if isinstance(piece, EngineError):
                raise piece
        return [token for piece in self.pieces for token in piece.token_ids]


def run(schedule):
    while schedule.busy:
        schedule.step()


def answers(reader, asked, **settings):
    schedule = TransformersSchedule(reader, TransformersSettings(**settings))
    found = [Asked(schedule, each) for each in asked]
    run(schedule)
    return [each.tokens for each in found]


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


async def answer(engine, asked):
    pieces = [piece async for piece in engine.generate(asked)]
    assert [piece.finish_reason is None for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    return [token for piece in pieces for token in piece.token_ids]


def with_engine(reader, work, **settings):
    async def run_it():
        async with TransformersEngine(reader, TransformersSettings(**settings)) as engine:
            return await asyncio.wait_for(work(engine), 60)

    return asyncio.run(run_it())


def test_the_engine_answers_side_by_side(tiny_reader):
    asked = prompts(tiny_reader)
    expected = [by_generate(tiny_reader, each) for each in asked]

    async def work(engine):
        await engine.check()
        assert await asyncio.gather(*(answer(engine, each) for each in asked)) == expected
        assert await answer(engine, asked[0]) == expected[0]
        numbers = engine.numbers()
        assert numbers["running"] == numbers["waiting"] == 0
        assert numbers["new_tokens"] == sum(map(len, expected)) + len(expected[0])
        assert numbers["prefix_cache_hits"] == 4

    with_engine(tiny_reader, work, prefill_rows=16)


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ([], "at least 1 row"),
        ([torch.tensor([], dtype=torch.long)], "at least 1 row"),
        ([torch.tensor([3, VOCAB_SIZE])], f"reach from 3 to {VOCAB_SIZE}"),
        ([torch.tensor([-1])], "reach from -1"),
        ([torch.zeros(3, 31)], "some have 31"),
        ([torch.full((3, 32), float("nan"))], "32 finite numbers"),
        ([tokens(40)], "fit the engine's 40 rows"),
    ],
)
def test_what_cannot_be_read_is_refused(tiny_reader, parts, match):
    async def work(engine):
        with pytest.raises(EngineError, match=match):
            await answer(engine, request(*parts))
        assert len(await answer(engine, request(tokens(3)))) > 0

    with_engine(tiny_reader, work, max_rows=40)


def test_closing_a_stream_frees_its_place(tiny_reader):
    async def work(engine):
        stream = engine.generate(request(tokens(5), max_new_tokens=400))
        await anext(stream)
        assert engine.numbers()["running"] == 1
        await stream.aclose()
        assert await answer(engine, request(tokens(4))) == by_generate(
            tiny_reader, request(tokens(4))
        )
        assert engine.numbers()["rows_held"] == 0
        assert engine.numbers()["new_tokens"] < 100

    with_engine(tiny_reader, work, max_running=1)


def test_a_cancelled_task_frees_its_place(tiny_reader):
    async def work(engine):
        task = asyncio.create_task(answer(engine, request(tokens(5), max_new_tokens=400)))
        while not engine.numbers()["new_tokens"]:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(await answer(engine, request(tokens(4)))) > 0

    with_engine(tiny_reader, work, max_running=1)


def test_leaving_ends_what_runs_and_what_waits(tiny_reader):
    async def run_it():
        before = threading.active_count()
        async with TransformersEngine(tiny_reader, TransformersSettings(max_running=1)) as engine:
            tasks = [
                asyncio.create_task(answer(engine, request(tokens(5), max_new_tokens=400)))
                for _ in range(3)
            ]
            while not engine.numbers()["new_tokens"]:
                await asyncio.sleep(0.001)
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [str(error) for error in found] == [
            "The engine transformers gave up, because it has been stopped; ask again."
        ] * 3
        with pytest.raises(EngineError, match="because it has been stopped; start it again"):
            await answer(engine, request(tokens(3)))
        deadline = time.monotonic() + 10
        while threading.active_count() > before + 1 and time.monotonic() < deadline:
            await asyncio.sleep(0.01)  # asyncio's own thread, which waited for ours, may stay
        assert "engine transformers" not in [thread.name for thread in threading.enumerate()]

    asyncio.run(run_it())


def test_an_engine_that_was_not_started_says_so(tiny_reader):
    async def run_it():
        engine = TransformersEngine(tiny_reader)
        assert engine.numbers() == {}
        with pytest.raises(EngineError, match="because it has not been started"):
            await engine.check()
        with pytest.raises(EngineError, match="because it has not been started"):
            await answer(engine, request(tokens(3)))
        await engine.__aexit__()

    asyncio.run(run_it())


def test_when_the_thread_fails_everybody_hears_why(tiny_reader, monkeypatch):
    def broken(self):
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(TransformersSchedule, "_begin", broken)

    async def work(engine):
        match = r"its thread failed \(ZeroDivisionError: a fault of ours\)"
        for ask in (answer(engine, request(tokens(3))), engine.check()):
            with pytest.raises(EngineError, match=match):
                await ask

    with_engine(tiny_reader, work)


def test_what_cannot_be_opened_is_raised_where_the_engine_is_started(tiny_reader, monkeypatch):
    def broken(self, *given):
        raise InputError("no such thing")

    monkeypatch.setattr(TransformersSchedule, "__init__", broken)

    async def run_it():
        with pytest.raises(InputError, match="no such thing"):
            async with TransformersEngine(tiny_reader):
                pass

    asyncio.run(run_it())
