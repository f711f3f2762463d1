"""Averages the weights of two embedders of one reader: W = (1 - share) * FIRST + share * SECOND.

    python scripts/average_embedders.py runs/text/embedder runs/questions/embedder --share 0.5 \
        --out runs/average

Weights that one run trained on from those of another lie in one basin, and their average keeps
more of what each can do than either (Wortsman et al. 2022, arXiv 2109.01903). The training record
is that of the embedder with more tokens.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from extensible_embedding import ExtensibleEmbedder, Reader
from extensible_embedding.errors import InputError, MismatchError


def main() -> None:
    """Loads, averages and saves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--share", type=float, default=0.5, help="of the second")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--reader", default="default")
    options = parser.parse_args()
    reader = Reader.from_pretrained(options.reader)
    first, second = (
        ExtensibleEmbedder.from_pretrained(path, reader) for path in (options.first, options.second)
    )
    average(first, second, options.share).save_pretrained(options.out)
    print(f"wrote {options.out}")


@torch.no_grad()
def average(
    first: ExtensibleEmbedder, second: ExtensibleEmbedder, share: float
) -> ExtensibleEmbedder:
    """The first embedder, its weights moved by `share` of the way to the second's.

    Raises:
        InputError: the share is not between 0 and 1.
        MismatchError: the embedders are made otherwise.
    """
    if not 0 <= share <= 1:
        raise InputError(f"A share is between 0 and 1, but it is {share}; give such a one.")
    if first.config != second.config:
        raise MismatchError(
            f"Embedders are averaged that are made alike, but these are {first.config} and "
            f"{second.config}; choose two of one run."
        )
    others = dict(second.named_parameters())
    for name, weight in first.named_parameters():
        weight.lerp_(others[name].to(weight.dtype), share)
    records = [dict(each.training_record) for each in (first, second)]
    first.training_record = max(records, key=lambda record: int(str(record.get("tokens", 0))))
    return first


if __name__ == "__main__":
    main()
