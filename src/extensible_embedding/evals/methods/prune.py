"""Pruning: the context's least predictable tokens, read raw in their order."""

from __future__ import annotations

import torch
from torch import Tensor

from ...prompt import language_head
from ...reader import Reader
from .base import Passage, SelectionMethod


class Prune(SelectionMethod):
    """Perplexity-based pruning with the reader itself as the scorer.

    The idea of Selective Context (arXiv 2310.06201) and LLMLingua (arXiv 2310.05736): a token that
    the model expects tells it little, so it is left out. Each token is scored in a block with the
    text of the block before it. No budget controller and no second model: LLMLingua-2 needs one
    that has to be downloaded.

    Args:
        reader: scores and reads.
        block_tokens: tokens that are scored at once.
    """

    name = "llmlingua"
    reads_every_token = True

    def __init__(self, reader: Reader, block_tokens: int = 1024) -> None:
        super().__init__(reader)
        self.block_tokens = min(block_tokens, reader.window - 1)

    def select(self, passage: Passage, room: int) -> Tensor:
        """The `room` tokens with the highest loss."""
        context = passage.context
        if len(context) <= room:
            return context
        kept = torch.topk(self.losses(context), room).indices.sort().values
        return context[kept.to(context.device)]

    def losses(self, token_ids: Tensor) -> Tensor:
        """Loss in nats of every token, (n,)."""
        head = self.reader.embed_tokens(language_head(self.reader))
        blocks = token_ids.split(self.block_tokens)
        return torch.cat([self.reader.nll(head, block).cpu() for block in blocks])
