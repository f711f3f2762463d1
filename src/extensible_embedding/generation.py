"""Prompts -> new tokens, by transformers' own `generate` on input embeddings.

In: plans, that is prompts with the scale factors at which they fit. Out: new text of each, and how
it ended. Knows nothing of questions and of how rows were made.

Axes: B prompt, S prompt row, H reader hidden size.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from .errors import InputError

if TYPE_CHECKING:
    from .answer import Plan
    from .reader import Reader

FinishReason = Literal["stop", "length"]
"""An answer ended by itself (end token, stopping criterion), or at `max_new_tokens`."""


@dataclass(frozen=True, kw_only=True)
class NewText:
    """What was generated after one prompt."""

    text: str
    num_tokens: int
    finish_reason: FinishReason


@torch.inference_mode()
def generate(reader: Reader, plans: Sequence[Plan], generation: dict[str, Any]) -> list[NewText]:
    """New text of each plan; prompts are padded on the left."""
    if generation.get("num_return_sequences", 1) != 1:
        raise InputError(
            "One text is generated a prompt, but num_return_sequences is "
            f"{generation['num_return_sequences']}; ask again for each, with do_sample=True."
        )
    embeds = [plan.prompt.embeds(reader, plan.ks) for plan in plans]
    longest = max(len(part) for part in embeds)
    inputs = torch.stack([_pad_left(part, longest) for part in embeds])  # (B, S, H)
    mask = torch.tensor([[0] * (longest - len(part)) + [1] * len(part) for part in embeds])
    output = reader.model.generate(
        inputs_embeds=inputs,
        attention_mask=mask.to(reader.device),
        pad_token_id=_pad_id(reader),
        **last_logits(reader),
        **generation,
    )
    ids = output if isinstance(output, Tensor) else output.sequences
    return [_new_text(reader, row.tolist(), generation) for row in ids]


def last_logits(reader: Reader, count: int = 1) -> dict[str, Tensor]:
    """Makes a model give logits of the last `count` rows alone.

    As places: of a number transformers makes a slice, for which torch copies the head on a CPU.
    """
    if "logits_to_keep" not in inspect.signature(reader.model.forward).parameters:
        return {}
    return {"logits_to_keep": torch.arange(-count, 0, device=reader.device)}


def end_tokens(reader: Reader, generation: dict[str, Any] | None = None) -> set[int | None]:
    """Tokens after which the reader stops: those asked for, or its own."""
    own = reader.model.generation_config.eos_token_id
    ends = (generation or {}).get("eos_token_id", own)
    return set(ends) if isinstance(ends, Sequence) else {ends}


def _new_text(reader: Reader, ids: list[int], generation: dict[str, Any]) -> NewText:
    """Of one row of a batch: what follows its end token, or the criterion's end, is padding."""
    ends = end_tokens(reader, generation)
    end = next((place for place, token in enumerate(ids) if token in ends), None)
    if end is not None:
        ids = ids[: end + 1]
    else:
        while ids and ids[-1] == _pad_id(reader):
            ids = ids[:-1]
    at_limit = end is None and len(ids) >= generation["max_new_tokens"]
    return NewText(
        text=reader.decode(ids),
        num_tokens=len(ids),
        finish_reason="length" if at_limit else "stop",
    )


def _pad_left(rows: Tensor, length: int) -> Tensor:
    return torch.cat([rows.new_zeros((length - len(rows), rows.shape[-1])), rows])


def _pad_id(reader: Reader) -> int:
    tokenizer = reader.tokenizer
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return int(next(token for token in known if token is not None))
