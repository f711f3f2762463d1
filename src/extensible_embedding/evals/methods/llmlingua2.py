"""LLMLingua-2: a small classifier decides which words are read raw."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor

from ...reader import Reader
from .base import CannotRunError, Passage, SelectionMethod

MODEL = "microsoft/llmlingua-2-bert-base-multilingual-cased-meetingbank"
_ENOUGH = 0.95
"""Share of the room that must be filled before it is left at that."""


class LlmLingua2(SelectionMethod):
    """Words that a classifier of the package llmlingua keeps (arXiv 2403.12968), whatever follows.

    The classifier counts its own tokens, so that the share of words to keep is corrected by what
    came out, up or down. The longest result that fits is read; where none fits, the last one
    without its oldest tokens.

    Args:
        reader: reads; its tokenizer counts.
        model: the classifier, a hub id or a folder.
        num_tries: passes of the classifier at most.
    """

    name = "llmlingua-2"

    def __init__(self, reader: Reader, model: str = MODEL, num_tries: int = 4) -> None:
        super().__init__(reader)
        self.model, self.num_tries = model, num_tries

    def select(self, passage: Passage, room: int) -> Tensor:
        """Token ids of the words kept: at most `room`, often a little less."""
        context = passage.context
        if len(context) <= room or not room:
            return context[:room]
        text, rate = self.reader.decode(context), room / len(context)
        results: list[Tensor] = []
        while len(results) < self.num_tries and not (results and _fills(results[-1], room)):
            results.append(self._kept(text, rate))
            rate = min(1.0, rate * room / max(1, len(results[-1])))
        fitting = [kept for kept in results if len(kept) <= room]
        return max(fitting, key=len) if fitting else results[-1][-room:]

    def _kept(self, text: str, rate: float) -> Tensor:
        """Token ids of what the classifier keeps."""
        compressor = _compressor(self.model, str(self.reader.device))
        if isinstance(compressor, str):
            raise CannotRunError(compressor)
        try:
            kept = compressor.compress_prompt([text], rate=rate)["compressed_prompt"]
        except (IndexError, ValueError) as error:  # a piece of text without a word that it knows
            raise CannotRunError(f"llmlingua fails on a text ({error})") from error
        return self.reader.encode(kept)


def _fills(kept: Tensor, room: int) -> bool:
    return _ENOUGH * room <= len(kept) <= room


@cache
def _compressor(model: str, device: str) -> Any:
    """The `PromptCompressor` of llmlingua, or why there is none: it is not asked for twice."""
    try:
        from llmlingua import PromptCompressor
    except ImportError as error:
        return (
            f"LLMLingua-2 needs the package llmlingua ({error}); run "
            "`pip install 'extensible-embedding[llmlingua]'`"
        )
    try:
        return PromptCompressor(model_name=model, device_map=device, use_llmlingua2=True)
    except Exception as error:  # of the hub, of tiktoken's download or of damaged files
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        return (
            f"LLMLingua-2 needs its model {model} and an encoding of tiktoken, and one of them "
            f"cannot be had here ({reason})"
        )
