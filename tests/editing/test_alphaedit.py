"""AlphaEdit: updates in the null space of C, and keys of earlier edits that keep their values."""

from __future__ import annotations

from dataclasses import replace

import batches
import pytest
import tiny
import torch
from batches import FACTS, Problem, plan_for
from torch import Tensor

import editcl
from editcl.editing.alphaedit import ENERGY, NullSpace, alphaedit, null_space, projected
from editcl.editing.batch import SubjectKeys, joint_directions
from editcl.editing.covariance import Covariance
from editcl.editing.keys import subject_keys
from editcl.editing.trial import tried
from editcl.facts import Fact
from editcl.model import EditableModel

EARLIER = (
    Fact("München", "{} liegt in", "Rome", "Bayern"),
    Fact("The Brücke", "{} is in the city of", "Paris", "Rome"),
)


@pytest.fixture
def problem() -> Problem:
    return batches.problem()


# -- the projection --------------------------------------------------------------------------------


@pytest.mark.parametrize("energy", [0.0, 0.01, 0.1, 0.5, 1.0])
def test_the_rank_is_that_of_a_naive_count(problem: Problem, energy: float) -> None:
    basis = null_space(problem.covariance, energy=energy)
    eigenvalues = sorted(torch.linalg.svdvals(problem.moment).tolist())
    rank, held = 0, 0.0
    for value in eigenvalues:
        held += value
        rank += held <= (energy + 1e-9) * sum(eigenvalues)
    assert basis.shape == (12, max(1, rank))
    assert torch.allclose(basis.T @ basis, torch.eye(basis.shape[1]).double(), atol=1e-9)
    share = torch.trace(basis.T @ problem.moment @ basis) / torch.trace(problem.moment)
    assert float(share) <= energy + 1e-9 or basis.shape[1] == 1


def test_the_rank_does_not_depend_on_the_scale_of_the_keys(problem: Problem) -> None:
    larger = Covariance(0, 1e4 * problem.covariance.moment, 200, "random")
    assert null_space(larger).shape == null_space(problem.covariance).shape


def test_the_rank_with_an_exact_null_space_is_at_least_its_dimension() -> None:
    keys = torch.randn(50, 12, generator=torch.Generator().manual_seed(0))
    keys[:, 7:] = 0
    basis = null_space(Covariance(0, keys.T @ keys / 50, 50, "random"), energy=1e-6)
    assert basis.shape[1] == 5
    assert float((keys.double() @ basis).abs().max()) < 1e-4


def one_layer(basis: Tensor, keys: SubjectKeys, earlier: Tensor | None, preservation: float):
    """U of the equation where one layer is edited."""
    own = {0: keys}
    return joint_directions(own, projected({0: NullSpace(basis, earlier)}, own, preservation))


def test_the_update_has_no_part_outside_the_null_space(problem: Problem) -> None:
    basis = null_space(problem.covariance, energy=0.1)
    u = one_layer(basis, problem.keys, None, 0.1)
    complement = torch.eye(12).double() - basis @ basis.T
    assert float((complement @ u).norm()) < 1e-12 * float(u.norm())


def test_it_is_the_papers_equation(problem: Problem) -> None:
    basis = null_space(problem.covariance, energy=0.1)
    other = torch.randn(12, 4, generator=torch.Generator().manual_seed(3)).double()
    P, K = basis @ basis.T, problem.keys.means
    ridge = 0.2 * (P @ K).square().sum(0).median()
    moment = problem.keys.moment + other @ other.T
    system = P @ moment @ P + ridge * torch.eye(12).double()
    expected = P @ torch.linalg.inv(system) @ P @ K
    found = one_layer(basis, problem.keys, other @ other.T, 0.2)
    assert torch.allclose(found, expected, atol=1e-7)


def test_protected_keys_change_their_value_less(problem: Problem) -> None:
    basis = null_space(problem.covariance, energy=0.3)
    generator = torch.Generator().manual_seed(3)
    other = problem.keys.means[:, :1] + torch.randn(12, 1, generator=generator).double()
    free = one_layer(basis, problem.keys, None, 0.1)
    held = one_layer(basis, problem.keys, 10 * other @ other.T, 0.1)
    assert float((held.T @ other).norm()) < 0.5 * float((free.T @ other).norm())


def test_one_key_is_met_up_to_one_over_one_plus_preservation() -> None:
    one = batches.problem(n_subjects=1, n_contexts=1)
    basis = null_space(one.covariance, energy=0.1)
    u = one_layer(basis, one.keys, None, 0.25)[:, 0]
    assert float(u @ one.keys.rows[0]) == pytest.approx(1 / 1.25, rel=1e-6)


# -- on a model ------------------------------------------------------------------------------------


def plan_with(model: EditableModel, **changes):
    """A tiny model's keys fill their space: most of it counts as null, or nothing is left."""
    return plan_for(model, FACTS, (1,), **changes)


def values_moved(model: EditableModel, solution, facts) -> Tensor:
    keys = subject_keys(model, facts, [1], [""])[1][:, 0]
    return (keys @ solution.updates[0].dense()).norm(dim=-1)


def test_earlier_facts_keep_their_values_better_than_without_protection(
    model: EditableModel,
) -> None:
    plan = plan_with(model, preservation=0.1)
    free = alphaedit(model, FACTS, plan)
    held = alphaedit(model, FACTS, replace(plan, earlier=EARLIER))
    assert free.details["protected_facts"] == 0 and held.details["protected_facts"] == 2
    assert bool((values_moved(model, held, EARLIER) < values_moved(model, free, EARLIER)).all())


def test_a_subject_that_is_edited_again_is_not_protected_against_it(
    model: EditableModel,
) -> None:
    again = Fact(FACTS[0].subject.upper(), "The name of {} is", "Rome", "Paris")
    plan = plan_with(model)
    solution = alphaedit(model, FACTS, replace(plan, earlier=(again, *EARLIER)))
    assert solution.details["protected_facts"] == 2
    without = alphaedit(model, FACTS, replace(plan, earlier=EARLIER))
    assert torch.equal(solution.updates[0].left, without.updates[0].left)


@pytest.mark.parametrize("layers", [(1,), (0, 1)])
def test_updates_lie_in_the_null_space_whose_rank_is_told(
    model: EditableModel, layers: tuple[int, ...]
) -> None:
    plan = plan_for(model, FACTS, layers)
    solution = alphaedit(model, FACTS, plan)
    for layer, update in zip(layers, solution.updates, strict=True):
        basis = null_space(plan.covariances[layer], energy=ENERGY)
        assert solution.details["null_space"][str(layer)] == basis.shape[1] < tiny.D_MLP
        outside = update.left.double() - basis @ (basis.T @ update.left.double())
        assert float(outside.norm()) < 1e-6 * float(update.left.norm())


@pytest.mark.parametrize("layers", [(1,), (0, 1)])
def test_the_new_objects_lead(model: EditableModel, layers: tuple[int, ...]) -> None:
    batches.assert_it_edits(model, layers, alphaedit)


def test_ordinary_keys_move_no_more_than_the_null_space_lets_them(model: EditableModel) -> None:
    """tr(Delta^T C Delta) <= lambda |Delta|^2, lambda the largest eigenvalue that is kept."""
    plan = plan_with(model)
    moment = plan.covariances[1].moment.double()
    rank = null_space(plan.covariances[1]).shape[1]
    largest = float(plan.covariances[1].eigen()[0][rank - 1])

    def moves(change: Tensor) -> float:
        return float(torch.trace(change.T @ moment @ change) / change.square().sum())

    assert rank < tiny.D_MLP, "something is left out"
    assert moves(alphaedit(model, FACTS, plan).updates[0].dense().double()) <= largest * (1 + 1e-6)
    keys = subject_keys(model, FACTS, [1], [""])[1][:, 0].double()
    # The control: along the keys themselves the bound doesn't hold.
    assert moves(keys.T) > largest


def test_one_fact_of_a_batch_can_be_taken_out(tokenizer) -> None:
    model, twin = (editcl.wrap(tiny.build("gpt2"), tokenizer) for _ in range(2))
    batches.assert_one_fact_comes_out(model, twin, FACTS, (0, 1), alphaedit)


def test_what_was_tried_is_gone(model: EditableModel) -> None:
    before = batches.state(model)
    with tried(model, alphaedit(model, FACTS, plan_with(model)).updates):
        assert batches.state(model) != before
    assert batches.state(model) == before
