"""FSDP2: reader and embedder divided among the processes that train together.

In: what `accelerate launch --use_fsdp` asks for, and a two-stream model. Out: the same model, of
whose layers each process keeps its part and puts a layer together when it runs; the embedder's
weights and the optimizer's state whole, as one process has them, and the way back. Knows nothing of
data, losses and schedules.

torch's `fully_shard` is called here and not by accelerate, which takes processes on CPUs for DDP,
would have norms and sums of gradients in bfloat16 that DDP has in float32, and would divide the
head, whose products are not made inside of the model's own pass.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from functools import partial
from itertools import chain
from typing import Any

import torch
from accelerate import FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import gather_object, parse_flag_from_env, patch_environment
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from ..checkpoint import own_weights
from ..embedder import ExtensibleEmbedder
from ..errors import ConfigError, InputError
from ..picked import blocks
from .config import TrainConfig
from .two_stream import TwoStreamModel

_ASKED = "ACCELERATE_USE_FSDP"


def sharding(state: PartialState) -> FullyShardedDataParallelPlugin | None:
    """What the launcher asks for; None without FSDP, and for a single process.

    Args:
        state: of the processes that train together.

    Raises:
        ConfigError: it asks for what is not done here.
    """
    if state.num_processes == 1 or not parse_flag_from_env(_ASKED):
        return None
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise ConfigError(
            f"Models are divided by FSDP2, but the launcher asks for FSDP{version}; launch with "
            "`--fsdp_version 2`."
        )
    plugin = FullyShardedDataParallelPlugin()
    if plugin.activation_checkpointing:
        raise ConfigError(
            "Two-stream attention is computed once, but the launcher asks to compute layers "
            "again in the backward pass; launch without `--fsdp_activation_checkpointing`."
        )
    if type(plugin.cpu_offload) is not OffloadPolicy:
        raise ConfigError(
            "Each process keeps its part of the model on its device, but the launcher asks for "
            "the CPU's memory; launch without `--fsdp_offload_params`, or with more processes."
        )
    return plugin


def launched_plain() -> AbstractContextManager[None]:
    """Within it accelerate and transformers divide nothing themselves.

    Nor does transformers load the reader in one process alone, as it does for accelerate's FSDP.
    """
    hidden: AbstractContextManager[None] = patch_environment(**{_ASKED: "false"})
    return hidden


def check_shards(config: TrainConfig, embedder: ExtensibleEmbedder) -> None:
    """Refuses what cannot be divided.

    Every process puts the same layers together at the same time, so that all batches must take the
    same way through the model.

    Raises:
        ConfigError: there are questions that are not packed, the embedder has a single number as a
            weight, or the reader has layers that are not kept as floats.
        InputError: the processes have loaded different readers.
    """
    if config.questions is not None and config.sequence_places is None:
        raise ConfigError(
            "With FSDP2 all processes run the same layers at the same time, but `questions` have "
            "passes of their own unless they are packed; give `sequence_places`, or launch "
            "without `--use_fsdp`."
        )
    if not embedder.config.residual:
        raise ConfigError(
            "FSDP2 divides matrices and vectors, but an embedder with `residual: false` has a "
            "scale that is one number; launch without `--use_fsdp`."
        )
    layers = blocks(embedder.reader.model.get_decoder())
    if packed := [name for name, w in layers.named_parameters() if not w.is_floating_point()]:
        raise ConfigError(
            f"FSDP2 divides readers whose layers are kept as floats, but {packed[0]!r} of "
            f"{embedder.reader.name!r} is not; take the reader before it was quantised, or launch "
            "without `--use_fsdp`."
        )
    if len(set(gather_object([embedder.reader.fingerprint]))) > 1:
        raise InputError(
            f"Each process divides the same reader, but {embedder.reader.name!r} was loaded with "
            "other weights in another process; leave the loading to `train`, or load it with "
            "FSDP_CPU_RAM_EFFICIENT_LOADING=false."
        )


class _Frozen(nn.Module):
    """Makes a model a part of another one, whose way into training mode it does not follow."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def train(self, mode: bool = True) -> _Frozen:
        return self


def shard(
    model: TwoStreamModel, state: PartialState, plugin: FullyShardedDataParallelPlugin
) -> None:
    """Divides the layers of reader and embedder, in place; they stay divided.

    The reader's token table, head and final norm stay whole on each device: every batch needs them
    from its beginning to its end. Weights are put together in their own type, and autocast makes
    products in bfloat16 of them, as with DDP: small steps of a norm's gain are lost in bfloat16.

    Args:
        model: on the CPU or on the process's device.
        state: of the processes that train together.
        plugin: from `sharding`.
    """
    embedder, reader = model.embedder, model.embedder.reader
    divide = partial(
        fully_shard,
        mesh=init_device_mesh(state.device.type, (state.num_processes,)),
        reshard_after_forward=plugin.reshard_after_forward,
    )
    for block in (*blocks(reader.model.get_decoder()), *blocks(embedder.layers)):
        divide(block)
    model.add_module("frozen", _Frozen(reader.model))
    whole = {w for w in model.parameters() if not w.requires_grad and not isinstance(w, DTensor)}
    for weight in whole:
        weight.data = weight.data.to(state.device)
    divide(model, ignored_params=whole)


_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def whole_weights(embedder: ExtensibleEmbedder) -> dict[str, Tensor]:
    """The embedder's own weights, whole: all processes ask, the first one gets them."""
    found: dict[str, Any] = get_model_state_dict(embedder, options=_WHOLE)
    return {name: found[name] for name in own_weights(embedder) if name in found}


def put_weights(embedder: ExtensibleEmbedder, tensors: dict[str, Any]) -> None:
    """Takes the process's part of whole weights, all of which each process has."""
    options = StateDictOptions(full_state_dict=True, strict=False)
    set_model_state_dict(embedder, tensors, options=options)


def whole_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state as that of one process: all ask, the first one gets it.

    torch gathers it by names of weights; optimizers themselves count them.
    """
    found: Any = get_optimizer_state_dict(model, optimizer, options=_WHOLE)
    if not found:
        return {}
    groups = found["param_groups"]
    numbers = {name: i for i, name in enumerate(chain(*(group["params"] for group in groups)))}
    return {
        "state": {numbers[name]: values for name, values in found["state"].items()},
        "param_groups": [
            group | {"params": [numbers[name] for name in group["params"]]} for group in groups
        ],
    }


def put_state(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Takes the process's part of an optimizer's whole state, which each process has."""
    names = {weight: name for name, weight in model.named_parameters()}
    ours = [names[weight] for group in optimizer.param_groups for weight in group["params"]]
    named: Any = {
        "state": {ours[number]: values for number, values in state["state"].items()},
        "param_groups": [
            group | {"params": [ours[number] for number in group["params"]]}
            for group in state["param_groups"]
        ],
    }
    options = StateDictOptions(full_state_dict=True)
    set_optimizer_state_dict(model, optimizer, named, options=options)
