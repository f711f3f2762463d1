"""Chunks -> embedder outputs -> rows: the only trainable part.

In: token ids. Out: rows of the reader's hidden size, one for every k tokens. The embedder is the
first m layers of the reader with its final norm, and a projection P:

    row_j = token_embedding(x_jk) + (c I + P) f(chunk)_jk    (identity residual, P starts at 0)
    row_j = s f(chunk)_jk / rms(f(chunk)_jk)                 (the paper's plain form, scaled)

It knows nothing of prompts, windows and answers.

Axes: C chunk, L token in chunk, R row, H reader hidden size, E embedder hidden size (here E = H).
Paper: arXiv 2402.11577, extensible embedding.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from .checkpoint import EmbedderHubMixin, own_weights
from .chunks import chunk_batches, chunk_spans, pad_chunks
from .context import Context
from .downsampling import check_scale_factor, down_sampling, num_rows
from .errors import InputError
from .layers import copy_layers, final_norm_name, first_layers
from .picked import computes_only
from .reader import Reader
from .source import GivenText
from .start import LARGEST_START, measured_start

Progress = Callable[[int, int], None]
"""Called with (tokens done, tokens in all)."""

_PROBES = 16
LEAST_PLACES = 8
"""Outputs that are computed at a time at the least. Matrix products of a few rows only, on CPUs,
sum in another order, and a row's last digits would depend on how many others are computed."""


@dataclass(frozen=True, kw_only=True)
class EmbedderConfig:
    """What an embedder is made of; saved as JSON beside its weights."""

    num_layers: int = 8
    """Layers taken from the reader, counted from its input."""
    chunk_tokens: int = 256
    """Context tokens that the embedder sees at once (L)."""
    down_sampling: str = "strided"
    """How rows are picked: strided, mean, terminal or random."""
    residual: bool = True
    """Add the token embedding to a projected output; false: the paper's plain form."""
    final_norm: bool = True
    """Apply the reader's final norm to the outputs of the last layer taken."""
    max_k: int = 64
    """Largest scale factor that k="auto" may choose."""
    projection_start: float = 0.0
    """Where the projection starts, times the identity (c): what is trained is added to it."""

    def __post_init__(self) -> None:
        down_sampling(self.down_sampling)
        for name in ("num_layers", "chunk_tokens", "max_k"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} is a whole number, 1 or more, but it is {value!r}.")
        start = self.projection_start
        number = isinstance(start, int | float) and not isinstance(start, bool)
        if not (number and 0 <= start <= LARGEST_START):
            raise InputError(
                f"projection_start is a number, 0 or more and {LARGEST_START:g} at most, but it is "
                f"{start!r}."
            )
        object.__setattr__(self, "projection_start", float(start))  # 4 and 4.0 are one embedder's
        if start and not self.residual:
            raise InputError(
                "A projection starts where there is one, but residual is false and "
                f"projection_start is {start}; leave one of them out."
            )

    def seen_at_once(self, chunk_tokens: int, k: int, num_chunks: int) -> int:
        """Tokens that are embedded together of successive training chunks (C, L).

        As many as when they are read, where shorter chunks divide that, rows end where chunks do
        and are the same whatever follows; else each chunk by itself.
        """
        rows_end_there = chunk_tokens % k == 0 and self.chunk_tokens % chunk_tokens == 0
        if not (rows_end_there and down_sampling(self.down_sampling).begins_alike):
            return chunk_tokens
        return min(self.chunk_tokens, num_chunks * chunk_tokens)


class ExtensibleEmbedder(nn.Module, EmbedderHubMixin):
    """Turns long text into rows that a reader takes in place of the text.

    Build one with `from_reader` (untrained) or `from_pretrained`; the reader itself is held, never
    changed and never saved.
    """

    def __init__(
        self, config: EmbedderConfig, reader: Reader, *, copy_weights: bool = True
    ) -> None:
        """Builds the layers; `copy_weights=False` leaves them random, for weights that follow."""
        super().__init__()
        self.config = config
        self._reader = [reader]
        self.training_record: dict[str, object] = {}
        self._fingerprinted: tuple[object, str] | None = None
        self.layers = first_layers(reader.model, config.num_layers)
        if copy_weights:
            copy_layers(reader, self.layers)
        # Only now: the copy must not see the one row that takes the place of the vocabulary.
        self.layers.set_input_embeddings(nn.Embedding(1, reader.hidden_size))  # type: ignore[operator]
        self.layers.get_input_embeddings().requires_grad_(False)  # type: ignore[operator]
        if not config.final_norm:
            setattr(self.layers, final_norm_name(self.layers), nn.Identity())
        if config.residual:
            self.projection = nn.Linear(reader.hidden_size, reader.hidden_size, bias=False)
            nn.init.zeros_(self.projection.weight)
        else:
            self.output_scale = nn.Parameter(torch.tensor(reader.embedding_rms))
        self.to(device=reader.device, dtype=torch.float32)

    @classmethod
    def from_reader(
        cls,
        reader: Reader,
        num_layers: int = 8,
        *,
        chunk_tokens: int = 256,
        down_sampling: str = "strided",
        residual: bool = True,
        final_norm: bool = True,
        projection_start: float | None = None,
    ) -> ExtensibleEmbedder:
        """An untrained embedder from the first `num_layers` layers of the reader.

        Args:
            reader: that it is for.
            num_layers: taken from it, counted from its input.
            chunk_tokens: context tokens that are seen at once.
            down_sampling: how rows are picked.
            residual: rows are token embeddings and projected outputs; false: the paper's form.
            final_norm: outputs go through the reader's final norm.
            projection_start: the projection begins as so many times the identity; by default as
                many as `measured_start` finds, so that rows begin as the reader's hidden states. At
                0 they begin as token embeddings.

        Raises:
            InputError: a value is out of range, the reader has fewer layers, none with attention,
                or none whose weights are kept as floats; or there is no projection to start, or it
                cannot be measured where.
        """
        config = EmbedderConfig(
            num_layers=num_layers,
            chunk_tokens=chunk_tokens,
            down_sampling=down_sampling,
            residual=residual,
            final_norm=final_norm,
            projection_start=0.0 if projection_start is None else projection_start,
        )
        embedder = cls(config, reader)
        if projection_start is None and residual:
            start = measured_start(reader, embedder.layers, num_layers)
            embedder.config = replace(config, projection_start=start)
        return embedder

    @property
    def reader(self) -> Reader:
        """The frozen model that the rows are for."""
        return self._reader[0]

    @property
    def fingerprint(self) -> str:
        """Tells embedders apart: configuration and all weights; made again when these change."""
        weights = own_weights(self)
        state = _state(weights)
        if self._fingerprinted is None or self._fingerprinted[0] != state:
            self._fingerprinted = state, _hash(self.config, weights)
        return self._fingerprinted[1]

    def forward(self, token_ids: Tensor, places: Tensor | None = None) -> Tensor:
        """Outputs for chunks of token ids (C, L): (C, L, H), or those at places (R,): (C, R, H)."""
        tokens = self.reader.embed_tokens(token_ids).float()
        with computes_only(self.layers, places):
            hidden = self.layers(inputs_embeds=tokens, use_cache=False).last_hidden_state
        if places is not None:
            tokens, hidden = tokens[:, places], hidden[:, places]
        return self._outputs(tokens, hidden)

    def _outputs(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """Outputs (..., H) of token embeddings and the layers' last hidden states."""
        if self.config.residual:
            added: Tensor = self.config.projection_start * hidden + self.projection(hidden)
            return tokens + added
        return self._plain(hidden)

    def _plain(self, hidden: Tensor) -> Tensor:
        """Outputs brought to the length of a token embedding, one by one: no other token counts."""
        rms = hidden.float().pow(2).mean(-1, keepdim=True).sqrt().clamp_min(1e-6)
        return self.output_scale * hidden / rms

    def rows(self, token_ids: Tensor, k: int) -> Tensor:
        """Rows (C, R, H) of equally long chunks (C, L), with gradients: what training calls."""
        sampler = down_sampling(self.config.down_sampling)
        return torch.stack([sampler.rows(chunk, k) for chunk in self(token_ids)])

    def rows_at(self, chunks: Tensor, outputs: Tensor) -> Tensor:
        """Rows (R, H) that are some outputs of chunks (C, L), with gradients.

        Args:
            chunks: token ids.
            outputs: (R,) numbers of the outputs, of C * L.
        """
        tokens = self.reader.embed_tokens(chunks).float()
        hidden = self.layers(inputs_embeds=tokens, use_cache=False).last_hidden_state
        return self._outputs(tokens.flatten(0, 1)[outputs], hidden.flatten(0, 1)[outputs])

    @torch.inference_mode()
    def compress(
        self,
        text: str | Sequence[int] | Tensor,
        *,
        k: int = 4,
        title: str = "",
        batch_chunks: int = 8,
        progress: Progress | None = None,
    ) -> Context:
        """Compresses a context: one row for every k tokens.

        A reader in bfloat16 or float16 has the embedder compute in that type, as training does.

        Args:
            text: the text, or its token ids (n,).
            k: tokens per row, any whole number from 1 to the chunk's length.
            title: a name to show.
            batch_chunks: chunks that the embedder reads at once; memory grows with it, the rows
                change by rounding at most.
            progress: called after every batch with (tokens done, tokens in all).

        Returns:
            The rows and what they stand for.

        Raises:
            InputError: the text has no tokens, or k is not usable.
        """
        token_ids = self.reader.encode(text) if isinstance(text, str) else as_ids(text)
        self.check_request(token_ids, k)
        spans = chunk_spans(len(token_ids), self.config.chunk_tokens)
        # One block from the start: small pieces, kept among freed batches, would hold on to memory.
        count = sum(num_rows(end - start, k) for start, end in spans)
        rows = torch.empty(count, self.reader.hidden_size, dtype=self.reader.dtype)
        read = made = 0
        with self._reader_dtype():  # once: within it, weights are cast once
            for chunks in chunk_batches(token_ids, self.config.chunk_tokens, batch_chunks):
                batch = self._batch_rows(chunks.to(self.reader.device), k)
                rows[made : made + len(batch)] = batch
                read, made = read + chunks.numel(), made + len(batch)
                if progress is not None:
                    progress(read, len(token_ids))
        return Context(
            rows=rows,
            token_ids=token_ids.cpu(),
            k=k,
            chunk_tokens=self.config.chunk_tokens,
            down_sampling=self.config.down_sampling,
            max_k=self.config.max_k,
            embedder_fingerprint=self.fingerprint,
            reader_fingerprint=self.reader.fingerprint,
            title=title,
            tokenizer_fingerprint=self.reader.tokenizer_fingerprint,
            source=GivenText(text) if isinstance(text, str) else None,
        )

    @torch.inference_mode()
    def chunk_outputs(self, token_ids: Tensor, spans: list[tuple[int, int]]) -> list[Tensor]:
        """Outputs (L, H) of chunks that are read at once: every one, where `compress` picks.

        Args:
            token_ids: of the context, (n,).
            spans: where its chunks begin and end.
        """
        chunks = pad_chunks(token_ids, spans).to(self.reader.device)
        with self._reader_dtype():
            outputs = self(chunks)
        return [output[: end - start] for output, (start, end) in zip(outputs, spans, strict=True)]

    @torch.inference_mode()
    def chunk_rows(self, chunks: Tensor, k: int) -> Tensor:
        """Rows (C * R, H) of equally long chunks (C, L), also of chunks shorter than k."""
        with self._reader_dtype():
            return self._batch_rows(chunks.to(self.reader.device), k)

    def _reader_dtype(self) -> torch.autocast:
        dtype = self.reader.dtype
        half = dtype in (torch.bfloat16, torch.float16)
        return torch.autocast(self.reader.device.type, dtype if half else None, enabled=half)

    def _batch_rows(self, chunks: Tensor, k: int) -> Tensor:
        """Rows (C * R, H) of chunks (C, L); raw token embeddings at k=1."""
        if k == 1:
            return self.reader.embed_tokens(chunks).flatten(0, 1)
        sampler = down_sampling(self.config.down_sampling)
        places = sampler.places(chunks.shape[1], k)
        if places is None:
            return torch.cat([sampler.rows(output, k) for output in self(chunks)])
        filled = torch.cat([places, places[-1:].expand(max(0, LEAST_PLACES - len(places)))])
        outputs: Tensor = self(chunks, filled.to(chunks.device))[:, : len(places)]
        return outputs.flatten(0, 1)

    def check_request(self, token_ids: Tensor, k: int) -> None:
        """Raises InputError unless token ids (n,) can be compressed at k."""
        check_scale_factor(k)
        self.reader.check_ids(token_ids)
        if k > self.config.chunk_tokens:
            raise InputError(
                f"A row stands for tokens of one chunk, so k is at most {self.config.chunk_tokens}"
                f" here, but k is {k}; give a smaller k or an embedder with longer chunks."
            )
        if k > len(token_ids):
            raise InputError(
                f"A scale factor is at most the context's length, but k is {k} and the context has "
                f"{len(token_ids)} tokens; give k={len(token_ids)} or less."
            )


def _state(weights: dict[str, Tensor]) -> object:
    """Differs whenever the weights may: where they are, their versions and a few values of each.

    The values are for writers that leave the version alone, as fused optimizers do.
    """
    flat = [weight.detach().view(-1) for weight in weights.values()]
    few = torch.cat([w[:: max(1, len(w) // _PROBES)].to(torch.float32) for w in flat])
    places = [(name, w.dtype, w.data_ptr(), w._version) for name, w in weights.items()]
    return places, few.tolist()


def _hash(config: EmbedderConfig, weights: dict[str, Tensor]) -> str:
    settings = asdict(config)
    if not config.projection_start:  # embedders made before there was one keep their fingerprints
        del settings["projection_start"]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for name, weight in weights.items():
        digest.update(name.encode())
        flat = weight.detach().cpu().contiguous().view(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def as_ids(ids: Sequence[int] | Tensor) -> Tensor:
    """Token ids (n,) as int64.

    Raises:
        InputError: they are not one flat sequence of whole numbers.
    """
    token_ids = torch.as_tensor(ids)
    numbers = not (token_ids.is_floating_point() or token_ids.is_complex())
    if token_ids.ndim != 1 or (token_ids.numel() and not numbers):
        raise InputError(
            f"Token ids are one flat sequence of whole numbers, but their shape is "
            f"{tuple(token_ids.shape)} and their type {token_ids.dtype}; compress one text a call."
        )
    return token_ids.long()
