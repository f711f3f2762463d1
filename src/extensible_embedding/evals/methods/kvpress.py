"""Cache compression: the raw context is read whole, then most of its cache entries are dropped.

The presses are those of the package kvpress, and so is the hook that applies them; a hook of ours
hands it the arguments under the names that it knows, because transformers renamed them. Unlike
rows, a press needs the whole context in the reader's own window first: at most that much of it,
the most recent part, is read. The cache is then as large as what other methods may show the reader.

Axes: n context token, t target token, S row of the prompt, H hidden size of the reader.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ...reader import Reader
from .base import CannotRunError, Method, Passage, Reading, room_for_context

HOW_TO_INSTALL = "install it beside this package with `make kvpress`"


class KvPress(Method):
    """A press of kvpress, at the cache size that other methods have."""

    press: str
    """Name of the press in kvpress."""

    def read(self, passage: Passage, room: int) -> Reading:
        """Head and context in a compressed cache, then the tail.

        The press decides over all entries, those of the head among them.
        """
        room_for_context(passage, room)
        press = _press_of(self.press, self.reader)
        ids, tail = torch.cat([passage.head, passage.context]), passage.tail
        if not len(tail):  # something must be read after the cache, to predict what follows
            ids, tail = ids[:-1], ids[-1:]
        kept = min(room - len(tail), len(ids))
        return PressedReading(
            reader=self.reader,
            head=ids[: len(passage.head)],
            context=ids[len(passage.head) :],
            tail=tail,
            kept=kept,
            make_press=lambda ratio: press(compression_ratio=ratio, **self.settings(kept)),
        )

    def settings(self, kept: int) -> Mapping[str, int]:
        """What else the press is made with, for a cache of `kept` entries."""
        return {}


class SnapKv(KvPress):
    """Entries that the last tokens of the context attend to (arXiv 2404.14469)."""

    name = "kvpress-snapkv"
    press = "SnapKVPress"

    def settings(self, kept: int) -> Mapping[str, int]:
        """Its window of 64 last tokens is always kept: in a small cache it takes half."""
        return {"window_size": min(64, max(1, kept // 2))}


class StreamingLlm(KvPress):
    """Entries of the first four tokens and of the most recent ones (arXiv 2309.17453).

    They keep the positions that they were read at; the paper numbers them anew.
    """

    name = "kvpress-streaming-llm"
    press = "StreamingLLMPress"

    def settings(self, kept: int) -> Mapping[str, int]:
        """Four sinks, fewer in a cache that does not hold them."""
        return {"n_sink": min(4, kept - 1)}


class Knorm(KvPress):
    """Entries whose keys are short (arXiv 2406.11430)."""

    name = "kvpress-knorm"
    press = "KnormPress"


@dataclass(frozen=True, kw_only=True)
class PressedReading:
    """A passage whose head and context are a compressed cache."""

    reader: Reader
    head: Tensor
    context: Tensor
    tail: Tensor
    """At least one token."""
    kept: int
    """Cache entries that stay."""
    make_press: Callable[[float], Any]
    """The press for a share of entries to remove."""
    k: int = 1

    @property
    def num_rows(self) -> int:
        """Entries of the cache, and the tail."""
        return self.kept + len(self.tail)

    @torch.inference_mode()
    def nll(self, target_ids: Tensor) -> Tensor:
        """Loss in nats of each target token, (t,)."""
        cache, start = self._prefilled(len(target_ids))
        targets = target_ids.to(self.reader.device)
        embeds = self._embeds(torch.cat([self.tail, target_ids[:-1].cpu()]))
        logits = self.reader.model(
            inputs_embeds=embeds[None],
            position_ids=self._positions(start, len(embeds)),
            logits_to_keep=len(targets),
            **_cache_argument(self.reader.model, cache),
        ).logits[0]  # (t, V)
        return nn.functional.cross_entropy(logits.float(), targets, reduction="none")

    @torch.inference_mode()
    def generate(self, max_new_tokens: int) -> str:
        """Greedy continuation."""
        cache, start = self._prefilled(max_new_tokens)
        tail = self._embeds(self.tail)
        # transformers takes the whole prompt and cuts off as many rows as the cache has entries.
        cached = tail.new_zeros(cache.get_seq_length(), tail.shape[-1])
        inputs = torch.cat([cached, tail])[None]
        positions = self._positions(start, len(tail))
        output = self.reader.model.generate(
            inputs_embeds=inputs,
            attention_mask=torch.ones(inputs.shape[:2], dtype=torch.long, device=inputs.device),
            position_ids=torch.cat([positions.new_zeros(1, len(cached)), positions], dim=1),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=self.reader.tokenizer.eos_token_id,
            **_cache_argument(self.reader.model, cache),
        )
        return self.reader.decode(output[0])

    def _prefilled(self, new_tokens: int) -> tuple[DynamicCache, int]:
        """The compressed cache, and the position of what follows.

        It holds as much of the context as the reader's window does beside tail and new tokens.
        """
        fitting = self.reader.window - len(self.head) - len(self.tail) - new_tokens
        recent = self.context[max(0, len(self.context) - max(fitting, 0)) :]
        ids = torch.cat([self.head, recent])
        cache = DynamicCache(config=self.reader.model.config)
        if self.kept:
            with pressed(self.reader, self.make_press(_ratio(len(ids), self.kept))):
                self.reader.model.get_decoder()(
                    inputs_embeds=self._embeds(ids)[None],
                    use_cache=True,
                    **_cache_argument(self.reader.model.get_decoder(), cache),
                )
        return cache, len(ids)

    def _embeds(self, token_ids: Tensor) -> Tensor:
        return self.reader.embed_tokens(token_ids).to(self.reader.device, self.reader.dtype)

    def _positions(self, start: int, count: int) -> Tensor:
        return torch.arange(start, start + count, device=self.reader.device)[None]


def _ratio(size: int, kept: int) -> float:
    """The share to remove for which kvpress keeps `kept` of `size`: it rounds down."""
    return max(0.0, 1 - (kept + 0.5) / size) if kept < size else 0.0


@contextmanager
def pressed(reader: Reader, press: Any) -> Iterator[None]:
    """The reader with a press at work on its attention layers; undone on leaving.

    `press(model)` does the same with versions of transformers that kvpress knows.
    """

    def hook(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        """The press's own, with the names that it expects."""
        cache = kwargs["cache" if "cache" in kwargs else "past_key_values"]
        length = kwargs["hidden_states"].shape[1]
        known = {"past_key_values": cache, "cache_position": torch.arange(length)}
        return press.forward_hook(module, args, {**kwargs, **known}, output)

    press.post_init_from_model(reader.model)
    with ExitStack() as hooks:
        for layer in reader.model.get_decoder().layers:
            handle = layer.self_attn.register_forward_hook(hook, with_kwargs=True)
            hooks.callback(handle.remove)
        yield


def _cache_argument(model: nn.Module, cache: DynamicCache) -> dict[str, DynamicCache]:
    """The cache under the name that this version of transformers gives it."""
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    return {name: cache}


def _press_of(name: str, reader: Reader) -> Callable[..., Any]:
    """The press of a name.

    Raises:
        CannotRunError: kvpress is not there, or does not work with this reader.
    """
    try:
        with own_attention_functions():
            import kvpress
    except Exception as error:  # its imports from transformers fail in more ways than one
        raise CannotRunError(
            f"kvpress cannot be imported ({type(error).__name__}: {error}); {HOW_TO_INSTALL}"
        ) from error
    model = reader.model
    layers = DynamicCache(config=model.config).layers
    if not isinstance(model, kvpress.SUPPORTED_MODELS) or not hasattr(
        model.get_decoder(), "layers"
    ):
        raise CannotRunError(f"kvpress does not support {type(model).__name__}")
    if any(type(layer) is not DynamicLayer for layer in layers):
        raise CannotRunError(
            f"kvpress compresses full attention, and {reader.name} has other kinds"
        )
    return getattr(kvpress, name)  # type: ignore[no-any-return]


@contextmanager
def own_attention_functions() -> Iterator[None]:
    """Undoes what an import does to transformers' attention functions.

    Importing kvpress wraps all of them, for presses that drop other entries in each head. The
    presses here do not need it, and other methods must be measured as they are.
    """
    before = dict(ALL_ATTENTION_FUNCTIONS.items())
    try:
        yield
    finally:
        for name, function in before.items():
            if ALL_ATTENTION_FUNCTIONS[name] is not function:
                del ALL_ATTENTION_FUNCTIONS[name]  # what was there is often a default below
                if ALL_ATTENTION_FUNCTIONS.get(name) is not function:
                    ALL_ATTENTION_FUNCTIONS[name] = function
