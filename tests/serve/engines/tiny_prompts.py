"""Tiny readers, prompts for them, and their own answers to compare with."""

from __future__ import annotations

import torch
import transformers
from conftest import byte_tokenizer
from test_architectures import COMMON, tiny_config
from transformers import AutoModelForCausalLM

from extensible_embedding import Reader
from extensible_embedding.errors import EngineError
from extensible_embedding.serve.engines.base import Request, Sampling
from extensible_embedding.serve.engines.transformers_schedule import (
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
