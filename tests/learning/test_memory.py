"""Memories: uniform samples, quotas, and rows as tensors."""

from __future__ import annotations

import pytest
import torch

from editcl.learning.batches import Encoded
from editcl.learning.memory import from_tensors, quota, reservoir, to_tensors


def rows(task: str, n: int, begin: int = 0) -> list[Encoded]:
    return [Encoded((begin + i, 1, 2), 1, task) for i in range(n)]


def test_a_reservoir_keeps_each_row_with_the_same_probability() -> None:
    n, capacity, trials = 40, 8, 3000
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(n)
    for _ in range(trials):
        kept: list[Encoded] = []
        for begin, size in ((0, 15), (15, 5), (20, 20)):  # tasks of unlike size
            kept = reservoir(kept, begin, rows("t", size, begin), capacity, generator=generator)
        assert len(set(kept)) == capacity
        counts[[row.ids[0] for row in kept]] += 1
    expected = trials * capacity / n
    # Rows of one sample are drawn without repetition, which makes counts a little more even.
    chi_square = float(((counts - expected) ** 2 / expected).sum() / (1 - capacity / n))
    assert 15 < chi_square < 68  # the 0.1 % and 99.7 % points of 39 degrees of freedom


def test_the_chi_square_sees_a_sample_that_favours_the_newest() -> None:
    n, capacity, trials = 40, 8, 3000
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(n)
    for _ in range(trials):
        # Told that fewer rows were seen than were, each new row gets in too often.
        kept = reservoir([], 0, rows("t", 20), capacity, generator=generator)
        kept = reservoir(kept, 10, rows("t", 20, 20), capacity, generator=generator)
        counts[[row.ids[0] for row in kept]] += 1
    expected = trials * capacity / n
    assert float(((counts - expected) ** 2 / expected).sum() / (1 - capacity / n)) > 200


def test_a_reservoir_that_is_not_full_keeps_all() -> None:
    generator = torch.Generator().manual_seed(0)
    assert reservoir([], 0, rows("t", 5), 5, generator=generator) == rows("t", 5)


def test_quotas_are_equal_and_shrink() -> None:
    generator = torch.Generator().manual_seed(0)
    kept = quota([], rows("a", 50), 12, generator=generator)
    assert len(kept) == 12
    first = list(kept)
    kept = quota(kept, rows("b", 3), 12, generator=generator)
    assert [row.task for row in kept].count("a") == 6 and [r.task for r in kept].count("b") == 3
    assert [row for row in kept if row.task == "a"] == first[:6]
    kept = quota(kept, rows("c", 50), 12, generator=generator)
    assert [sum(row.task == task for row in kept) for task in "abc"] == [4, 3, 4]


def test_quotas_are_uniform_samples_of_their_task() -> None:
    generator, counts = torch.Generator().manual_seed(0), torch.zeros(20)
    for _ in range(2000):
        kept = quota([], rows("a", 20), 10, generator=generator)
        kept = quota(kept, rows("b", 20), 10, generator=generator)
        counts[[row.ids[0] for row in kept if row.task == "a"]] += 1
    expected = 2000 * 5 / 20
    assert float(((counts - expected) ** 2 / expected).sum()) < 43.8  # 0.1 % of 19 degrees


@pytest.mark.parametrize("kept", [[], rows("a", 2) + rows("", 1) + [Encoded((7, 8, 9, 9), 3, "b")]])
def test_rows_become_tensors_and_rows_again(kept) -> None:
    assert from_tensors(*to_tensors(kept)) == kept
