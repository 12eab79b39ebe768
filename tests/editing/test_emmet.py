"""EMMET: equality constraints, and the identity that makes it MEMIT with another lambda."""

from __future__ import annotations

import batches
import pytest
import tiny
import torch
from batches import FACTS, Problem, plan_for

import editcl
from editcl.editing.batch import SubjectKeys
from editcl.editing.emmet import emmet, equality
from editcl.editing.keys import subject_keys
from editcl.editing.memit import least_squares
from editcl.editing.rome import mean_direction
from editcl.editing.trial import tried
from editcl.errors import EditclError
from editcl.facts import Fact
from editcl.model import EditableModel


@pytest.fixture
def problem() -> Problem:
    return batches.problem()


def test_the_equation_computed_naively(problem: Problem) -> None:
    keys, inverse = problem.keys.means, torch.linalg.inv(problem.moment)
    gram = keys.T @ inverse @ keys
    ridge = 0.3 * gram.diagonal().mean() * torch.eye(3)
    expected = inverse @ keys @ torch.linalg.inv(gram + ridge)
    assert torch.allclose(equality(problem.covariance, keys, ridge=0.3), expected, atol=1e-6)


def test_without_a_ridge_every_mean_key_is_met_exactly(problem: Problem) -> None:
    u = equality(problem.covariance, problem.keys.means, ridge=0.0)
    assert torch.allclose(u.T @ problem.keys.means, torch.eye(3).double(), atol=1e-9)


def test_it_is_the_smallest_change_in_the_metric_of_c_that_meets_the_keys(
    problem: Problem,
) -> None:
    keys = problem.keys.means
    delta = equality(problem.covariance, keys, ridge=0.0) @ problem.residual
    least = torch.trace(delta.T @ problem.moment @ delta)
    free = torch.linalg.svd(keys, full_matrices=True)[0][:, 3:]  # orthogonal to every key
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        step = torch.randn(9, delta.shape[1], generator=generator, dtype=torch.float64)
        other = delta + 0.1 * free @ step
        assert torch.allclose(keys.T @ other, problem.residual, atol=1e-8)
        assert float(torch.trace(other.T @ problem.moment @ other)) > float(least)


@pytest.mark.parametrize("ridge", [1e-3, 0.1, 3.0])
def test_memit_with_mean_keys_and_the_ridge_for_its_lambda_is_the_same(
    problem: Problem, ridge: float
) -> None:
    keys = problem.keys.means
    ours = equality(problem.covariance, keys, ridge=ridge)
    mass = (keys * torch.linalg.solve(problem.moment, keys)).sum(0)
    # MEMIT's lambda is in units of the median mass, the ridge in units of the mean.
    preservation = ridge * float(mass.mean() / mass.median())
    means = SubjectKeys(keys.T, torch.arange(3), torch.ones(3, dtype=torch.float64))
    theirs = least_squares(problem.covariance, means, preservation)
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def test_one_key_is_met_up_to_the_ridge_along_romes_direction() -> None:
    one = batches.problem(n_subjects=1)
    u = equality(one.covariance, one.keys.means, ridge=0.25)[:, 0]
    assert float(u @ one.keys.means[:, 0]) == pytest.approx(1 / 1.25)
    assert torch.allclose(1.25 * u, mean_direction(one.covariance, one.keys.rows), atol=1e-7)


# -- on a model ------------------------------------------------------------------------------------


def test_every_subjects_value_becomes_what_was_sought(model: EditableModel) -> None:
    plan = plan_for(model, FACTS, (1,), contexts=("", "It rained all night."))
    solution = emmet(model, FACTS, plan)
    assert solution.values is not None
    k_star = subject_keys(model, FACTS, [1], plan.contexts)[1].mean(1)
    before = k_star @ model.down_projection(1).weight
    with tried(model, solution.updates):
        moved = k_star @ model.down_projection(1).weight - before
    assert float((moved - solution.values.delta).norm() / solution.values.delta.norm()) < 0.05


def test_it_refuses_several_layers_and_more_subjects_than_a_key_can_tell_apart(
    model: EditableModel,
) -> None:
    with pytest.raises(EditclError, match=r"one layer, got \[0, 1\]"):
        emmet(model, FACTS, plan_for(model, FACTS, (0, 1)))
    many = [Fact(f"Tower {i}", "{} is in", "Rome") for i in range(tiny.D_MLP)]
    with pytest.raises(EditclError, match="64 subjects can't all be met"):
        emmet(model, many, plan_for(model, many, (1,)))


def test_the_new_objects_lead(model: EditableModel) -> None:
    batches.assert_it_edits(model, (1,), emmet)


def test_one_fact_of_a_batch_can_be_taken_out(tokenizer) -> None:
    model, twin = (editcl.wrap(tiny.build("gpt2"), tokenizer) for _ in range(2))
    batches.assert_one_fact_comes_out(model, twin, FACTS, (1,), emmet)
