"""Passes of a reader: over a piece of one prompt, or over one token of each of several requests.

In: input embeddings or token ids, and the caches of their requests. Out: logits. In a pass over
several requests the weights are read once for all of them, and attention, which has none, runs on
the keys and values of each request alone: nothing is padded, and a request joins or leaves without
a copy. It knows nothing of requests, and of what is done with logits.

Axes: B request, R row, H reader hidden size, V vocabulary, D head size.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ...generation import last_logits
from ...reader import Reader

ATTENTION_OF_EACH = "extensible_each"


class Passes:
    """A reader's passes.

    The model that runs has the reader's weights and a configuration of its own, so that whoever
    watches the reader's attention at the same time disturbs nothing here.

    Attributes:
        splits: a prompt can be read in pieces; recurrent states cannot be trusted with that.
        keeps: keys and values of a prompt's beginning are all that is needed to go on from it;
            a sliding window forgets them and a recurrent state is of its end.
        batches: several requests can share a pass; else each has its own.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader, model = reader, reader.model
        self._last = last_logits(reader)
        self._one = _twin(model)
        self._settings = model.config
        parameters = inspect.signature(model.forward).parameters
        self._cache_argument = "cache" if "cache" in parameters else "past_key_values"
        kinds = {type(layer) for layer in DynamicCache(config=model.config).layers}
        chunked = getattr(model.config.get_text_config(), "attention_chunk_size", None)
        self.keeps = kinds == {DynamicLayer}
        self.splits = kinds <= {DynamicLayer, DynamicSlidingWindowLayer} and not chunked
        self.batches = self.splits and "position_ids" in parameters and _has_plain_attention(model)
        self._each = _twin(model, ATTENTION_OF_EACH) if self.batches else self._one

    def new_cache(self, num_rows: int) -> DynamicCache:
        """An empty cache that may hold so many rows."""
        cache = DynamicCache(config=self._settings)
        for number, layer in enumerate(cache.layers):
            if type(layer) is DynamicLayer:
                cache.layers[number] = _RoomyLayer(num_rows)
        return cache

    def read(self, rows: Tensor, cache: Cache) -> Tensor:
        """Logits (V,) after the last of rows (R, H) that follow what the cache holds."""
        return self._logits(self._one, cache, inputs_embeds=rows[None])[0]

    def write(self, token_ids: Sequence[int], caches: Sequence[Cache]) -> Tensor:
        """Logits (B, V) after one more token of each request."""
        ids = torch.tensor(token_ids, device=self._reader.device)[:, None]  # (B, 1)
        if not self.batches:
            pairs = zip(ids.split(1), caches, strict=True)
            return torch.cat([self._logits(self._one, c, input_ids=token) for token, c in pairs])
        places = [[cache.get_seq_length()] for cache in caches]
        positions = torch.tensor(places, device=self._reader.device)  # (B, 1)
        return self._logits(self._each, _Caches(caches), input_ids=ids, position_ids=positions)

    def _logits(self, model: PreTrainedModel, cache: Cache, **inputs: Tensor) -> Tensor:
        """Logits (B, V) of the last row of each, float32."""
        given: dict[str, Any] = {self._cache_argument: cache, **inputs, **self._last}
        logits: Tensor = model(use_cache=True, **given).logits
        return logits[:, -1].float()


def _twin(model: PreTrainedModel, attention: str | None = None) -> PreTrainedModel:
    """A model that shares the weights of another, and nothing else."""
    shared: dict[int, Any] = {id(each): each for each in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared)
    if attention is not None:
        twin.set_attn_implementation(attention)
    return twin


def _has_plain_attention(model: PreTrainedModel) -> bool:
    """Whether attention is exchangeable, and torch's own."""
    implementation = model.config.get_text_config()._attn_implementation
    return bool(model._supports_attention_backend) and implementation == "sdpa"


class _RoomyLayer(DynamicLayer):
    """Keys and values (1, heads, R, D) in memory with room for all that will come.

    The library's own layer copies all rows for each that is added.
    """

    def __init__(self, num_rows: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._num_rows = num_rows

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self._rooms = [
            new.new_empty((*new.shape[:2], self._num_rows, new.shape[3]))
            for new in (key_states, value_states)
        ]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[2]
        for room, new in zip(self._rooms, (key_states, value_states), strict=True):
            room[:, :, start:end] = new
        self.keys, self.values = (room[:, :, :end] for room in self._rooms)
        return self.keys, self.values


class _Each:
    """Keys or values (1, heads, R, D) of each request.

    On purpose no tensor: a model that would change them before it attends fails, and is not wrong.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tensors

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._tensors)


class _Caches(Cache):
    """The caches of several requests, each of which takes its own row of a batch."""

    def __init__(self, caches: Sequence[Cache]) -> None:
        super().__init__(layers=caches[0].layers)
        self._caches = caches

    def update(  # type: ignore[override]
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[_Each, _Each]:
        pairs = [
            cache.update(key, value, layer_idx)
            for cache, key, value in zip(
                self._caches, key_states.split(1), value_states.split(1), strict=True
            )
        ]
        return _Each([keys for keys, _ in pairs]), _Each([values for _, values in pairs])


def _attend_each(
    module: nn.Module, query: Tensor, key: _Each, value: _Each, attention_mask: None, **kwargs: Any
) -> tuple[Tensor, None]:
    """One new place (B, heads, 1, D) of each request attends to all rows that its cache holds."""
    outputs = [
        sdpa_attention_forward(module, *each, attention_mask=None, **kwargs)[0]
        for each in zip(query.split(1), key, value, strict=True)
    ]
    return torch.cat(outputs), None


# Masks have no such entry: a new place attends to everything before it, so that none is made.
AttentionInterface.register(ATTENTION_OF_EACH, _attend_each)
