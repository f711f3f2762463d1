"""A context that grows in a window that does not."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer, make_embedder, tiny_llama
from tokenizers import models
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from extensible_embedding import Answer, ContextStream, ExtensibleEmbedder, Reader
from extensible_embedding.errors import InputError, WindowError
from extensible_embedding.prompt import question_prompt

SMALL = {"k": 2, "window": 180, "reserve_rows": 110}


@pytest.fixture
def token_ids() -> Tensor:
    return torch.randint(0, 256, (900,), generator=torch.Generator().manual_seed(0))


def state(stream: ContextStream) -> tuple[int, int, int, int, Tensor]:
    embeds = stream.prompt().embeds(stream.embedder.reader, 1)
    counts = (stream.k, stream.num_tokens, stream.num_dropped_tokens, stream.num_recent)
    return *counts, embeds


@pytest.mark.parametrize("piece", [1, 7, 16, 50, 300])
def test_pieces_change_nothing(
    tiny_embedder: ExtensibleEmbedder, token_ids: Tensor, piece: int
) -> None:
    whole, pieces = (ContextStream(tiny_embedder, **SMALL) for _ in range(2))
    whole.append(token_ids)
    for part in token_ids.split(piece):
        pieces.append(part)
    *counts, embeds = state(whole)
    *other_counts, other_embeds = state(pieces)
    assert counts == other_counts
    torch.testing.assert_close(embeds, other_embeds, rtol=1e-5, atol=1e-6)


def test_memory_is_bounded_and_no_token_is_lost_silently(
    tiny_embedder: ExtensibleEmbedder, token_ids: Tensor
) -> None:
    stream = ContextStream(tiny_embedder, **SMALL)
    ks = []
    assert stream.recent_tokens == 70 // 4
    for part in token_ids.split(23):
        stream.append(part)
        assert stream.num_recent >= min(stream.num_tokens, stream.recent_tokens)
        ks.append(stream.k)
        assert stream.num_rows + stream.num_recent <= stream.room == 70
        kept = stream.num_tokens - stream.num_dropped_tokens
        compressed = kept - stream.num_recent
        assert compressed % 16 == 0
        assert stream.num_rows == compressed // 16 * -(-16 // stream.k)
    assert ks == sorted(ks)
    assert ks[-1] == 16
    assert stream.num_tokens == 900


def test_recent_text_is_raw_and_older_text_is_rows(
    tiny_embedder: ExtensibleEmbedder, token_ids: Tensor
) -> None:
    stream = ContextStream(tiny_embedder, **SMALL)
    stream.append(token_ids[:100])
    reader, recent = tiny_embedder.reader, stream.num_recent
    embeds = stream.prompt().embeds(reader, 1)
    old = tiny_embedder.compress(token_ids[: 100 - recent], k=stream.k)
    assert stream.k == 2
    torch.testing.assert_close(embeds[1 : 1 + stream.num_rows], old.rows, rtol=1e-5, atol=1e-6)
    assert torch.equal(
        embeds[1 + stream.num_rows :], reader.embed_tokens(token_ids[100 - recent : 100])
    )


def test_rows_coarsen_to_what_compressing_at_that_k_gives(
    tiny_embedder: ExtensibleEmbedder, token_ids: Tensor
) -> None:
    stream = ContextStream(tiny_embedder, **SMALL)
    stream.append(token_ids[:200])
    assert stream.k > 2
    assert stream.num_dropped_tokens == 0
    old = tiny_embedder.compress(token_ids[: 200 - stream.num_recent], k=stream.k)
    embeds = stream.prompt().embeds(tiny_embedder.reader, 1)
    torch.testing.assert_close(embeds[1 : 1 + stream.num_rows], old.rows, rtol=1e-5, atol=1e-6)


def test_at_the_largest_k_the_oldest_rows_go(
    tiny_embedder: ExtensibleEmbedder, token_ids: Tensor
) -> None:
    stream = ContextStream(tiny_embedder, max_k=4, **SMALL)
    stream.append(token_ids)
    assert stream.k == 4
    first = stream.num_dropped_tokens
    assert first > 0
    kept = tiny_embedder.compress(token_ids[first : 900 - stream.num_recent], k=4)
    embeds = stream.prompt().embeds(tiny_embedder.reader, 1)
    torch.testing.assert_close(embeds[1 : 1 + stream.num_rows], kept.rows, rtol=1e-5, atol=1e-6)


def test_answers_at_any_time(tiny_embedder: ExtensibleEmbedder, token_ids: Tensor) -> None:
    stream = ContextStream(tiny_embedder, **SMALL)
    for part in token_ids.split(150):
        stream.append(part)
        answer = stream.answer("Who?", max_new_tokens=3)
        assert isinstance(answer, Answer)
        assert answer.prompt_rows + 3 <= answer.window
        pieces = stream.answer("Who?", max_new_tokens=3, stream=True)
        assert "".join(pieces).strip() == answer.text
        kept = stream.num_tokens - stream.num_dropped_tokens
        assert answer.num_context_tokens == pieces.num_context_tokens == kept
        assert answer.k == pieces.k == stream.k


def test_short_text_is_raw_and_reads_as_the_plain_prompt(
    tiny_embedder: ExtensibleEmbedder,
) -> None:
    stream = ContextStream(tiny_embedder, window=400, reserve_rows=200)
    stream.append("All of this ")
    stream.append("is short.")
    reader = tiny_embedder.reader
    context = tiny_embedder.compress("All of this is short.", k=4)
    answer = stream.answer("Who?", max_new_tokens=8)
    plain = reader.answer(context, "Who?", k=1, max_new_tokens=8)
    assert isinstance(answer, Answer)
    assert isinstance(plain, Answer)
    assert stream.num_rows == 0
    assert (answer.text, answer.prompt_rows) == (plain.text, plain.prompt_rows)
    assert question_prompt(reader, [context], "Who?").num_rows(1) == answer.prompt_rows


def test_nothing_appended_is_no_change(tiny_embedder: ExtensibleEmbedder) -> None:
    stream = ContextStream(tiny_embedder, window=400, reserve_rows=200)
    stream.append("")
    assert stream.num_tokens == 0
    with pytest.raises(InputError, match="it is empty; append text"):
        stream.answer("Who?")


def test_mean_down_sampling_grows_too(tiny_reader: Reader, token_ids: Tensor) -> None:
    stream = ContextStream(make_embedder(tiny_reader, down_sampling="mean"), **SMALL)
    stream.append(token_ids)
    assert stream.num_rows + stream.num_recent <= stream.room


def test_what_cannot_grow_is_refused(
    tiny_reader: Reader, tiny_embedder: ExtensibleEmbedder
) -> None:
    for bad in (17, 20):
        with pytest.raises(InputError, match=f"chunk of 16 tokens .* k is {bad}; give a smaller k"):
            ContextStream(tiny_embedder, k=bad, window=400, reserve_rows=100)
    with pytest.raises(InputError, match="its max_k of 4, but k is 8; give a smaller"):
        ContextStream(tiny_embedder, k=8, max_k=4, window=400, reserve_rows=100)
    with pytest.raises(InputError, match="k is 0"):
        ContextStream(tiny_embedder, max_k=0, window=400, reserve_rows=100)
    with pytest.raises(WindowError, match="window of 512 rows, but window is 513; give a smaller"):
        ContextStream(tiny_embedder, window=513, reserve_rows=100)
    with pytest.raises(InputError, match="recent_tokens is 0; give 1"):
        ContextStream(tiny_embedder, window=400, reserve_rows=100, recent_tokens=0)
    with pytest.raises(WindowError, match=r"270 recent .*\(reserve_rows\), but only 300 are left"):
        ContextStream(tiny_embedder, window=400, reserve_rows=100, recent_tokens=270)
    with pytest.raises((InputError, WindowError), match="reserve_rows"):
        ContextStream(tiny_embedder, window=0, reserve_rows=100)
    with pytest.raises(InputError, match="nests"):
        ContextStream(make_embedder(tiny_reader, down_sampling="random"))
    with pytest.raises(InputError, match="k of 2 or more"):
        ContextStream(tiny_embedder, k=1, window=400, reserve_rows=100)
    with pytest.raises(WindowError, match="room for two chunks"):
        ContextStream(tiny_embedder, window=120, reserve_rows=100)


def test_a_long_question_does_not_fit(tiny_embedder: ExtensibleEmbedder, token_ids: Tensor) -> None:
    stream = ContextStream(tiny_embedder, k=2, window=500, reserve_rows=60)
    stream.append(token_ids)
    with pytest.raises(WindowError, match=r"must fit .*larger reserve_rows than 60") as caught:
        stream.answer("Who? " * 40)
    assert "take 3" in str(caught.value)


@pytest.mark.parametrize("recent_tokens", [1, 5, 16, 30, 38])
def test_recent_text_keeps_its_share(
    tiny_embedder: ExtensibleEmbedder, token_ids: Tensor, recent_tokens: int
) -> None:
    stream = ContextStream(tiny_embedder, recent_tokens=recent_tokens, **SMALL)
    for number, token in enumerate(token_ids, 1):
        stream.append(token[None])
        assert stream.num_recent >= min(number, recent_tokens)
        assert stream.num_rows + stream.num_recent <= stream.room
        assert torch.equal(stream._recent, token_ids[number - stream.num_recent : number])
    assert stream.num_rows > 0


def test_memory_stays_flat(tiny_embedder: ExtensibleEmbedder, token_ids: Tensor) -> None:
    stream, sizes = ContextStream(tiny_embedder, max_k=4, **SMALL), []
    for _ in range(8):
        stream.append(token_ids)
        tensors = [*stream._rows, *stream._ahead, stream._recent, stream._waiting]
        sizes.append(sum(tensor.untyped_storage().nbytes() for tensor in tensors))
    assert max(sizes) < 200 * 32 * 4


class Breaking:
    """Stands for `compress`, and fails every other time."""

    def __init__(self, embedder: ExtensibleEmbedder) -> None:
        self.compress, self.calls, self.chunks = embedder.compress, 0, 0

    def __call__(self, ids: Tensor, **settings: Any) -> Any:
        self.calls += 1
        if self.calls % 2:
            raise KeyboardInterrupt
        self.chunks += len(ids) // 16
        return self.compress(ids, **settings)


def test_nothing_is_lost_when_compressing_is_cut_off(
    tiny_embedder: ExtensibleEmbedder, token_ids: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = (ContextStream(tiny_embedder, **SMALL) for _ in range(2))
    whole.append(token_ids)
    breaking = Breaking(tiny_embedder)
    monkeypatch.setattr(tiny_embedder, "compress", breaking)
    for part in token_ids.split(150):
        with pytest.raises(KeyboardInterrupt):
            cut.append(part)
    while len(cut._waiting):
        with contextlib.suppress(KeyboardInterrupt):
            cut.flush()
    *counts, embeds = state(whole)
    *other_counts, other_embeds = state(cut)
    assert counts == other_counts
    torch.testing.assert_close(embeds, other_embeds, rtol=1e-5, atol=1e-6)
    assert breaking.chunks / (breaking.calls // 2) > 1.2  # several chunks at once


@pytest.mark.parametrize("ids", [[0.5, 1.9], [[1, 2]], torch.tensor([1.0]), [0, 260]])
def test_ids_are_whole_numbers_in_the_vocabulary(
    tiny_embedder: ExtensibleEmbedder, ids: Any
) -> None:
    stream = ContextStream(tiny_embedder, **SMALL)
    with pytest.raises(InputError, match="whole numbers|between 0 and 259"):
        stream.append(ids)
    assert stream.num_tokens == 0


@pytest.fixture(scope="module")
def word_embedder() -> ExtensibleEmbedder:
    """Its tokenizer knows words with the blank before them: pieces of words are other tokens."""
    words = ["in", " in", " a", " truth", " truths", " single", ".", ".\n\n", " A", "gle", " sin"]
    tokenizer = byte_tokenizer()
    pieces = {token: i for token, i in tokenizer.get_vocab().items() if i < 256}
    backend = tokenizer.backend_tokenizer
    merges: list[tuple[str, str]] = []
    for word in words:
        symbols = word.replace(" ", "\u0120").replace("\n", "\u010a")
        for end in range(2, len(symbols) + 1):
            if symbols[:end] not in pieces:
                pieces[symbols[:end]] = len(pieces) + 4  # special tokens keep theirs
                merges.append((symbols[: end - 1], symbols[end - 1]))
    backend.model = models.BPE(vocab=pieces, merges=merges)
    config = LlamaConfig(**{**tiny_llama().config.to_dict(), "vocab_size": 400})
    torch.manual_seed(0)
    return make_embedder(Reader(LlamaForCausalLM(config), tokenizer, name="words"))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 400])
def test_pieces_of_text_change_nothing(word_embedder: ExtensibleEmbedder, size: int) -> None:
    text = ("A single truth.\n\nIn a   truth  in\n  a single truths. " * 12).strip()
    whole, pieces = (ContextStream(word_embedder, **SMALL) for _ in range(2))
    whole.append(text)
    for start in range(0, len(text), size):
        pieces.append(text[start : start + size])
    *counts, embeds = state(whole)
    *other_counts, other_embeds = state(pieces)
    assert counts == other_counts
    torch.testing.assert_close(embeds, other_embeds, rtol=1e-5, atol=1e-6)
    assert counts[1] == len(word_embedder.reader.encode(text)) < len(text) / 2


def test_an_unfinished_word_is_held_until_it_is_asked_for(
    word_embedder: ExtensibleEmbedder,
) -> None:
    stream = ContextStream(word_embedder, window=400, reserve_rows=200)
    for piece in ("A single tr", "uths"):
        stream.append(piece)
        assert stream.num_tokens == len(word_embedder.reader.encode("A single"))
    stream.prompt()
    assert word_embedder.reader.decode(stream._recent) == "A single truths"
    stream.append("a ")
    stream.append([1, 2])
    assert stream._recent[-2:].tolist() == [1, 2]
    assert (
        stream.num_tokens
        == stream.num_recent
        == len(word_embedder.reader.encode("A single truths")) + 4
    )
    stream.append("x" * 300)  # no word is as long: it is not held
    assert stream._held == ""
    assert stream.num_tokens == len(word_embedder.reader.encode("A single truths")) + 304
    with pytest.raises(InputError, match="half of one"):
        stream.append("\ud835")
    assert stream._held == ""
