"""What makes a training step faster and changes no result beyond rounding.

In: a two-stream model. Out: the same model with its norms and MLPs compiled, on an allocator that
keeps what it frees. Knows nothing of data, losses and schedules.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError
from ..picked import blocks
from .two_stream import TwoStreamModel

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt."""


def check_compiler(device: torch.device) -> None:
    """Refuses `compile: true` on a CPU without the C++ compiler that torch calls there.

    Raises:
        ConfigError: there is none.
    """
    usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    compiler = os.environ.get("CXX") or usual
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise ConfigError(
            f"`compile` needs a C++ compiler on a CPU, but {compiler!r} is not found; install one, "
            "name one in the environment variable CXX, or set `compile: false`."
        )


@contextmanager
def compiled(
    model: TwoStreamModel, *, whole: bool = False
) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Compiles norms and MLPs of embedder and reader, or their whole blocks; undone on leaving.

    Yields a context manager, within which they run as they were.

    Blocks of one kind share their code, so that a deep model compiles as fast as a shallow one.
    Attention stays as it is where its shapes change with every instance; those of packed sequences
    do not, so that a GPU runs `whole` blocks.
    """
    embedder = model.embedder
    makers, readers = (
        _compiled_parts(decoder, whole=whole)
        for decoder in (embedder.layers, embedder.reader.model.get_decoder())
    )
    parts = [*makers, *readers]
    for part in parts:  # packed sequences have one shape, the chunks of a batch vary in number
        part.compile(dynamic=None if whole and part in readers else True)

    @contextmanager
    def eager() -> Iterator[None]:
        """Puts the compiled parts aside."""
        kept = [part._compiled_call_impl for part in parts]
        _set_calls(parts, [None] * len(parts))
        try:
            yield
        finally:
            _set_calls(parts, kept)

    try:
        yield eager
    finally:
        _set_calls(parts, [None] * len(parts))


def _set_calls(parts: Sequence[nn.Module], calls: Sequence[Any]) -> None:
    for part, call in zip(parts, calls, strict=True):
        part._compiled_call_impl = call


def _compiled_parts(decoder: nn.Module, *, whole: bool) -> list[nn.Module]:
    """The decoder's blocks, or their children that are not attention."""
    if whole:
        return list(blocks(decoder))
    return [
        child
        for block in blocks(decoder)
        for name, child in block.named_children()
        if "attn" not in name.lower() and "attention" not in type(child).__name__.lower()
    ]


def keep_freed_memory() -> None:
    """Tells glibc to keep freed memory: tensors of a step then reuse the pages of the last one.

    By default it gives every large block back to the kernel, which clears it anew each time. Other
    C libraries are left alone.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
