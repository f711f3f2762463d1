"""A GGUF reader in llama.cpp's memory, by the low-level functions of llama-cpp-python.

In: token ids or rows with their sequence and places. Out: logits, and tokens drawn from them by
llama.cpp's own samplers. Knows nothing of requests. Not for several threads at a time.

Axes: R row, H reader hidden size, V vocabulary.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import EngineError, InputError, MissingExtraError
from .base import Sampling

_LOGGER = logging.getLogger("llama.cpp")
_ERROR_LEVEL = 4
"""GGML_LOG_LEVEL_ERROR."""
_log_callback: Any = None
"""One for the library; it must outlive all use of it."""
_RANDOM_SEED = 0xFFFFFFFF
"""What llama.cpp takes for: no seed, draw one."""
_GREEDY_BELOW = 1e-5
"""A lower temperature overflows, and would choose the same."""


class LlamaContext:
    """One model and its cache of keys and values, which sequences share.

    Args:
        path: a .gguf file, of any quantisation that llama.cpp reads.
        num_cells: rows that the cache has room for, of all sequences together.
        num_sequences: numbered from 0.
        batch_rows: the most that are read in one call.
        num_threads: of the processor.

    Raises:
        MissingExtraError: llama-cpp-python is not installed.
        InputError: there is no such file.
        EngineError: llama.cpp cannot load it.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        num_cells: int,
        num_sequences: int,
        batch_rows: int,
        num_threads: int,
    ) -> None:
        self._library = library = _llama_cpp()
        if not Path(path).is_file():
            raise InputError(
                f"A reader of llama.cpp is a .gguf file, but {path} is none; name one."
            )
        self._model = library.llama_model_load_from_file(
            str(path).encode(), library.llama_model_default_params()
        )
        if not self._model:
            raise EngineError(
                f"llama.cpp cannot load {path} (logger `llama.cpp` has why); copy the file again, "
                "or update llama-cpp-python."
            )
        settings = library.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max = num_cells, num_sequences
        settings.n_batch = settings.n_ubatch = batch_rows
        settings.n_outputs_max = num_sequences  # logits of each, not of every row of a batch
        settings.n_threads = settings.n_threads_batch = num_threads
        settings.kv_unified = True  # sequences can share cells; else each would have its own
        self._context = library.llama_init_from_model(self._model, settings)
        if not self._context:
            library.llama_model_free(self._model)
            raise EngineError(
                f"llama.cpp cannot make a cache of {num_cells} cells for {path}; give fewer."
            )
        self._memory = library.llama_get_memory(self._context)
        self._vocab = library.llama_model_get_vocab(self._model)
        self.hidden_size = int(library.llama_model_n_embd_inp(self._model))
        self.vocab_size = int(library.llama_vocab_n_tokens(self._vocab))
        self.window = int(library.llama_model_n_ctx_train(self._model))
        self.batch_rows = batch_rows

    def close(self) -> None:
        """Frees the model and its cache."""
        self._library.llama_free(self._context)
        self._library.llama_model_free(self._model)

    def is_end(self, token: int) -> bool:
        """Whether the vocabulary says that a text ends with this token."""
        return bool(self._library.llama_vocab_is_eog(self._vocab, token))

    def read(self, sequence: int, part: Tensor, position: int) -> None:
        """Reads token ids (t,) or rows (R, H), at most `batch_rows`, from a position on.

        The last one has logits.
        """
        count = len(part)
        positions = range(position, position + count)
        self._decode(part, positions, [sequence] * count, [0] * (count - 1) + [1])

    def read_each(self, sequences: Sequence[int], tokens: Tensor, positions: Sequence[int]) -> None:
        """Reads a token (n,) for each of several sequences; each has logits."""
        self._decode(tokens, positions, sequences, [1] * len(tokens))

    def _decode(
        self,
        inputs: Tensor,
        positions: Sequence[int],
        sequences: Sequence[int],
        outputs: Sequence[int],
    ) -> None:
        """One llama_decode, of token ids (n,) or rows (n, H): a batch of it has never both."""
        is_rows = inputs.ndim == 2
        kind = torch.float32 if is_rows else torch.int32
        values = inputs.detach().to("cpu", kind).contiguous().numpy()
        places, owners = np.array(positions, np.int32), np.array(sequences, np.int32)
        counts, flags = np.ones(len(owners), np.int32), np.array(outputs, np.int8)
        start, step = owners.ctypes.data, owners.itemsize
        lists = np.array([start + step * place for place in range(len(owners))], np.uintp)
        library = self._library
        batch = library.llama_batch(
            n_tokens=len(owners),
            token=None if is_rows else _pointer(values, ctypes.c_int32),
            embd=_pointer(values, ctypes.c_float) if is_rows else None,
            pos=_pointer(places, ctypes.c_int32),
            n_seq_id=_pointer(counts, ctypes.c_int32),
            seq_id=_pointer(lists, ctypes.POINTER(ctypes.c_int32)),
            logits=_pointer(flags, ctypes.c_int8),
        )
        code = library.llama_decode(self._context, batch)
        if code:
            raise EngineError(
                f"llama.cpp could not read {len(owners)} rows (llama_decode returned {code}); ask "
                "again, and for less at a time if it is 1, a cache that is full."
            )

    def logits(self, index: int) -> Tensor:
        """Logits (V,) after a place of the last batch that has them; -1 is the last of these."""
        found = self._library.llama_get_logits_ith(self._context, index)
        values = np.ctypeslib.as_array(found, shape=(self.vocab_size,))
        return torch.from_numpy(values.copy())

    def sampler(self, sampling: Sampling) -> Any:
        """A chain of llama.cpp's samplers, for `draw`; to be given back by `free_sampler`."""
        library = self._library
        chain = library.llama_sampler_chain_init(library.llama_sampler_chain_default_params())
        if sampling.temperature < _GREEDY_BELOW:
            library.llama_sampler_chain_add(chain, library.llama_sampler_init_greedy())
            return chain
        seed = _RANDOM_SEED if sampling.seed is None else sampling.seed % _RANDOM_SEED
        library.llama_sampler_chain_add(
            chain, library.llama_sampler_init_temp(sampling.temperature)
        )
        library.llama_sampler_chain_add(chain, library.llama_sampler_init_top_p(sampling.top_p, 1))
        library.llama_sampler_chain_add(chain, library.llama_sampler_init_dist(seed))
        return chain

    def draw(self, sampler: Any, index: int) -> int:
        """The next token after a place of the last batch; -1 is the last that has logits."""
        return int(self._library.llama_sampler_sample(sampler, self._context, index))

    def free_sampler(self, sampler: Any) -> None:
        """Frees a chain."""
        self._library.llama_sampler_free(sampler)

    def copy(self, source: int, target: int, num_rows: int) -> None:
        """Makes an empty sequence own another's first cells, too."""
        self._library.llama_memory_seq_cp(self._memory, source, target, 0, num_rows)

    def remove(self, sequence: int) -> None:
        """Makes a sequence own nothing."""
        self._library.llama_memory_seq_rm(self._memory, sequence, -1, -1)


def _llama_cpp() -> ModuleType:
    try:
        library = importlib.import_module("llama_cpp")
    except ImportError as error:
        raise MissingExtraError(
            "The engine llama.cpp needs llama-cpp-python, which is not installed; run "
            "`pip install 'extensible-embedding[llama-cpp]'`."
        ) from error
    global _log_callback
    if _log_callback is None:
        _log_callback = library.llama_log_callback(_log)
        library.llama_log_set(_log_callback, None)
    library.llama_backend_init()
    return library


def _log(level: int, text: bytes, data: object) -> None:
    """Takes llama.cpp's log, of which llama-cpp-python prints warnings and not errors.

    What is below an error is told to who looks for it: llama.cpp warns of any cache that is larger
    than a model's window, as one for several sequences is.
    """
    kind = logging.ERROR if level == _ERROR_LEVEL else logging.DEBUG
    _LOGGER.log(kind, text.decode(errors="replace").rstrip())


def _pointer(values: np.ndarray[Any, Any], kind: Any) -> Any:
    """To the first value; the array must outlive its use."""
    return ctypes.cast(values.ctypes.data, ctypes.POINTER(kind))
