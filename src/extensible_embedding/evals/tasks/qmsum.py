"""QMSum (arXiv 2104.05938): query-based summaries of meetings, scored by ROUGE-L."""

from __future__ import annotations

from .base import ParquetTask


class QmSum(ParquetTask):
    """A request about a meeting transcript, answered by a short summary."""

    name = "qmsum"
    prompt = "{question} Answer in one paragraph."
    max_new_tokens = 128
    scorers = ("rouge_l",)
