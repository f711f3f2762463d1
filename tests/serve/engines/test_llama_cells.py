"""Cells are given out, shared and freed; nothing of llama.cpp is needed."""

from __future__ import annotations

import torch

from extensible_embedding.serve.engines.llama_cells import Cells
from extensible_embedding.serve.engines.prefix_cache import Shared


class Owners:
    """Who owns which cell, as llama.cpp keeps it."""

    def __init__(self):
        self.cells: dict[int, list[object]] = {}

    def copy(self, source, target, num_rows):
        assert not self.cells.get(target)
        self.cells[target] = self.cells[source][:num_rows]

    def remove(self, sequence):
        self.cells[sequence] = []

    def write(self, sequence, count):
        self.cells.setdefault(sequence, []).extend(object() for _ in range(count))

    @property
    def num_owned(self):
        return len({id(cell) for owned in self.cells.values() for cell in owned})


def make(num_cells=100, num_requests=4, num_prefixes=3):
    owners = Owners()
    cells = Cells(owners, num_cells=num_cells, num_requests=num_requests, num_prefixes=num_prefixes)
    return cells, owners


def read(cells, owners, num_rows, num_new, prefixes=()):
    """Takes cells for a request and reads all of it."""
    held = cells.take(num_rows, num_new, prefixes)
    if held is not None:
        owners.write(held.sequence, num_rows + num_new - held.num_reused)
        if prefixes:
            cells.keep(held, prefixes[-1])
    return held


BOOK = [Shared(b"head", 3), Shared(b"book", 40)]
OTHER = [Shared(b"head", 3), Shared(b"other", 30)]


def test_a_second_request_on_the_same_prefix_reads_the_rest():
    cells, owners = make()
    first = read(cells, owners, 45, 10, BOOK)
    second = read(cells, owners, 50, 5, BOOK)
    assert (first.num_reused, second.num_reused) == (0, 40)
    assert owners.num_owned == cells.num_used == 40 + 15 + 15


def test_what_is_kept_outlives_its_request():
    cells, owners = make()
    cells.release(read(cells, owners, 45, 10, BOOK))
    assert owners.num_owned == cells.num_used == 40
    assert read(cells, owners, 45, 10, BOOK).num_reused == 40


def test_a_prompt_that_is_shared_whole_reads_its_last_row_again():
    cells, owners = make()
    cells.release(read(cells, owners, 40, 10, BOOK))
    assert read(cells, owners, 40, 10, BOOK).num_reused == 39
    assert owners.num_owned == cells.num_used + 1


def test_a_longer_prefix_goes_on_from_a_shorter_one():
    cells, owners = make()
    cells.release(read(cells, owners, 45, 10, BOOK))
    longer = read(cells, owners, 75, 5, [*BOOK, Shared(b"both", 70)])
    assert longer.num_reused == 40
    cells.release(longer)
    assert cells.num_kept == 2
    assert owners.num_owned == cells.num_used == 70


def test_the_prefix_used_longest_ago_makes_room():
    cells, owners = make()
    cells.release(read(cells, owners, 45, 10, BOOK))
    cells.release(read(cells, owners, 35, 10, OTHER))
    assert read(cells, owners, 45, 10, BOOK).num_reused == 40
    assert read(cells, owners, 35, 10) is not None  # 55 + 45 rows: OTHER has been forgotten
    assert cells.num_kept == 1
    assert owners.num_owned == cells.num_used == 100


def test_no_more_prefixes_are_kept_than_asked_for():
    cells, owners = make(num_prefixes=1)
    for prefixes in (BOOK, OTHER, BOOK):
        held = read(cells, owners, 45, 5, prefixes)
        assert held.num_reused == 0
        cells.release(held)
    assert cells.num_kept == 1


def test_with_no_prefixes_nothing_is_kept():
    cells, owners = make(num_prefixes=0)
    cells.release(read(cells, owners, 45, 5, BOOK))
    assert owners.num_owned == cells.num_used == 0


def test_where_running_requests_hold_too_much_nothing_is_forgotten():
    cells, owners = make()
    cells.release(read(cells, owners, 32, 1, OTHER))
    running = read(cells, owners, 50, 10)
    assert cells.take(50, 10, ()) is None
    assert cells.num_kept == 1
    cells.release(running)
    assert cells.take(50, 10, ()) is not None


def test_no_more_requests_run_than_asked_for():
    cells, _ = make(num_requests=2)
    assert [cells.take(5, 5, ()) is None for _ in range(3)] == [False, False, True]


def test_sequences_are_never_given_twice_and_cells_never_overrun():
    generator = torch.Generator().manual_seed(0)
    cells, owners = make(num_cells=120, num_requests=3, num_prefixes=2)
    running = []
    for _ in range(500):
        a, b, c = torch.randint(0, 40, (3,), generator=generator).tolist()
        book = a % 4
        prefixes = [Shared(b"%d" % book, 10 + book), Shared(b"%d more" % book, 30 + book)][: c % 3]
        held = read(cells, owners, 40 + b, 1 + c, prefixes)
        if held is not None:
            running.append(held)
        elif running:
            cells.release(running.pop(a % len(running)))
        assert len({each.sequence for each in running}) == len(running)
        assert cells.num_used <= 120
        assert owners.num_owned <= 120 + 3
    for held in running:
        cells.release(held)
    assert owners.num_owned == cells.num_used
