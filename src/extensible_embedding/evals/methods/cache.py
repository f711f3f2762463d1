"""Chunks that were just read -> their rows, without reading them again.

In: token ids of a context and k. Out: rows, as `ExtensibleEmbedder.compress` makes them. What the
embedder makes of a chunk depends on the chunk's tokens alone, and chunks are counted from the first
token. So all settings that read one context share its whole chunks, whatever their k, window and
raw part; only the last, partial chunk differs. Knows nothing of methods and windows.

Axes: n context token, L token in chunk, R row, H hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...chunks import chunk_spans
from ...downsampling import down_sampling, num_rows
from ...embedder import ExtensibleEmbedder

_BATCH_CHUNKS = 8
Span = tuple[int, int]


class RowCache:
    """Keeps the embedder's outputs for the chunks of the context that was read last.

    Outputs are kept in the reader's type. Rows differ from those of `compress` by rounding at most:
    there the last MLP runs on the rows alone, and averaged rows are rounded after the mean.

    Args:
        embedder: with its reader; its weights must not change meanwhile.
        max_bytes: of the outputs kept; chunks beyond are read again each time.
    """

    def __init__(self, embedder: ExtensibleEmbedder, max_bytes: int = 1 << 29) -> None:
        self.embedder, self.max_bytes = embedder, max_bytes
        self.num_bytes = 0
        self._kept: dict[bytes, Tensor] = {}

    def rows(self, token_ids: Tensor, k: int) -> Tensor:
        """Rows (R, H) of a context (n,), on the CPU in the reader's type.

        Raises:
            InputError: as `compress`.
        """
        embedder = self.embedder
        if k == 1:
            return embedder.compress(token_ids, k=1).rows
        embedder.check_request(token_ids, k)
        spans = chunk_spans(len(token_ids), embedder.config.chunk_tokens)
        if not any(_key(token_ids, span) in self._kept for span in spans):
            self._forget()
        sampler, done = down_sampling(embedder.config.down_sampling), 0
        count = sum(num_rows(end - start, k) for start, end in spans)
        rows = torch.empty(count, embedder.reader.hidden_size, dtype=embedder.reader.dtype)
        for first in range(0, len(spans), _BATCH_CHUNKS):
            for output in self._outputs(token_ids, spans[first : first + _BATCH_CHUNKS]):
                made = sampler.rows(output, k)
                rows[done : done + len(made)] = made
                done += len(made)
        return rows

    def _outputs(self, token_ids: Tensor, spans: list[Span]) -> list[Tensor]:
        """Outputs (L, H) of a batch of chunks: kept ones, and new ones read at once."""
        keys = [_key(token_ids, span) for span in spans]
        missing = {
            key: span for key, span in zip(keys, spans, strict=True) if key not in self._kept
        }
        made = self.embedder.chunk_outputs(token_ids, list(missing.values())) if missing else []
        dtype = self.embedder.reader.dtype
        fresh = {
            key: output.to("cpu", dtype, copy=True)
            for key, output in zip(missing, made, strict=True)
        }
        for key, output in fresh.items():
            self._keep(key, output)
        return [fresh[key] if key in fresh else self._kept[key] for key in keys]

    def _keep(self, key: bytes, output: Tensor) -> None:
        if self.num_bytes + output.nbytes <= self.max_bytes:
            self._kept[key] = output
            self.num_bytes += output.nbytes

    def _forget(self) -> None:
        """A context of which nothing is known is another one: the last one's chunks may go."""
        self._kept.clear()
        self.num_bytes = 0


def _key(token_ids: Tensor, span: Span) -> bytes:
    return token_ids[slice(*span)].cpu().numpy().tobytes()
