"""A text that goes on is read with its end raw, in no more rows than rows alone."""

from __future__ import annotations

import pytest
import torch
from conftest import make_embedder

from extensible_embedding import Context, ExtensibleEmbedder, InputError, Reader
from extensible_embedding.downsampling import DOWN_SAMPLINGS, down_sampling
from extensible_embedding.evals.methods import Passage, make_method
from extensible_embedding.prompt import language_head, text_prompt
from extensible_embedding.raw_end import raw_end, with_raw_end

CHUNK = 16


def ids(num_tokens: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(num_tokens)
    return torch.randint(97, 123, (num_tokens,), generator=generator)


@pytest.mark.parametrize("name", DOWN_SAMPLINGS)
@pytest.mark.parametrize("k", [2, 3, 4, 8])
@pytest.mark.parametrize("num_tokens", [1, 5, 16, 17, 40, 64, 100])
def test_it_takes_as_many_places_and_leaves_nothing_out(name: str, k: int, num_tokens: int) -> None:
    sampler = down_sampling(name)
    room = len(sampler.context_row_ends(num_tokens, CHUNK, k))
    found = raw_end(num_tokens, CHUNK, k, sampler, CHUNK)
    coarse = sampler.context_row_ends(num_tokens, CHUNK, 2 * k).tolist()
    if found is None:
        assert len(coarse) == room or not sampler.nests
        return
    assert found.k == 2 * k
    assert found.num_older in coarse
    assert coarse.index(found.num_older) + 1 + num_tokens - found.start == room
    assert found.start <= found.num_older
    if sampler.begins_alike:
        assert found.num_older - found.start < found.k  # no row is of raw tokens alone
    else:
        assert found.num_older in (num_tokens, found.num_older // CHUNK * CHUNK)


def test_what_has_no_such_end() -> None:
    sampler = down_sampling("strided")
    assert raw_end(100, CHUNK, 1, sampler, 64) is None
    assert raw_end(100, CHUNK, 9, sampler, 64) is None
    assert raw_end(3, CHUNK, 4, sampler, 64) is None
    assert raw_end(0, CHUNK, 4, sampler, 64) is None
    assert raw_end(100, CHUNK, 4, sampler, 7) is None
    assert raw_end(100, CHUNK, 4, sampler, 8) is not None
    assert raw_end(100, CHUNK, 4, down_sampling("random"), 64) is None


@pytest.mark.parametrize("name", ["strided", "mean"])
def test_rows_and_tokens_are_those_of_the_text(tiny_reader: Reader, name: str) -> None:
    embedder = make_embedder(tiny_reader, down_sampling=name)
    others, text = embedder.compress(ids(40), k=2), embedder.compress(ids(90), k=2)
    prompt = text_prompt(tiny_reader, [others, text], " and so on")
    found, ks = with_raw_end(prompt, (2, 4))
    assert ks == (2, 8)
    head, first, older, end, tail = found.parts
    assert first is others
    assert (head, tail) == (prompt.parts[0], prompt.parts[-1])
    assert isinstance(older, Context)
    assert isinstance(end, torch.Tensor)
    assert torch.equal(older.token_ids, ids(90)[: older.num_tokens])
    assert torch.equal(end, ids(90)[90 - len(end) :])
    assert older.num_tokens + len(end) >= 90
    assert found.num_rows(ks) == prompt.num_rows((2, 4))
    made = embedder.compress(ids(90)[: older.num_tokens], k=8)
    torch.testing.assert_close(older.rows, made.rows, rtol=1e-5, atol=1e-6)
    embeds = found.embeds(tiny_reader, ks)
    assert len(embeds) == found.num_rows(ks)


def test_what_cannot_be_read_so_stays_as_it_is(tiny_reader: Reader) -> None:
    for context, k in (
        (make_embedder(tiny_reader, down_sampling="random").compress(ids(90), k=4), 4),
        (make_embedder(tiny_reader).compress(ids(90), k=4), 1),
        (make_embedder(tiny_reader).compress(ids(90), k=16), 16),
    ):
        prompt = text_prompt(tiny_reader, [context])
        assert with_raw_end(prompt, (k,)) == (prompt, (k,))
    empty = text_prompt(tiny_reader, [])
    assert with_raw_end(empty, ()) == (empty, ())


def test_generate_reads_the_end_raw(
    tiny_embedder: ExtensibleEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, seen = tiny_embedder.reader, []
    from extensible_embedding import answer

    def watched(reader: Reader, plans: list, settings: dict) -> list:
        seen.extend(plans)
        return real(reader, plans, settings)

    real = answer.generate
    monkeypatch.setattr(answer, "generate", watched)
    context = tiny_embedder.compress(ids(300), k=2)
    for k in (4, "auto"):
        reader.generate(context, "so", k=k, max_new_tokens=2)
        reader.generate(context, "so", k=k, raw_end=False, max_new_tokens=2)
    ended, alone, raw, _ = seen
    assert (ended.k, alone.k, raw.k) == (8, 4, 1)
    assert ended.prompt_rows <= alone.prompt_rows
    assert [len(plan.prompt.parts) for plan in seen] == [4, 3, 3, 3]


def test_a_k_that_cannot_be_read_is_refused_all_the_same(
    tiny_embedder: ExtensibleEmbedder,
) -> None:
    reader = tiny_embedder.reader
    for made, k in ((2, 3), (4, 2), (4, 6)):
        context = tiny_embedder.compress(ids(100), k=made)
        with pytest.raises(InputError, match=f"made at, {made}, .* but k is {k}"):
            reader.generate(context, "so", k=k, max_new_tokens=2)


def test_the_evaluation_reads_as_generate_does(tiny_embedder: ExtensibleEmbedder) -> None:
    reader, context = tiny_embedder.reader, ids(200)
    passage = Passage(head=language_head(reader), context=context, tail=context[:0], num_next=8)
    method = make_method("extensible-raw-end", tiny_embedder, k=4, all_rows=True)
    found = method.read(passage, 400)
    prompt, ks = with_raw_end(text_prompt(reader, [tiny_embedder.compress(context, k=4)]), (4,))
    expected = prompt.embeds(reader, ks)
    torch.testing.assert_close(found.embeds, expected, rtol=1e-5, atol=1e-6)  # type: ignore[attr-defined]
    assert found.k == 4
