"""Chunks -> embedder outputs -> rows: the only trainable part.

In: token ids. Out: rows of the reader's hidden size, one for every k tokens. The embedder is the
first m layers of the reader with its final norm, and a projection P:

    row_j = token_embedding(x_jk) + P f(chunk)_jk        (identity residual, P starts at zero)
    row_j = s f(chunk)_jk / rms(f(chunk)_jk)             (the paper's plain form, scaled)

It knows nothing of prompts, windows and answers.

Axes: C chunk, L token in chunk, R row, H reader hidden size, E embedder hidden size (here E = H).
Paper: arXiv 2402.11577, extensible embedding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from .checkpoint import EmbedderHubMixin
from .chunks import chunk_spans, pad_chunks
from .context import Context
from .downsampling import check_scale_factor, down_sampling, num_rows
from .errors import InputError
from .reader import Reader

Progress = Callable[[int, int], None]
"""Called with (tokens done, tokens in all)."""

_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f")


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

    def __post_init__(self) -> None:
        down_sampling(self.down_sampling)
        for name in ("num_layers", "chunk_tokens", "max_k"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} is a whole number, 1 or more, but it is {value!r}.")


class ExtensibleEmbedder(nn.Module, EmbedderHubMixin):
    """Turns long text into rows that a reader takes in place of the text.

    Build one with `from_reader` (untrained) or `from_pretrained`; the reader itself is held, never
    changed and never saved.
    """

    def __init__(self, config: EmbedderConfig, reader: Reader) -> None:
        super().__init__()
        self.config = config
        self._reader = [reader]
        self.training_record: dict[str, object] = {}
        self.layers = first_layers(reader.model, config.num_layers)
        if not config.final_norm:
            setattr(self.layers, _final_norm_name(self.layers), nn.Identity())
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
    ) -> ExtensibleEmbedder:
        """An untrained embedder from the first `num_layers` layers of the reader.

        Raises:
            InputError: a value is out of range, or the reader has fewer layers.
        """
        config = EmbedderConfig(
            num_layers=num_layers,
            chunk_tokens=chunk_tokens,
            down_sampling=down_sampling,
            residual=residual,
            final_norm=final_norm,
        )
        return cls(config, reader)

    @property
    def reader(self) -> Reader:
        """The frozen model that the rows are for."""
        return self._reader[0]

    def forward(self, token_ids: Tensor) -> Tensor:
        """Outputs (C, L, H) for chunks of token ids (C, L), one for every token."""
        tokens = self.reader.embed_tokens(token_ids).float()
        hidden = self.layers(inputs_embeds=tokens, use_cache=False).last_hidden_state
        if self.config.residual:
            outputs: Tensor = tokens + self.projection(hidden)  # (C, L, H)
            return outputs
        return self._plain(hidden)

    def _plain(self, hidden: Tensor) -> Tensor:
        """Outputs brought to the length of a token embedding, one by one: no other token counts."""
        rms = hidden.float().pow(2).mean(-1, keepdim=True).sqrt().clamp_min(1e-6)
        return self.output_scale * hidden / rms

    def rows(self, token_ids: Tensor, k: int) -> Tensor:
        """Rows (C, R, H) of equally long chunks (C, L), with gradients: what training calls."""
        sampler = down_sampling(self.config.down_sampling)
        return torch.stack([sampler.rows(chunk, k) for chunk in self(token_ids)])

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

        Args:
            text: the text, or its token ids (n,).
            k: tokens per row, any whole number from 1 to the chunk's length.
            title: a name to show.
            batch_chunks: chunks that the embedder reads at once; memory grows with it, the rows
                do not change.
            progress: called after every batch with (tokens done, tokens in all).

        Returns:
            The rows and what they stand for.

        Raises:
            InputError: the text has no tokens, or k is not usable.
        """
        token_ids = self.reader.encode(text) if isinstance(text, str) else _as_ids(text)
        self._check(token_ids, check_scale_factor(k))
        spans = chunk_spans(len(token_ids), self.config.chunk_tokens)
        # One block from the start: small pieces, kept among freed batches, would hold on to memory.
        count = sum(num_rows(end - start, k) for start, end in spans)
        rows, done = torch.empty(count, self.reader.hidden_size, dtype=self.reader.dtype), 0
        for first in range(0, len(spans), batch_chunks):
            batch = spans[first : first + batch_chunks]
            made = torch.cat(self._batch_rows(token_ids, batch, k))
            rows[done : done + len(made)] = made
            done += len(made)
            if progress is not None:
                progress(batch[-1][1], len(token_ids))
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
        )

    def _batch_rows(self, token_ids: Tensor, batch: list[tuple[int, int]], k: int) -> list[Tensor]:
        """Rows of each chunk of a batch, on the CPU; raw token embeddings at k=1."""
        chunks = pad_chunks(token_ids, batch).to(self.reader.device)
        outputs = self.reader.embed_tokens(chunks) if k == 1 else self(chunks)
        sampler, dtype = down_sampling(self.config.down_sampling), self.reader.dtype
        return [
            sampler.rows(output[: end - start], k).to("cpu", dtype, copy=True)
            for output, (start, end) in zip(outputs, batch, strict=True)
        ]

    def _check(self, token_ids: Tensor, k: int) -> None:
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


def _as_ids(ids: Sequence[int] | Tensor) -> Tensor:
    token_ids = torch.as_tensor(ids)
    if token_ids.ndim != 1 or (token_ids.numel() and token_ids.is_floating_point()):
        raise InputError(
            f"Token ids are one flat sequence of whole numbers, but their shape is "
            f"{tuple(token_ids.shape)} and their type {token_ids.dtype}; compress one text a call."
        )
    return token_ids.long()


def first_layers(model: PreTrainedModel, num_layers: int) -> nn.Module:
    """A float32 copy of the decoder's first layers and its final norm, without token embeddings.

    Raises:
        InputError: the model has fewer layers.
    """
    total = int(model.config.get_text_config().num_hidden_layers)
    if num_layers > total:
        raise InputError(
            f"The embedder takes its layers from the reader, which has {total}, but num_layers is "
            f"{num_layers}; give at most {total}."
        )
    shortened = AutoModelForCausalLM.from_config(
        _shortened(model.config, num_layers), dtype=torch.float32
    )
    decoder: nn.Module = shortened.get_decoder()
    source = {
        name: weight
        for name, weight in model.get_decoder().state_dict().items()
        if name in decoder.state_dict() and weight.shape == decoder.state_dict()[name].shape
    }
    width = int(model.get_input_embeddings().weight.shape[-1])  # type: ignore[index]
    decoder.set_input_embeddings(nn.Embedding(1, width))  # type: ignore[operator]
    missing = set(decoder.state_dict()) - set(source) - _embedding_names(decoder)
    assert not missing, f"layers of the reader were not found: {sorted(missing)}"
    decoder.load_state_dict(source, strict=False)
    decoder.get_input_embeddings().requires_grad_(False)  # type: ignore[operator]
    return decoder


def _embedding_names(decoder: nn.Module) -> set[str]:
    table = decoder.get_input_embeddings()  # type: ignore[operator]
    return {
        name
        for name, weight in decoder.state_dict(keep_vars=True).items()
        if weight is table.weight
    }


def _shortened(config: PretrainedConfig, num_layers: int) -> PretrainedConfig:
    """The reader's configuration with fewer layers and next to no vocabulary."""
    short = copy.deepcopy(config.get_text_config())
    short.num_hidden_layers = num_layers
    for name in ("layer_types", "attention_layers", "no_rope_layers"):
        per_layer = getattr(short, name, None)
        if per_layer is not None:
            setattr(short, name, per_layer[:num_layers])
    short.pad_token_id = None
    short.vocab_size = 2
    if hasattr(short, "quantization_config"):
        del short.quantization_config
    return short


def _final_norm_name(decoder: nn.Module) -> str:
    for name in _FINAL_NORMS:
        if isinstance(getattr(decoder, name, None), nn.Module):
            return name
    raise InputError(
        f"{type(decoder).__name__} has no final norm under the names {', '.join(_FINAL_NORMS)}; "
        "use final_norm=True."
    )
