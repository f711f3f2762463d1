"""RULER (arXiv 2404.06654): needles, variables, word counts and questions, at a chosen length.

A task is a file that NVIDIA/RULER's `prepare.py` wrote (JSON lines with index, input, outputs,
length, answer_prefix), with its model template `base`: the reader's own chat template is put
around it here.

An input has everything in one text. It is taken apart where the authors' templates put it
together, so that a method compresses the haystack and no instruction:

    before     the instruction that it begins with               raw, in the head
    context    haystack or documents; worked examples too        what a method reads its way
    question   from the last question of the template on         raw, in the tail
    prefix     how the authors let the answer begin              raw, after the chat template

Scores are the authors': the share of answers that stand in the prediction, for questions whether
one of them does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError
from .base import Example, Task, answers_of, read_lines, text_of, whole_number_of

_FIELDS = ("index", "input", "outputs", "length")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One of RULER's templates: how its inputs begin, and how the question does."""

    before: str
    question: str
    max_new_tokens: int
    scorer: str = "ruler_all"


_BLANK = r"\s+"  # prepare.py may have made blanks of line breaks
KINDS = {
    "niah": Kind(
        before=r"(?:Some|A) special magic [^.]*\. Make sure to memorize it\. I will quiz [^.]*\.",
        question=r"What (?:are all|is) the special magic ",
        max_new_tokens=128,
    ),
    "vt": Kind(
        before=r"Memorize and track the chain\(s\) of variable assignment [^.]*\.",
        question=r"Question: Find all variables ",
        max_new_tokens=30,
    ),
    "cwe": Kind(
        before=r"Below is a numbered list of words\.[^.]*\. Memorize [^.]*\.",
        question=r"Question: What are the 10 most common words ",
        max_new_tokens=120,
    ),
    "fwe": Kind(
        before=r"Read the following coded text [^.]*\. Find the three most [^.]*\.",
        question=r"Question: Do not provide any explanation\.",
        max_new_tokens=50,
    ),
    "qa": Kind(
        before=r"Answer the question based on the given documents\.[^.]*\."
        rf"{_BLANK}The following are given documents\.",
        question=r"Answer the question based on the given documents\.",
        max_new_tokens=32,
        scorer="ruler_part",
    ),
}
_NAMELESS = ("validation", "test", "train")


class Ruler(Task):
    """One task of RULER at one length.

    Args:
        path: its file. The name comes from the file, or from its folder where that is
            `validation.jsonl`.

    Raises:
        InputError: the file is not one of RULER's.
    """

    name = "ruler"
    own_words = True

    def __init__(self, path: Path) -> None:
        self.path, self._rows = path, read_lines(path, _FIELDS)
        self.kind = _kind(path, text_of(self._rows[0], "input", path) if self._rows else "")
        stem = path.parent.name if path.stem in _NAMELESS else path.stem
        longest = max(whole_number_of(row, "length", path) for row in self._rows)
        self.name = f"ruler-{stem}-{_round_length(longest)}"
        self.max_new_tokens = KINDS[self.kind].max_new_tokens
        self.scorers = (KINDS[self.kind].scorer,)

    def examples(self) -> Iterator[Example]:
        """Rows of the file, taken apart.

        Raises:
            InputError: an input is not of the template that the first one is of.
        """
        for row in self._rows:
            before, context, question = take_apart(
                text_of(row, "input", self.path), KINDS[self.kind]
            )
            yield Example(
                id=str(row["index"]),
                group=str(row["index"]),
                before=before,
                context=context,
                question=question,
                answers=answers_of(row["outputs"], self.path),
                answer_prefix=text_of(row, "answer_prefix", self.path, missing=""),
            )

    def text(self, example: Example) -> str:
        """The question, with the line break before it."""
        return example.question


def take_apart(text: str, kind: Kind) -> tuple[str, str, str]:
    """An input as (before, context, question), which together are the input.

    Raises:
        InputError: it is not of this template.
    """
    before = re.match(rf"\s*{kind.before}{_BLANK}", text)
    start = before.end() if before else 0
    questions = list(re.finditer(rf"\s+{kind.question}", text[start:]))
    if not before or not questions:
        raise InputError(
            f"An input of RULER begins and ends as its template does, but this one begins with "
            f"{text[:60]!r} and ends in {text[-60:]!r}; prepare the file with the template `base`."
        )
    end = start + questions[-1].start()
    return text[:start], text[start:end], text[end:]


def _kind(path: Path, text: str) -> str:
    for name, kind in KINDS.items():
        if re.match(rf"\s*{kind.before}", text):
            return name
    raise InputError(
        f"A file of RULER has inputs that begin as its templates do ({', '.join(KINDS)}), but the "
        f"first one of {str(path)!r} begins with {text[:60]!r}; prepare it with the template "
        "`base`."
    )


def _round_length(length: int) -> int:
    """The power of two that a file was made for: its inputs are a little shorter."""
    return 1 << max(0, length - 1).bit_length()
