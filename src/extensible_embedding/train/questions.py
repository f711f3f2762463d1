"""Questions about contexts -> documents to train on.

In: token caches of question files. Out: documents, each a context and some of its questions; the
context is embedded once for all of them, and questions may have raw spans of it before them, as by
mixed precision. Document i depends on the seed and i alone. Knows nothing of losses.

Axes: Q question (a block of raw tokens), L token in block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from .beside import raw_tokens, spans_within
from .data import FirstFactors, Instance, Instances, factors_of
from .question_cache import QuestionFile

MAX_QUESTIONS = 8
"""Questions asked at once about a context; more would make long sequences of little new."""
_MAX_BESIDE_SPANS = 4
"""The same where each has raw spans of its own before it."""


@dataclass(frozen=True, kw_only=True)
class Document:
    """A context, and questions on it as blocks that a reader reads after the context's rows."""

    head: Tensor
    """(h,) what stands before the rows."""
    context: Tensor
    """(n,)."""
    blocks: Tensor
    """(Q, L) raw spans, question, answer and end of the turn; padded on the right."""
    answers: Tensor
    """(Q, L) true at tokens of the answer and its end: those that the loss is a mean of."""
    k: int


@dataclass(frozen=True, kw_only=True)
class DocumentSize:
    """Tokens of a document's parts, without padding, and its scale factor."""

    head_tokens: int
    context_tokens: int
    block_tokens: int
    k: int


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """A document of a file, some of its questions, and what is read raw before each."""

    file: QuestionFile
    document: int
    questions: list[int]
    spans: list[list[tuple[int, int]]]

    def block_tokens(self) -> NDArray[np.int64]:
        """(Q,) of each question with its spans."""
        mark = len(self.file.mark)
        before = [sum(mark + end - start for start, end in spans) for spans in self.spans]
        asked = np.diff(self.file.blocks.starts)[self.questions]
        return asked + np.array(before, dtype=np.int64)

    def blocks(self, context: Tensor) -> list[Tensor]:
        """Spans of a context (n,), question, answer and end of the turn, Q times (l,)."""
        mark = torch.from_numpy(self.file.mark)
        return [
            torch.cat([raw_tokens(context, spans, mark), self.file.blocks[question]])
            for question, spans in zip(self.questions, self.spans, strict=True)
        ]


class Questions(Dataset[Document]):
    """Documents drawn at random, a scale factor and at most `MAX_QUESTIONS` of the questions each.

    Documents whose numbers share `i // batch_size` share the scale factor.

    Args:
        files: that they are drawn from.
        scale_factors: k is drawn from these.
        span_tokens: the most tokens of a context that are read raw before a question, drawn from
            these once a document; 0 is rows alone.
        batch_size: of the training.
        seed: of the draws.
        first: scale factors with which the training begins.
    """

    def __init__(
        self,
        files: Sequence[QuestionFile],
        *,
        scale_factors: Sequence[int],
        span_tokens: Sequence[int] = (0,),
        batch_size: int = 1,
        seed: int = 0,
        first: FirstFactors | None = None,
    ) -> None:
        self.first = first
        self.files, self.scale_factors = list(files), list(scale_factors)
        self.span_tokens = list(span_tokens)
        self.batch_size, self.seed = batch_size, seed
        self.ends = np.cumsum([len(file) for file in files])

    def _draw(self, index: int) -> _Drawn:
        rng = np.random.default_rng((self.seed, 3, index))
        place = int(rng.integers(self.ends[-1]))
        number = int(np.searchsorted(self.ends, place, side="right"))
        file = self.files[number]
        document = place - int(self.ends[number]) + len(file)
        first, last = (int(each) for each in file.first_question[document : document + 2])
        questions = rng.permutation(np.arange(first, last))[:MAX_QUESTIONS].tolist()
        most = int(rng.choice(self.span_tokens)) if self._scale_factor(index) > 1 else 0
        spans = [self._spans(file, document, question, most) for question in questions]
        some = _MAX_BESIDE_SPANS if any(spans) else MAX_QUESTIONS
        return _Drawn(file=file, document=document, questions=questions[:some], spans=spans[:some])

    def _spans(
        self, file: QuestionFile, document: int, question: int, most: int
    ) -> list[tuple[int, int]]:
        if not most:
            return []
        ends, order = file.piece_ends[document].tolist(), file.piece_orders[question].tolist()
        return spans_within(ends, order, most, len(file.mark))

    def num_predicted(self, index: int) -> int:
        """Tokens of the answers that document `index` asks for."""
        drawn = self._draw(index)
        return int(drawn.file.num_answer[drawn.questions].sum())

    def __getitem__(self, index: int) -> Document:
        drawn = self._draw(index)
        context = drawn.file.contexts[drawn.document]
        blocks = torch.nn.utils.rnn.pad_sequence(drawn.blocks(context), batch_first=True)
        places, ends = torch.arange(blocks.shape[1]), torch.from_numpy(drawn.block_tokens())
        starts = ends - torch.from_numpy(drawn.file.num_answer[drawn.questions])
        return Document(
            head=torch.from_numpy(drawn.file.head),
            context=context,
            blocks=blocks,
            answers=(places >= starts[:, None]) & (places < ends[:, None]),
            k=self._scale_factor(index),
        )

    def _scale_factor(self, index: int) -> int:
        draw = np.random.default_rng((self.seed, 4, index // self.batch_size))
        return int(draw.choice(factors_of(index, self.scale_factors, self.first)))

    def size(self, index: int) -> DocumentSize:
        """How large document `index` is; its tokens are not read."""
        drawn = self._draw(index)
        start, end = drawn.file.contexts.starts[drawn.document : drawn.document + 2]
        return DocumentSize(
            head_tokens=len(drawn.file.head),
            context_tokens=int(end - start),
            block_tokens=int(drawn.block_tokens().sum()),
            k=self._scale_factor(index),
        )


class Mixed(Dataset[Instance | Document]):
    """Instances of text and documents with questions, batch by batch one or the other.

    Args:
        texts: instances.
        questions: documents; None: there is text alone.
        share: of the batches that are questions.
    """

    def __init__(self, texts: Instances, questions: Questions | None, share: float) -> None:
        self.texts, self.questions, self.share = texts, questions, share

    def __len__(self) -> int:
        return len(self.texts)

    def asks(self, index: int) -> bool:
        """Whether number `index` is a document with questions."""
        if self.questions is None:
            return False
        draw = np.random.default_rng((self.texts.seed, 5, index // self.texts.batch_size))
        return bool(draw.random() < self.share)

    def num_predicted(self, index: int, one_stream: bool = False) -> tuple[int, int]:
        """Tokens that number `index` predicts, and how many of them are of answers."""
        if self.asks(index):
            assert self.questions is not None
            count = self.questions.num_predicted(index)
            return count, count
        return self.texts.shape(index).num_predicted(one_stream), 0

    def __getitem__(self, index: int) -> Instance | Document:
        if self.asks(index):
            assert self.questions is not None
            return self.questions[index]
        return self.texts[index]


def collate(drawn: Sequence[Instance | Document]) -> dict[str, Any]:
    """One batch, all instances or all documents, with the scale factor that it shares.

    Instances become `token_ids` (B, N, L); documents, which do not stack, the list `documents`.
    """
    k = drawn[0].k
    if isinstance(drawn[0], Instance):
        return {"token_ids": torch.stack([each.token_ids for each in drawn]), "k": k}  # type: ignore[union-attr]
    names = ("head", "context", "blocks", "answers")
    return {"documents": [{name: getattr(each, name) for name in names} for each in drawn], "k": k}
