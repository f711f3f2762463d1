"""LongBench (arXiv 2308.14508): twenty-one datasets of long documents, in English, Chinese, code.

A task is one of its published files (JSON lines with input, context, answers, length, dataset,
all_classes, _id), also of LongBench-E. Prompts, new tokens and scores are the authors'
(`longbench.json`, from their MIT-licensed repository THUDM/LongBench): the words before the
document are read raw, the document is the context, and the words after it are the question. As in
the authors' code, few-shot and code datasets get no chat template, and of a few-shot answer the
first line counts. Where a document does not fit, the authors cut out its middle; here that is
the method's business.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...errors import InputError
from ..scorers import longbench_classes, require
from .base import Example, Task, answers_of, read_lines, text_of, whole_number_of

_FIELDS = ("input", "context", "answers", "length", "dataset", "all_classes", "_id")
_FEW_SHOT = ("trec", "triviaqa", "samsum", "lsht")
_CODE = ("lcc", "repobench-p")
_CLASSES = "longbench_classes"
_PACKAGES = {
    "longbench_rouge": ("rouge",),
    "longbench_rouge_zh": ("rouge", "jieba"),
    "longbench_f1_zh": ("jieba",),
}


class LongBench(Task):
    """One dataset of LongBench.

    Args:
        path: its file.

    Raises:
        InputError: the file is not one of LongBench's.
        MissingExtraError: its score needs a package that is not installed.
    """

    name = "longbench"
    own_words = True

    def __init__(self, path: Path) -> None:
        self.path, self._rows = path, read_lines(path, _FIELDS)
        self.dataset = _dataset(path, self._rows)
        self.name = f"longbench-{self.dataset}"
        settings = _settings()[self.dataset]
        self.max_new_tokens = int(settings["max_new_tokens"])
        self.scorers = (settings["scorer"],)
        self.chat = self.dataset not in (*_FEW_SHOT, *_CODE)
        self._before, _, self._after = str(settings["prompt"]).partition("{context}")
        for package in _PACKAGES.get(settings["scorer"], ()):
            require(package)

    def examples(self) -> Iterator[Example]:
        """Rows of the file; a part of the task is a range of lengths, as in LongBench-E."""
        for row in self._rows:
            context = text_of(row, "context", self.path)
            yield Example(
                id=str(row["_id"]),
                group=hashlib.sha256(context.encode()).hexdigest()[:16],
                before=self._before,
                context=context,
                question=text_of(row, "input", self.path),
                answers=answers_of(row["answers"], self.path),
                classes=self._classes(row),
                setting=_range(whole_number_of(row, "length", self.path)),
            )

    def _classes(self, row: Mapping[str, object]) -> tuple[str, ...]:
        """What the answer is one of, where the score needs that.

        Raises:
            InputError: the file does not say.
        """
        if self.scorers != (_CLASSES,):
            return ()
        found = row["all_classes"]
        if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
            raise InputError(
                f"{self.dataset} is scored by a list of texts under `all_classes`, but one of "
                f"{str(self.path)!r} has {found!r}; take the file as its authors made it."
            )
        return tuple(found)

    def text(self, example: Example) -> str:
        """What stands after the document."""
        return self._after.replace("{input}", example.question)

    def score(self, scorer: str, prediction: str, example: Example) -> float:
        """The authors' score of the answer, or of its first line."""
        if self.dataset in _FEW_SHOT:
            prediction = prediction.lstrip("\n").split("\n")[0]
        if scorer == _CLASSES:
            return longbench_classes(prediction, example.answers, example.classes)
        return super().score(scorer, prediction, example)


def _settings() -> dict[str, dict[str, Any]]:
    """Prompt, new tokens and scorer of each dataset."""
    found: dict[str, dict[str, Any]] = json.loads(
        Path(__file__).with_suffix(".json").read_text(encoding="utf-8")
    )
    return found


def _dataset(path: Path, rows: list[dict[str, Any]]) -> str:
    """The one dataset that all rows are of."""
    names = sorted({str(row["dataset"]).removesuffix("_e") for row in rows})
    if len(names) != 1 or names[0] not in _settings():
        raise InputError(
            f"A file of LongBench holds one of {', '.join(_settings())}, but {str(path)!r} holds "
            f"{', '.join(names) or 'nothing'}; give one dataset's file, as it is published."
        )
    return names[0]


def _range(length: int) -> str:
    """Of words, in Chinese of characters."""
    if length < 4000:
        return "0-4k"
    return "4-8k" if length < 8000 else "8k+"
