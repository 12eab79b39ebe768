from __future__ import annotations

import pytest
import torch

from editcl.errors import NonFiniteError
from editcl.update import SHARED, WeightUpdate


def update(n_facts: int = 3, dtype: torch.dtype = torch.float32) -> WeightUpdate:
    generator = torch.Generator().manual_seed(n_facts)
    left = torch.randn(8, n_facts, generator=generator)
    right = torch.randn(5, n_facts, generator=generator)
    return WeightUpdate("w", left.to(dtype), right.to(dtype))


def test_the_change_is_the_sum_of_one_outer_product_per_fact() -> None:
    change = update()
    columns = [torch.outer(change.left[:, i], change.right[:, i]) for i in range(change.rank)]
    torch.testing.assert_close(change.dense(), torch.stack(columns).sum(0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_norm_is_that_of_the_dense_change(dtype: torch.dtype) -> None:
    change = update(dtype=dtype)
    assert change.dense().dtype == torch.float32
    assert change.norm() == pytest.approx(float(change.dense().norm()), rel=1e-5)


@pytest.mark.parametrize("rank", [0, 1, 3, 4, 40])
@pytest.mark.parametrize("block", [1, 12, 1 << 20])
def test_the_norm_is_the_same_by_gram_matrices_and_by_the_product(
    monkeypatch: pytest.MonkeyPatch, rank: int, block: int
) -> None:
    monkeypatch.setattr("editcl.update._ELEMENTS_PER_BLOCK", block)
    change = update(rank)
    naive = (change.left.double() @ change.right.double().T).norm()
    assert change.norm() == pytest.approx(float(naive), rel=1e-12)


def test_columns_may_be_owned_by_any_fact_or_shared_by_all() -> None:
    left, right = torch.zeros(8, 3), torch.zeros(5, 3)
    assert WeightUpdate("w", left, right, owner=(SHARED, 7, 7)).rank == 3
    for owner in ((0, 1), (0, 1, 2, 3), (0, 1, -2), ()):
        with pytest.raises(AssertionError, match="owner"):
            WeightUpdate("w", left, right, owner=owner)


def test_a_change_of_no_facts_is_nothing() -> None:
    change = WeightUpdate("w", torch.zeros(8, 0), torch.zeros(5, 0))
    assert change.rank == 0
    assert change.norm() == 0
    assert not change.dense().any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", ["left", "right"])
def test_factors_that_are_not_finite_are_refused(value: float, side: str) -> None:
    factors = {"left": torch.ones(8, 1), "right": torch.ones(5, 1)}
    factors[side][2] = value
    with pytest.raises(NonFiniteError, match=f"the {side} factor of the update of w"):
        WeightUpdate("w", factors["left"], factors["right"])


def test_factors_of_different_numbers_of_facts_are_refused() -> None:
    with pytest.raises((AssertionError, TypeError)):
        WeightUpdate("w", torch.zeros(8, 2), torch.zeros(5, 3))
