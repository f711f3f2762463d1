"""FairytaleQA (arXiv 2203.13947): questions on whole fairy tales, scored by ROUGE-L."""

from __future__ import annotations

from .base import Filler, ParquetTask


class FairytaleQa(ParquetTask):
    """Explicit and implicit questions; several answers may be right."""

    name = "fairytaleqa"
    prompt = "Answer in a few words. Question: {question}"
    scorers = ("rouge_l", "f1")
    filler = Filler.DOCUMENTS
