"""The embedded reader on the shipped book."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest
import torch
from torch import Tensor

import extensible_embedding
from extensible_embedding import Answer, Context, ExtensibleEmbedder, Reader
from extensible_embedding.prompt import language_head, text_prompt

pytestmark = pytest.mark.e2e

ASSETS = Path(str(files(extensible_embedding))) / "assets"
RELEASED = ASSETS / "smollm2-135m-instruct"
CONTEXT_TOKENS, TARGET_TOKENS = 512, 128


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader.from_pretrained()


@pytest.fixture(scope="module")
def book(reader: Reader) -> Tensor:
    text = (ASSETS / "northanger-abbey.txt").read_text(encoding="utf-8")
    return reader.encode(text[:60_000])


@pytest.fixture(scope="module")
def embedder(reader: Reader) -> ExtensibleEmbedder:
    embedder = ExtensibleEmbedder.from_reader(reader, projection_start=0.0)
    torch.manual_seed(0)
    torch.nn.init.normal_(embedder.projection.weight, std=0.002)
    return embedder.eval()


@pytest.fixture(scope="module")
def context(embedder: ExtensibleEmbedder, book: Tensor) -> Context:
    return embedder.compress(book[:3000], k=4, title="Northanger Abbey")


def test_raw_context_gives_the_plain_readers_logits(
    reader: Reader, embedder: ExtensibleEmbedder, book: Tensor
) -> None:
    context = embedder.compress(book[:300], k=4)
    ids = torch.cat([language_head(reader), book[:300]])
    with torch.inference_mode():
        embeds = text_prompt(reader, [context]).embeds(reader, 1)
        ours = reader.model(inputs_embeds=embeds[None]).logits
        plain = reader.model(input_ids=ids[None]).logits
    assert torch.equal(ours, plain)


def test_thousands_of_tokens_are_compressed(context: Context, reader: Reader) -> None:
    assert context.num_rows == 750
    assert context.rows.isfinite().all()
    assert context.rows.dtype is reader.dtype


def test_the_reader_answers(reader: Reader, context: Context) -> None:
    rows = reader.answer(context, "Who is the heroine?", k=4, expand=0, max_new_tokens=8)
    assert isinstance(rows, Answer)
    assert rows.k == 4
    assert rows.prompt_rows < 850
    answer = reader.answer(context, "Who is the heroine?", k=4, max_new_tokens=8)
    assert isinstance(answer, Answer)
    assert answer.prompt_rows > rows.prompt_rows + 500
    pieces = reader.answer(context, "Who is the heroine?", k=4, max_new_tokens=8, stream=True)
    assert "".join(pieces).strip() == answer.text  # type: ignore[arg-type]


def test_int8_weights_keep_the_rows(
    reader: Reader, embedder: ExtensibleEmbedder, book: Tensor, tmp_path: Path
) -> None:
    exact = embedder.compress(book[:512], k=4).rows.float()
    sizes = {}
    for int8 in (False, True):
        folder = tmp_path / f"int8-{int8}"
        embedder.save_pretrained(folder, int8=int8)
        sizes[int8] = (folder / "model.safetensors").stat().st_size
        loaded = ExtensibleEmbedder.from_pretrained(folder, reader)
        rows = loaded.compress(book[:512], k=4).rows.float()
        if not int8:
            assert torch.equal(rows, exact)
    assert (rows - exact).norm() / exact.norm() < 0.05
    assert sizes[True] < 0.3 * sizes[False]


def test_the_released_embedders_rows_help(reader: Reader, book: Tensor) -> None:
    """On text it did not train on, rows at k=4 beat no context on most targets and on the mean."""
    embedder = ExtensibleEmbedder.from_pretrained(RELEASED, reader)
    with_rows, without = [], []
    for start in range(2000, 2000 + 6 * 1500, 1500):
        middle = start + CONTEXT_TOKENS
        targets = book[middle : middle + TARGET_TOKENS]
        rows = text_prompt(reader, [embedder.compress(book[start:middle], k=4)])
        with_rows.append(reader.nll(rows.embeds(reader, 4), targets).mean())
        nothing = reader.embed_tokens(language_head(reader))
        without.append(reader.nll(nothing, targets).mean())
    gains = torch.stack(without) - torch.stack(with_rows)
    assert gains.mean() > 0
    assert (gains > 0).sum() >= 5
