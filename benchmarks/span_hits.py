"""How often the raw spans that words find hold the answer, without a reader that reads them.

Contexts of a question file are joined to texts of `--context-tokens` tokens, BM25 ranks their
pieces by each question, and as many are taken as fit a room: pieces that end where lines and
sentences do, each with the one after it (`extensible_embedding.pieces`), and pieces of one size
each by itself. Counted are questions whose answer stands whole in one span, of those whose answer
stands in the text; a short answer may stand there by chance. What parts spans in a prompt is not
counted.

    python benchmarks/span_hits.py questions.parquet --rooms 256,768
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from extensible_embedding import Reader
from extensible_embedding.pieces import PIECE_TOKENS, best_fitting, cut, joined
from extensible_embedding.spans import rank_spans

Span = tuple[int, int]
Ranked = Callable[[Sequence[Span]], list[int]]
Choice = Callable[[Reader, Tensor, Ranked, int], list[Span]]


def main() -> None:
    """Runs the benchmark."""
    options = arguments()
    reader, drawn = Reader.from_pretrained(), random.Random(options.seed)
    found: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for task, rows in tasks(options.file).items():
        sample = drawn.sample(rows, min(options.num_questions, len(rows)))
        for row in track(sample, task, console=Console(stderr=True)):
            ids = joined_texts(reader, row, rows, options.context_tokens, drawn)
            answer = plain(row["answers"][0])
            if answer not in plain(reader.decode(ids)):
                continue

            def ranked(pieces: Sequence[Span], ids: Tensor = ids, row: Any = row) -> list[int]:
                texts = [reader.decode(ids[start:end]) for start, end in pieces]
                return rank_spans(texts, row["question"])

            for room in options.rooms:
                for name, choose in CHOICES.items():
                    spans = choose(reader, ids, ranked, room)
                    texts = [plain(reader.decode(ids[start:end])) for start, end in spans]
                    found[f"{name}, {room} tokens"][task].append(
                        any(answer in text for text in texts)
                    )
    show(found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="parquet: context, question, answers, task")
    parser.add_argument("--rooms", type=numbers, default=[256, 768], help="tokens of the spans")
    parser.add_argument("--context-tokens", type=int, default=8192, help="of the joined text")
    parser.add_argument("--num-questions", type=int, default=24, help="of each task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def numbers(text: str) -> list[int]:
    """Of a list with commas."""
    return [int(each) for each in text.split(",")]


def tasks(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows of a question file, by task."""
    by_task: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in pq.read_table(path).to_pylist():
        by_task[row["task"]].append(row)
    return by_task


def joined_texts(
    reader: Reader, row: dict[str, Any], rows: list[dict[str, Any]], most: int, drawn: random.Random
) -> Tensor:
    """Token ids of a question's context among others, in an order that is drawn."""
    others = [each["context"] for each in drawn.sample(rows, min(64, len(rows)))]
    texts, num_tokens = [], 0
    for text in dict.fromkeys([row["context"], *others]):
        texts.append(reader.encode(text + "\n\n"))
        num_tokens += len(texts[-1])
        if num_tokens >= most:
            break
    drawn.shuffle(texts)
    return torch.cat(texts)


def by_text(reader: Reader, ids: Tensor, ranked: Ranked, room: int) -> list[Span]:
    """Pieces as they are read, neighbours as one span."""
    pieces = cut(reader, ids)
    chosen = best_fitting(ranked(pieces), [end - start for start, end in pieces], room)
    return joined([pieces[number] for number in chosen])


def by_tokens(reader: Reader, ids: Tensor, ranked: Ranked, room: int) -> list[Span]:
    """Pieces of one size, whatever they cut, neighbours as one span."""
    pieces = list(pairwise([*range(0, len(ids), PIECE_TOKENS), len(ids)]))
    return joined([pieces[number] for number in sorted(ranked(pieces)[: room // PIECE_TOKENS])])


CHOICES: dict[str, Choice] = {"lines and sentences": by_text, f"{PIECE_TOKENS} each": by_tokens}


def plain(text: str) -> str:
    """In lower case, with single blanks."""
    return " ".join(text.lower().split())


def show(found: dict[str, dict[str, list[bool]]]) -> None:
    """Shares by task, and of all questions."""
    names = list(found)
    table = Table("task", "questions", *names)
    for task in next(iter(found.values()), {}):
        hits = [found[name][task] for name in names]
        table.add_row(task, str(len(hits[0])), *(f"{sum(each) / len(each):.2f}" for each in hits))
    every = [[hit for hits in found[name].values() for hit in hits] for name in names]
    if every:
        table.add_row(
            "all", str(len(every[0])), *(f"{sum(each) / len(each):.3f}" for each in every)
        )
    Console().print(table)


if __name__ == "__main__":
    main()
