from __future__ import annotations

import pytest
import torch
from tiny_prompts import Asked, by_generate, make_reader, request, rows, run, tokens

from extensible_embedding.serve.engines.prefix_cache import PrefixCache, shared_prefixes
from extensible_embedding.serve.engines.transformers_passes import Passes
from extensible_embedding.serve.engines.transformers_schedule import (
    TransformersSchedule,
    TransformersSettings,
)

ROW_BYTES = 4 * 2 * 2 * 8 * 4  # layers, keys and values, heads, head size, float32


@pytest.fixture
def schedule(tiny_reader):
    return TransformersSchedule(tiny_reader, TransformersSettings(prefill_rows=16))


def ask(schedule, asked, seen=None):
    """The tokens of one request, whose logits are written to `seen`."""
    if seen is not None:
        choose = schedule._choose
        schedule._choose = lambda each, logits: (seen.append(logits), choose(each, logits))
    try:
        found = Asked(schedule, asked)
        run(schedule)
    finally:
        schedule.__dict__.pop("_choose", None)
    return found.tokens


def test_a_second_question_pays_only_for_itself_and_has_the_same_logits(tiny_reader, schedule):
    head, book = tokens(3), rows(tiny_reader, 40)
    first = request(head, book, tokens(6, 1), num_shared=2)
    second = request(head.clone(), book.clone(), tokens(9, 2), num_shared=2)
    ask(schedule, first)
    assert schedule.numbers()["prefix_cache_bytes"] == 43 * ROW_BYTES
    with_cache, without = [], []
    before = schedule.numbers()["rows_read"]
    found = ask(schedule, second, with_cache)
    assert schedule.numbers()["rows_read"] - before == 9
    assert schedule.numbers()["prefix_cache_rows_reused"] == 43
    plain = TransformersSchedule(
        tiny_reader, TransformersSettings(prefill_rows=16, prefix_cache_bytes=0)
    )
    assert ask(plain, second, without) == found == by_generate(tiny_reader, second)
    assert plain.numbers()["prefix_cache_bytes"] == plain.numbers()["prefix_cache_misses"] == 0
    torch.testing.assert_close(torch.stack(with_cache), torch.stack(without))
    again = []
    assert ask(schedule, second, again) == found
    assert torch.equal(torch.stack(again), torch.stack(with_cache))


def test_prompts_share_as_many_whole_parts_as_are_alike(tiny_reader, schedule):
    head, one, two, three = tokens(3), *(rows(tiny_reader, 20, seed) for seed in (1, 2, 3))
    asked = [
        (request(head, one, two, tokens(4), num_shared=3), 0),
        (request(head, one, three, tokens(5), num_shared=3), 23),
        (request(head, one, three, tokens(6), num_shared=2), 23),
        (request(head, two, one, tokens(4), num_shared=3), 3),
        (request(head, one[:19], tokens(4), num_shared=2), 3),
        (request(tokens(4), one, tokens(4), num_shared=2), 0),
        (request(head, one, two, tokens(4)), 0),  # it says that it shares nothing
        (request(head, one, three, tokens(7), num_shared=3), 43),
    ]
    for each, reused in asked:
        before = schedule.numbers()
        assert ask(schedule, each) == by_generate(tiny_reader, each)
        after = schedule.numbers()
        assert after["prefix_cache_rows_reused"] - before["prefix_cache_rows_reused"] == reused
        assert after["prefix_cache_hits"] - before["prefix_cache_hits"] == (reused > 0)
        misses = after["prefix_cache_misses"] - before["prefix_cache_misses"]
        assert misses == (reused == 0 < each.num_shared)


def test_a_prompt_that_is_all_shared_reads_its_last_row_again(tiny_reader, schedule):
    asked = request(tokens(3), rows(tiny_reader, 20), num_shared=2)
    expected = by_generate(tiny_reader, asked)
    assert ask(schedule, asked) == expected
    before = schedule.numbers()["rows_read"]
    assert ask(schedule, asked) == expected
    assert schedule.numbers()["rows_read"] - before == 1


def test_what_is_kept_never_changes(tiny_reader, schedule):
    book = rows(tiny_reader, 20)
    ask(schedule, request(tokens(3), book, tokens(2), num_shared=2))
    segments = list(schedule._prefixes._segments.values())
    kept = [tensor for segment in segments for pair in segment.layers for tensor in pair]
    before = [tensor.clone() for tensor in kept]
    for seed in range(4):
        asked = request(tokens(3), book, tokens(9, seed), num_shared=2, max_new_tokens=20)
        assert ask(schedule, asked) == by_generate(tiny_reader, asked)
    assert all(torch.equal(*pair) for pair in zip(kept, before, strict=True))


def test_the_least_recently_used_parts_go_first(tiny_reader):
    head = tokens(3)
    books = [rows(tiny_reader, 20, seed) for seed in range(3)]
    asked = [request(head, book, tokens(4), num_shared=2) for book in books]
    schedule = TransformersSchedule(
        tiny_reader, TransformersSettings(prefix_cache_bytes=45 * ROW_BYTES)
    )
    reused = []
    for number in (0, 1, 0, 2, 0, 1, 2):
        before = schedule.numbers()["prefix_cache_rows_reused"]
        ask(schedule, asked[number])
        reused.append(schedule.numbers()["prefix_cache_rows_reused"] - before)
        assert schedule.numbers()["prefix_cache_bytes"] <= 45 * ROW_BYTES
    assert reused == [0, 3, 23, 3, 23, 3, 3]


def test_of_a_prompt_that_is_too_large_the_first_parts_are_kept(tiny_reader):
    schedule = TransformersSchedule(
        tiny_reader, TransformersSettings(prefix_cache_bytes=30 * ROW_BYTES)
    )
    asked = request(tokens(3), rows(tiny_reader, 20), rows(tiny_reader, 9), tokens(2), num_shared=3)
    for _ in range(2):
        assert ask(schedule, asked) == by_generate(tiny_reader, asked)
    assert schedule.numbers()["prefix_cache_bytes"] == 23 * ROW_BYTES
    assert schedule.numbers()["prefix_cache_rows_reused"] == 23


@pytest.mark.parametrize("name", ["mistral-sliding", "gemma3", "mamba", "lfm2"])
def test_what_forgets_its_beginning_is_not_kept(name):
    reader = make_reader(name)
    schedule = TransformersSchedule(reader, TransformersSettings(prefill_rows=9))
    head, book = tokens(3), rows(reader, 40)
    for seed in range(3):
        asked = request(head, book, tokens(5, seed), num_shared=2)
        assert ask(schedule, asked) == by_generate(reader, asked)
    numbers = schedule.numbers()
    assert numbers["prefix_cache_bytes"] == numbers["prefix_cache_hits"] == 0


def test_keys_tell_contents_types_and_parts_apart():
    numbers = torch.arange(6)
    same = [request(numbers, num_shared=1), request(numbers.clone(), tokens(3), num_shared=1)]
    other = [
        request(numbers.int(), num_shared=1),
        request(numbers.float().view(3, 2), num_shared=1),
        request(numbers.float().view(2, 3), num_shared=1),
        request(numbers.bfloat16().view(3, 2), num_shared=1),
        request(numbers + 1, num_shared=1),
        request(numbers[:3], numbers[3:], num_shared=2),
    ]
    keys = [shared_prefixes(each)[-1].key for each in [*same, *other]]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 1 + len(other)
    assert [each.num_rows for each in shared_prefixes(other[-1])] == [3, 6]
    assert shared_prefixes(request(numbers)) == []


def test_nothing_is_left_after_clearing(tiny_reader):
    passes, kept = Passes(tiny_reader), PrefixCache(1 << 20)
    asked = request(tokens(5), num_shared=1)
    cache = passes.new_cache(5)
    with torch.inference_mode():
        passes.read(tiny_reader.embed_tokens(asked.parts[0]), cache)
        kept.keep(shared_prefixes(asked), cache)
    assert kept.num_bytes == 5 * ROW_BYTES
    kept.clear()
    assert kept.num_bytes == 0
    assert kept.restore(shared_prefixes(asked), passes.new_cache(5), 5) == 0
