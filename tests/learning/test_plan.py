"""What each step sees."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from lessons import QUICK

from editcl.learning.batches import Encoded, epoch_order
from editcl.learning.plan import Plan, parts, split_held_out


@pytest.mark.parametrize("n_parts", [1, 2, 3])
def test_a_batch_is_cut_where_padding_costs_more_than_a_pass(n_parts) -> None:
    short = [Encoded((1,) * 10, 8) for _ in range(12)]
    long = [Encoded((1,) * 60, 40) for _ in range(2)]
    for pass_costs in (90, 10_000):
        found = list(parts(short + long, n_parts, pass_costs))
        assert Counter(row for part, _ in found for row in part) == Counter(short + long)
        assert sum(share for _, share in found) == pytest.approx(1.0)
        for part, share in found:
            assert share == sum(row.n_targets for row in part) / (12 * 2 + 2 * 20)
        mixed = [len({len(row.ids) for row in part}) > 1 for part, _ in found]
        assert any(mixed) == (pass_costs > 1000)
        assert len(found) == n_parts + (pass_costs < 1000)


def test_steps_go_through_epoch_after_epoch_and_any_can_be_asked_first() -> None:
    lengths = [3 + i % 7 for i in range(10)]
    settings = replace(QUICK, batch_size=2, accumulate=2, seed=5)
    wanted = [b for epoch in range(3) for b in epoch_order(lengths, 4, seed=5, epoch=epoch)]
    forward = Plan(lengths, settings)
    assert [forward.batch(step) for step in range(9)] == wanted
    assert [Plan(lengths, settings).batch(step) for step in (8, 2, 5)] == [
        wanted[step] for step in (8, 2, 5)
    ]


def test_equal_rows_are_held_out_together_and_at_least_one_is_left() -> None:
    rows = [Encoded((i // 3, 1), 1) for i in range(30)]
    own, held = split_held_out(rows, replace(QUICK, patience=1, held_out=0.3))
    assert len(held) == 3 and len(own) == 21 and not set(own) & set(held)
    own, held = split_held_out(rows[:6], replace(QUICK, patience=1, held_out=0.99))
    assert len(own) == 3 and len(held) == 1
    assert split_held_out(rows, QUICK) == (rows, [])
