"""What tests with real libraries share: prompts on the shipped book, and how answers are judged."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

import torch
from torch import Tensor

from extensible_embedding import Reader, released_embedder
from extensible_embedding.prompt import question_prompt
from extensible_embedding.serve.engines.base import Engine, Request, Sampling
from extensible_embedding.serve.engines.embeds import joined_rows

QUESTIONS = ("Who is the heroine?", "Where does she live?", "What does her father do?")


def book() -> str:
    path = files("extensible_embedding") / "assets" / "northanger-abbey.txt"
    return path.read_text(encoding="utf-8")


def mixed_requests(reader: Reader, num_tokens: int = 1024, **sampling: object) -> list[Request]:
    """Questions on a context that is read as rows; all but the question is shared."""
    context = released_embedder(reader).compress(reader.encode(book())[:num_tokens], k=4)
    requests = []
    for question in QUESTIONS:
        prompt = question_prompt(reader, [context], question)
        parts = tuple(prompt.tensors(reader, 4))
        settings = Sampling(**{"max_new_tokens": 24, **sampling})  # type: ignore[arg-type]
        requests.append(Request(parts=parts, num_shared=len(parts) - 1, sampling=settings))
    return requests


@torch.inference_mode()
def reader_logits(reader: Reader, request: Request, new: Sequence[int] = ()) -> Tensor:
    """Of the reader itself, (1 + new, V): after the prompt, and after each new token."""
    embeds = joined_rows(request, reader.embed_tokens)
    if new:
        embeds = torch.cat([embeds, reader.embed_tokens(torch.tensor(list(new)))])
    logits = reader.model(inputs_embeds=embeds[None], use_cache=False).logits
    return logits[0, -1 - len(new) :].float()


def worst_loss(reader: Reader, request: Request, answer: Sequence[int]) -> float:
    """How far the reader's logit of a greedy answer's token is below its best, at most.

    0 is the reader's own greedy answer. Each token is judged after those that were given, so that
    one near-tie does not count again in all that follows it.
    """
    logits = reader_logits(reader, request, answer[:-1])
    given = logits.gather(1, torch.tensor([list(answer)]).T)[:, 0]
    return float((logits.max(dim=1).values - given).max())


async def answer_of(engine: Engine, request: Request) -> list[int]:
    """All tokens of an answer; it ends as the contract says."""
    pieces = [piece async for piece in engine.generate(request)]
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].finish_reason in ("stop", "length")
    return [token for piece in pieces for token in piece.token_ids]
