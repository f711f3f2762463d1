"""lm-eval's own tasks, read by a reader with compressed context.

In: the requests of lm_eval (extra `lm-eval`), as text. Out: its numbers. What fits the window is
read by lm_eval's own `hf` model, so that its numbers are the same. What does not, or is longer than
`compress_over_tokens`, is read as head, rows of the older tokens and recent tokens raw:

    python -m extensible_embedding.evals.lm_eval_model run --model extensible --tasks ...

which is lm_eval's command line with this model added to it.

Axes: B batch, S row of the prompt, t token of a continuation, H hidden size, V vocabulary.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..downsampling import check_scale_factor
from ..embedder import ExtensibleEmbedder
from ..errors import ExtensibleError, InputError, MissingExtraError
from ..prompt import AUTO, language_head
from ..reader import Reader
from ..released import RELEASED_FOLDER
from .methods.base import EmbedsReading, Passage
from .methods.rows import Extensible

try:
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.utils import (
        handle_stop_sequences,
        normalize_gen_kwargs,
        postprocess_generated_text,
    )
    from lm_eval.models.utils_hf import stop_sequences_criteria
except ImportError as error:
    raise MissingExtraError(
        f"lm-eval's tasks need the package lm_eval, which cannot be imported ({error}); run "
        "`pip install 'extensible-embedding[lm-eval]'`."
    ) from error

LogLikelihood = tuple[float, bool]
"""Sum of log probabilities of a continuation, and whether it is the greedy one."""
TokenRequest = tuple[Any, list[int], list[int]]
"""lm_eval's key, and token ids of context and continuation."""


@register_model("extensible")
class ExtensibleLM(HFLM):  # type: ignore[misc]
    """A reader whose long contexts are rows; everything else is lm_eval's `hf` model.

    Args:
        reader: what `Reader.from_pretrained` takes, or a reader.
        embedder: a folder, a hub id, "released", or an embedder of this reader.
        k: tokens per row, or "auto": the smallest at which the older tokens fit.
        window: rows in all, by default the reader's.
        recent_tokens: tokens at the end of a compressed context that stay raw, by default half of
            the room.
        compress_over_tokens: also compress contexts that fit but are longer than this, at a fixed
            k; with k="auto" they stay raw.
        derivative: the reader is a fine-tune of the one that the embedder was made for.
        device: of the reader. lm_eval says "cuda" if nobody says anything: without CUDA that is
            taken for nothing.
        dtype, trust_remote_code: of the reader, see `Reader.from_pretrained`.
        batch_size, max_batch_size, settings: of lm_eval's `hf` model.

    Raises:
        InputError: an argument is not usable.
    """

    def __init__(
        self,
        reader: str | Reader = "default",
        embedder: str | ExtensibleEmbedder = "released",
        k: str | int = AUTO,
        window: int | None = None,
        recent_tokens: int | None = None,
        compress_over_tokens: int | None = None,
        derivative: bool = False,
        device: str | None = None,
        dtype: str | None = None,
        trust_remote_code: bool = False,
        batch_size: str | int = 1,
        max_batch_size: int | None = None,
        **settings: Any,
    ) -> None:
        self.reader = _reader(reader, window, device, dtype, trust_remote_code)
        self.embedder = _embedder(embedder, self.reader, derivative)
        self.k = None if k == AUTO else check_scale_factor(k)
        self.recent_tokens, self.compress_over_tokens = recent_tokens, compress_over_tokens
        for name, value in (
            ("recent_tokens", recent_tokens),
            ("compress_over_tokens", compress_over_tokens),
        ):
            if value is not None and value < 1:
                raise InputError(f"{name} is 1 or more, but it is {value}; leave it out or give 1.")
        self._method = Extensible(
            self.embedder, self.k, recent_share=0.0, all_rows=self.k is not None
        )
        super().__init__(
            pretrained=self.reader.model,
            tokenizer=self.reader.tokenizer,
            backend="causal",
            max_length=self.reader.window,
            batch_size=batch_size,
            max_batch_size=max_batch_size or 64,
            **settings,
        )

    def get_model_info(self) -> dict[str, Any]:
        """What the results depend on, for lm_eval's record."""
        return {
            "reader": self.reader.name,
            "reader_fingerprint": self.reader.fingerprint,
            "embedder_fingerprint": self.embedder.fingerprint,
            "k": self.k or AUTO,
            "window": self.reader.window,
            "recent_tokens": self.recent_tokens,
            "compress_over_tokens": self.compress_over_tokens,
        }

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log probability of whole texts: a long one block by block, after all before it."""
        long = [self._is_long(1, len(self.tok_encode(request.args[0]))) for request in requests]
        return _together(
            requests,
            long,
            lambda short: super(ExtensibleLM, self).loglikelihood_rolling(short, disable_tqdm),
            lambda rest: [self._rolling(request.args[0]) for request in rest],
        )

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy or sampled continuations up to a stop sequence."""
        long = [
            self._is_long(len(self.tok_encode(context)), self._new_tokens(settings))
            for context, settings in (request.args for request in requests)
        ]
        return _together(
            requests,
            long,
            lambda short: super(ExtensibleLM, self).generate_until(short, disable_tqdm),
            self._generate_long,
        )

    def _loglikelihood_tokens(
        self, requests: Sequence[TokenRequest], *args: Any, **settings: Any
    ) -> list[LogLikelihood]:
        long = [
            self._is_long(len(context), len(continuation) - 1)  # its last token is not read
            for _, context, continuation in requests
        ]
        return _together(
            requests,
            long,
            lambda short: super(ExtensibleLM, self)._loglikelihood_tokens(short, *args, **settings),
            self._score_long,
        )

    def _is_long(self, context_tokens: int, more_tokens: int) -> bool:
        """Whether a context is compressed."""
        limit = self.compress_over_tokens
        chosen = limit is not None and self.k != 1 and context_tokens > limit
        return chosen or context_tokens + more_tokens > self.reader.window

    def _new_tokens(self, settings: dict[str, Any]) -> int:
        return int(normalize_gen_kwargs(settings, self.max_gen_toks)["max_gen_toks"])

    def _rolling(self, text: str) -> float:
        ids, block = self.tok_encode(text), max(1, self.reader.window // 4)
        requests = [
            (None, [self.prefix_token_id, *ids[:start]], ids[start : start + block])
            for start in range(0, len(ids), block)
        ]
        total = sum(score for score, _ in self._loglikelihood_tokens(requests, disable_tqdm=True))
        self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return total

    @torch.inference_mode()
    def _score_long(self, requests: Sequence[TokenRequest]) -> list[LogLikelihood]:
        """Continuations of compressed contexts; those of one context after the same rows."""
        scores: dict[int, LogLikelihood] = {}
        for context, numbers in _by(requests, lambda request: tuple(request[1])):
            longest = max(len(requests[number][2]) for number in numbers)
            embeds = self._embeds(torch.tensor(context), longest)
            for batch in _batches(numbers, self.batch_size):
                found = self._score(embeds, [torch.tensor(requests[n][2]) for n in batch])
                scores |= dict(zip(batch, found, strict=True))
        for number, (key, _, _) in enumerate(requests):
            if key is not None:  # blocks of a rolling text have none
                self.cache_hook.add_partial("loglikelihood", key, scores[number])
        return [scores[number] for number in range(len(requests))]

    def _score(self, embeds: Tensor, continuations: Sequence[Tensor]) -> list[LogLikelihood]:
        """Scores of token ids (t,) after the same rows (S, H); padding on the right is not seen."""
        read = [self.reader.embed_tokens(ids[:-1]).to(embeds.dtype) for ids in continuations]
        padded = torch.nn.utils.rnn.pad_sequence(
            [torch.cat([embeds, part]) for part in read], batch_first=True
        )  # (B, S, H)
        hidden = self.reader.model.get_decoder()(inputs_embeds=padded, use_cache=False)
        return [
            _log_likelihood(self.reader.logits(row[len(embeds) - 1 :][: len(ids)]), ids)
            for row, ids in zip(hidden.last_hidden_state, continuations, strict=True)
        ]

    @torch.inference_mode()
    def _generate_long(self, requests: Sequence[Any]) -> list[str]:
        texts: dict[int, str] = {}
        for _, numbers in _by(requests, lambda request: json.dumps(request.args[1], default=str)):
            for batch in _batches(numbers, self.batch_size):
                found = self._generate([requests[number].args for number in batch])
                texts |= dict(zip(batch, found, strict=True))
        return [texts[number] for number in range(len(requests))]

    def _generate(self, requests: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
        """Texts of a batch with the same settings; prompts are padded on the left."""
        settings = normalize_gen_kwargs(requests[0][1], self.max_gen_toks)
        new_tokens = settings.pop("max_gen_toks")
        if not settings["do_sample"]:
            settings.pop("temperature", None)
        eos = self.tok_decode(self.eot_token_id, skip_special_tokens=False)
        until = handle_stop_sequences(settings.pop("until", None), eos=eos)
        embeds = [
            self._embeds(torch.tensor(self.tok_encode(context)), new_tokens)
            for context, _ in requests
        ]
        inputs, mask = _padded_left(embeds)
        output = self.reader.model.generate(
            inputs_embeds=inputs,
            attention_mask=mask,
            max_new_tokens=new_tokens,
            pad_token_id=self.tokenizer.pad_token_id,
            stopping_criteria=stop_sequences_criteria(self.tokenizer, until, 0, len(embeds)),
            **settings,
        )
        texts = [postprocess_generated_text(self.tok_decode(row), until, None) for row in output]
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request, text)
        return texts

    def _embeds(self, context: Tensor, more_tokens: int) -> Tensor:
        """Rows (S, H) that the reader sees of a context, with room for what follows."""
        first, room = language_head(self.reader), self.reader.window - more_tokens
        rest = context[1:] if torch.equal(context[:1], first) else context
        if room < len(first) + 2:
            raise InputError(
                f"A compressed context needs rows in the window of {self.reader.window}, but "
                f"{more_tokens} tokens follow it; give a larger window or ask for fewer tokens."
            )
        wanted = room // 2 if self.recent_tokens is None else self.recent_tokens
        recent = min(wanted, room - len(first) - 1)
        split = max(0, len(rest) - recent)
        passage = Passage(head=first, context=rest[:split], tail=rest[split:])
        reading = self._method.read(passage, room)
        assert isinstance(reading, EmbedsReading)
        return reading.embeds


def _reader(
    reader: str | Reader,
    window: int | None,
    device: str | None,
    dtype: str | None,
    trust_remote_code: bool,
) -> Reader:
    if isinstance(reader, Reader):
        return reader if window is None else Reader(reader.model, reader.tokenizer, window=window)
    kind = getattr(torch, dtype, None) if dtype else None
    if dtype and not isinstance(kind, torch.dtype):
        raise InputError(f"dtype is a type of torch such as bfloat16, but it is {dtype!r}.")
    if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
        device = None
    return Reader.from_pretrained(
        reader, window=window, device=device, dtype=kind, trust_remote_code=trust_remote_code
    )


def _embedder(
    embedder: str | ExtensibleEmbedder, reader: Reader, derivative: bool
) -> ExtensibleEmbedder:
    if isinstance(embedder, ExtensibleEmbedder):
        return embedder
    source = RELEASED_FOLDER if embedder == "released" else embedder
    return ExtensibleEmbedder.from_pretrained(source, reader, derivative=derivative)


def _together(
    requests: Sequence[Any], long: Sequence[bool], of_short: Any, of_long: Any
) -> list[Any]:
    """Answers to all requests in their order, from one function for each sort."""
    sorts = {
        sort: [request for request, each in zip(requests, long, strict=True) if each is sort]
        for sort in (False, True)
    }
    answers = {
        sort: iter((of_long if sort else of_short)(some) if some else ())
        for sort, some in sorts.items()
    }
    return [next(answers[sort]) for sort in long]


def _by(requests: Sequence[Any], key: Any) -> Iterator[tuple[Any, list[int]]]:
    """Numbers of the requests that have the same key."""
    groups: dict[Any, list[int]] = {}
    for number, request in enumerate(requests):
        groups.setdefault(key(request), []).append(number)
    yield from groups.items()


def _batches(numbers: list[int], size: int | str) -> Iterator[list[int]]:
    """Parts of a list; one by one where lm_eval is to find the size."""
    count = size if isinstance(size, int) else 1
    for first in range(0, len(numbers), count):
        yield numbers[first : first + count]


def _log_likelihood(logits: Tensor, ids: Tensor) -> LogLikelihood:
    """Of token ids (t,) with logits (t, V)."""
    ids = ids.to(logits.device)
    scores = logits.float().log_softmax(-1).gather(1, ids[:, None])
    return float(scores.sum()), bool((logits.argmax(-1) == ids).all())


def _padded_left(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows (B, S, H) and their mask (B, S), 1 where they are real, of parts (S, H)."""
    longest = max(len(part) for part in parts)
    rows = [
        torch.cat([part.new_zeros(longest - len(part), part.shape[-1]), part]) for part in parts
    ]
    mask = [[0] * (longest - len(part)) + [1] * len(part) for part in parts]
    return torch.stack(rows), torch.tensor(mask, device=parts[0].device)


def main() -> None:
    """The command line of lm_eval, which now knows this model."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except ExtensibleError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
