"""The processes that train together: which of them this one is, where it computes, what it loads.

In: the environment that `accelerate launch` makes, and a configuration. Out: a device and a reader
for this process. Knows nothing of data and losses.
"""

from __future__ import annotations

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from ..loading import default_device, default_dtype
from ..reader import Reader
from .config import TrainConfig
from .sharding import launched_plain, sharding


def processes(device: torch.device) -> PartialState:
    """The processes that train together, one a device, and which of them this one is."""
    return PartialState(cpu=device.type == "cpu")


def agreed(value: float, device: torch.device) -> float:
    """The first process's value: others may have measured it on another device."""
    if processes(device).num_processes == 1:
        return value
    values: list[float] = broadcast_object_list([value])
    return values[0]


def is_first_process() -> bool:
    """Whether this process speaks for all that train together."""
    return bool(processes(default_device()).is_main_process)


def own_device() -> torch.device | None:
    """Where this process of several computes; None, the default, for a single one."""
    state = processes(default_device())
    if state.num_processes == 1:
        return None
    return torch.device("cpu") if state.device.type == "cpu" else torch.device(state.device)


def end_together() -> None:
    """Takes leave of the other processes, once all have come here; none trains after it.

    A process that ends while another still talks to it breaks their connection, and that one fails
    after its work is done.
    """
    state = processes(default_device())
    if state.num_processes == 1 or not torch.distributed.is_initialized():
        return
    state.wait_for_everyone()
    state.destroy_process_group()


def load_reader(config: TrainConfig) -> Reader:
    """The reader that the configuration names; one that will be divided, in the CPU's memory."""
    device = own_device()
    with launched_plain():
        if device is None or sharding(processes(device)) is None:
            return Reader.from_pretrained(config.reader, device=device)
        return Reader.from_pretrained(config.reader, dtype=default_dtype(device), device="cpu")
