"""A conversation is the same after a restart, and what is no longer raw is in its rows."""

from __future__ import annotations

import pytest
import torch
from conftest import make_embedder

from extensible_embedding import ContextStore, ExtensibleEmbedder, Reader
from extensible_embedding.errors import InputError, MismatchError
from extensible_embedding.store.conversation import TITLE, Conversation, KeptConversation, written

TURNS = [
    ("Who waits?", "The heron."),
    ("Where?", "By the mill.\n\nIt is old.\n\n\nQuestion: is it?\nAnswer: yes."),
    ("Why, d\u00e9j\u00e0 vu?", "Nobody knows \u65e5\u672c."),
    ("And then?", "Nothing."),
]


@pytest.fixture
def embedder(tiny_reader: Reader) -> ExtensibleEmbedder:
    return make_embedder(tiny_reader)


@pytest.fixture
def talk(store: ContextStore, embedder: ExtensibleEmbedder) -> KeptConversation:
    made = KeptConversation(store, "talk", embedder)
    for turn in TURNS:
        made.keep(*turn)
    return made


def test_it_goes_on_after_a_restart(talk: KeptConversation) -> None:
    assert talk.turns == TURNS
    again = KeptConversation(ContextStore(talk.store.place.name), "talk", talk.embedder)
    assert again.turns == TURNS
    assert talk.store["talk"].text() == "".join(written(*turn) for turn in TURNS)


@pytest.mark.parametrize("num_raw", range(len(TURNS) + 1))
def test_what_is_not_raw_is_in_the_rows(talk: KeptConversation, num_raw: int) -> None:
    older = "".join(written(*turn) for turn in TURNS[: len(TURNS) - num_raw])
    context = talk.earlier(num_raw)
    if not older:
        assert context is None
        return
    assert context is not None
    assert context.title == TITLE
    ids = talk.reader.encode(older)
    assert torch.equal(context.token_ids[: len(ids)], ids)
    assert context.num_tokens - len(ids) < context.k
    assert context.num_rows == context.rows_at(context.k)
    assert torch.equal(context.rows, talk.store["talk"].context().rows[: context.num_rows])
    assert context.at(8).num_rows == context.rows_at(8)


def test_where_rows_do_not_begin_alike_whole_chunks_are_read(
    store: ContextStore, tiny_reader: Reader
) -> None:
    embedder = make_embedder(tiny_reader, chunk_tokens=32, down_sampling="terminal")
    talk = KeptConversation(store, "talk", embedder)
    for turn in TURNS:
        talk.keep(*turn)
    for num_raw in range(len(TURNS)):
        context = talk.earlier(num_raw)
        assert context is not None
        older = "".join(written(*turn) for turn in TURNS[: len(TURNS) - num_raw])
        assert 0 <= context.num_tokens - len(talk.reader.encode(older)) < 32
        made = embedder.compress(context.token_ids, k=context.k)
        torch.testing.assert_close(context.rows.float(), made.rows, rtol=2**-8, atol=1e-3)


def test_the_oldest_chunks_can_be_left_out(talk: KeptConversation) -> None:
    whole, half = talk.earlier(1), talk.earlier(1, 0.5)
    assert whole is not None
    assert half is not None
    chunks = -(-whole.num_tokens // 16)
    assert -(-half.num_tokens // 16) == chunks // 2
    assert torch.equal(whole.token_ids[-half.num_tokens :], half.token_ids)
    assert torch.equal(whole.rows[-half.num_rows :], half.rows)
    assert half.num_rows == half.rows_at(half.k)
    assert talk.earlier(1, 0.0) is None


def test_recent_turns_are_counted_in_tokens(talk: KeptConversation) -> None:
    sizes = [len(written(*turn).encode()) for turn in TURNS]
    assert talk.num_recent(sizes[-1] - 1) == 0
    assert talk.num_recent(sizes[-1]) == 1
    assert talk.num_recent(sum(sizes[-2:])) == 2
    assert talk.num_recent(10_000) == len(TURNS)


def test_forgetting(talk: KeptConversation) -> None:
    talk.forget()
    assert talk.turns == []
    assert talk.earlier(0) is None
    assert "talk" not in talk.store
    talk.forget()
    talk.keep("Who?", "Me.")
    assert talk.store["talk"].text() == "Question: Who?\nAnswer: Me.\n\n"


def test_what_was_appended_by_other_means_is_read_as_rows(talk: KeptConversation) -> None:
    talk.store.append("talk", "A note.", talk.embedder)
    again = KeptConversation(talk.store, "talk", talk.embedder)
    assert again.turns == []
    assert again.earlier(0) is not None
    again.keep("So?", "So.")
    assert again.turns == []  # the note had no end of its own
    again.keep("And?", "And.")
    assert again.turns == [("And?", "And.")]


def test_a_text_is_no_conversation(store: ContextStore, embedder: ExtensibleEmbedder) -> None:
    store.add("novel", "A text.", embedder)
    with pytest.raises(InputError, match="'novel' is a text; choose another name"):
        KeptConversation(store, "novel", embedder)


def test_another_embedder_is_refused(talk: KeptConversation, tiny_reader: Reader) -> None:
    other = make_embedder(tiny_reader)
    other.projection.weight.data.add_(0.1)
    with pytest.raises(MismatchError, match="store reembed"):
        KeptConversation(talk.store, "talk", other)


def test_without_a_store_it_is_as_long_as_the_program(tiny_reader: Reader) -> None:
    talk = Conversation(tiny_reader)
    talk.keep("Who?", "Me.")
    assert (talk.turns, talk.earlier(0), talk.num_recent(100)) == ([("Who?", "Me.")], None, 1)
    talk.forget()
    assert talk.turns == []
