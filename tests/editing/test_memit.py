"""MEMIT's least squares: the theorems, and the method on a tiny model."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace

import batches
import pytest
import tiny
import torch
from batches import FACTS, Problem, plan_for
from safetensors.torch import load_file
from torch import Tensor

import editcl
from editcl.editing.batch import (
    SubjectKeys,
    earlier_moments,
    joint_directions,
    subject_groups,
)
from editcl.editing.contexts import rephrasings
from editcl.editing.covariance import Covariance, measure
from editcl.editing.essence import PUBLISHED
from editcl.editing.keys import subject_keys
from editcl.editing.memit import least_squares, memit, preserving, solve_spd
from editcl.editing.methods import PLAIN_PRESET
from editcl.editing.rome import mean_direction
from editcl.editing.trial import tried
from editcl.editing.values import optimise_values
from editcl.encoding import Sentence
from editcl.facts import Fact
from editcl.model import EditableModel
from editcl.update import WeightUpdate

PRESERVATION = 0.3


@pytest.fixture
def problem() -> Problem:
    return batches.problem()


def naive_lambda(problem: Problem) -> Tensor:
    """preservation * median of k^T C^-1 k, with an explicit inverse."""
    inverse = torch.linalg.inv(problem.moment)
    means = problem.keys.rows.reshape(3, 4, -1).mean(1)
    return PRESERVATION * torch.stack([k @ inverse @ k for k in means]).median()


def loss(problem: Problem, delta: Tensor) -> Tensor:
    """lambda tr(Delta^T C Delta) + sum over subjects of the mean of |Delta^T k - r|^2."""
    total = naive_lambda(problem) * torch.trace(delta.T @ problem.moment @ delta)
    for g, keys in enumerate(problem.keys.rows.reshape(3, 4, -1)):
        total = total + sum((k @ delta - problem.residual[g]).square().sum() for k in keys) / 4
    return total


def test_u_solves_the_normal_equations(problem: Problem) -> None:
    u = least_squares(problem.covariance, problem.keys, PRESERVATION)
    system = naive_lambda(problem) * problem.moment
    for key in problem.keys.rows:
        system = system + torch.outer(key, key) / 4
    means = problem.keys.rows.reshape(3, 4, -1).mean(1).T
    assert torch.allclose(system @ u, means, atol=1e-6)
    assert torch.allclose(u, torch.linalg.inv(system) @ means, atol=1e-6)


def test_delta_minimises_the_objective(problem: Problem) -> None:
    delta = least_squares(problem.covariance, problem.keys, PRESERVATION) @ problem.residual
    delta.requires_grad_(True)
    least = loss(problem, delta)
    (gradient,) = torch.autograd.grad(least, delta)
    assert float(gradient.abs().max()) < 1e-5
    generator = torch.Generator().manual_seed(1)
    for size in (1e-3, 1e-2, 1.0):
        for _ in range(10):
            step = torch.randn(delta.shape, generator=generator, dtype=torch.float64)
            assert float(loss(problem, delta.detach() + size * step)) > float(least.detach())


@pytest.mark.parametrize("preservation", [0.0, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_one_key_is_met_up_to_one_over_one_plus_preservation_whatever_the_scales(
    preservation: float, scale: float
) -> None:
    one = batches.problem(n_subjects=1, n_contexts=1)
    keys = replace(one.keys, rows=scale * one.keys.rows)
    covariance = Covariance(0, one.covariance.moment / scale, 200, "random")
    u = least_squares(covariance, keys, preservation)
    met = float(u[:, 0] @ keys.rows[0])
    assert met == pytest.approx(1 / (1 + preservation), rel=1e-5)


def test_a_preservation_of_zero_is_plain_least_squares() -> None:
    one = batches.problem(n_contexts=1)
    u = least_squares(one.covariance, one.keys, 0.0)
    assert torch.allclose(u.T @ one.keys.means, torch.eye(3).double(), atol=1e-4)


def test_one_key_gives_the_direction_of_rome() -> None:
    one = batches.problem(n_subjects=1, n_contexts=1)
    u = least_squares(one.covariance, one.keys, PRESERVATION)[:, 0]
    rome = mean_direction(one.covariance, one.keys.rows)
    assert torch.allclose(u * (1 + PRESERVATION), rome, atol=1e-7)


def test_more_preservation_meets_the_keys_less_and_moves_other_text_less(
    problem: Problem,
) -> None:
    moved, missed = [], []
    for preservation in (0.01, 0.1, 1.0, 10.0):
        u = least_squares(problem.covariance, problem.keys, preservation)
        moved.append(float(torch.trace(u.T @ problem.moment @ u)))
        missed.append(float((u.T @ problem.keys.means - torch.eye(3)).norm()))
    assert moved == sorted(moved, reverse=True)
    assert missed == sorted(missed)


def test_solving_a_singular_system_is_finite() -> None:
    system = torch.zeros(4, 4)
    system[0, 0] = 2.0
    solved = solve_spd(system, torch.tensor([[2.0], [0.0], [0.0], [0.0]]))
    assert solved.dtype == torch.float64
    assert torch.allclose(solved[:, 0], torch.tensor([1.0, 0, 0, 0]).double(), atol=1e-6)


def test_batch_after_batch_with_earlier_keys_held_is_one_batch_of_all() -> None:
    """Recursive least squares: the theorem behind protecting what earlier edits wrote."""
    whole = batches.problem(n_subjects=6, n_contexts=1)
    rows, residual, weight = whole.keys.rows, whole.residual, 0.7
    first, second = (SubjectKeys.of(part[:, None], range(3)) for part in (rows[:3], rows[3:]))

    def directions(keys: SubjectKeys, earlier: dict[int, Tensor]) -> Tensor:
        mass = (keys.means * whole.covariance.solve(keys.means)).sum(0).median()
        solved = preserving({0: whole.covariance}, {0: keys}, weight / float(mass), earlier)
        return joint_directions({0: keys}, solved)

    delta = directions(first, {}) @ residual[:3]
    left = residual[3:] - rows[3:] @ delta  # v* of the second batch is sought on the edited model
    held = delta + directions(second, {0: first.moment}) @ left
    system = weight * whole.moment + rows.T @ rows
    assert torch.allclose(held, torch.linalg.solve(system, rows.T @ residual), atol=1e-6)
    free = delta + directions(second, {}) @ left
    assert not torch.allclose(free, held, atol=1e-2)  # the control: without, it is another matrix


# -- on a model ------------------------------------------------------------------------------------


def test_moments_of_earlier_facts_do_not_depend_on_how_many_are_in_memory(
    model: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_for(model, FACTS, (0, 1), contexts=("", "It rained all night."))
    plan = replace(plan, rephrased=[()] * len(FACTS))
    whole = earlier_moments(model, FACTS, plan, (0, 1))
    monkeypatch.setattr("editcl.editing.batch.HELD_AT_ONCE", 1)
    parts = earlier_moments(model, FACTS, plan, (0, 1))
    spoken = [rephrasings(fact) for fact in FACTS]
    keys = subject_keys(model, FACTS, [1], plan.contexts, spoken)[1]
    for layer in (0, 1):
        assert torch.allclose(whole[layer], parts[layer], rtol=1e-4, atol=1e-5)
    assert torch.equal(whole[1], SubjectKeys.of(keys, subject_groups(FACTS)).moment)
    assert earlier_moments(model, [], plan, (0, 1)) == {}


def test_earlier_facts_keep_their_values_better_than_without_protection(
    model: EditableModel,
) -> None:
    earlier = (Fact("Big Ben", "{} is in", "Oslo", "London"),)
    plan = plan_for(model, FACTS, (1,), preservation=0.1)
    free = memit(model, FACTS, plan)
    held = memit(model, FACTS, replace(plan, earlier=earlier))
    assert free.details["protected_facts"] == 0 and held.details["protected_facts"] == 1
    key = subject_keys(model, earlier, [1], [""])[1][:, 0]
    moved = [float((key @ s.updates[0].dense()).norm()) for s in (held, free)]
    assert moved[0] < 0.5 * moved[1]


def test_the_update_is_the_equation_on_the_models_keys(model: EditableModel) -> None:
    plan = plan_for(model, FACTS, (1,), contexts=("", "It rained all night."), preservation=0.2)
    solution = memit(model, FACTS, plan)
    assert solution.values is not None and solution.details["steps"] > 1
    keys = subject_keys(model, FACTS, [1], plan.contexts)[1]
    u = least_squares(plan.covariances[1], SubjectKeys.of(keys, [0, 1, 2]), 0.2)
    assert torch.allclose(solution.updates[0].left, u.float(), atol=1e-6)
    assert torch.equal(solution.updates[0].right.T, solution.values.delta)


@pytest.mark.parametrize("layers", [(1,), (0, 1)])
def test_the_new_objects_lead(model: EditableModel, layers: tuple[int, ...]) -> None:
    batches.assert_it_edits(model, layers, memit)


@pytest.mark.parametrize("layers", [(1,), (0, 1)])
def test_one_fact_of_a_batch_can_be_taken_out(tokenizer, layers: tuple[int, ...]) -> None:
    model, twin = (editcl.wrap(tiny.build("gpt2"), tokenizer) for _ in range(2))
    batches.assert_one_fact_comes_out(model, twin, FACTS, layers, memit)


# -- parity with the authors' code ----------------------------------------------------------------


def test_values_and_updates_are_those_of_the_authors_code(shared) -> None:
    folder = shared("parity")
    cases = json.loads((folder / "cases.json").read_text())
    expected = load_file(folder / "memit.safetensors")
    model = editcl.load(folder / "model")
    facts = [Fact(r["subject"], r["prompt"], r["target_new"]["str"]) for r in cases["requests"]]
    contexts = [c.replace("{}", "").strip() for c in cases["contexts_memit"]]
    tokens = load_file(folder / "covariance.safetensors")["token_ids"].tolist()
    found = measure(model, [1, 2], tokens)

    values = optimise_values(
        model, facts, 2, contexts, [PUBLISHED] * len(facts), PLAIN_PRESET.batch
    )
    hidden = torch.stack([hidden_at_subject(model, fact, 2) for fact in facts])
    z = torch.stack([expected[f"z.{i}"] for i in range(len(facts))])
    assert relative(hidden + values.delta, z) < 1e-2
    assert relative(hidden, z) > 0.1, "the values have moved the hidden states"

    with ExitStack() as stack:
        for layer in (1, 2):
            own = subject_keys(model, facts, [layer], contexts)[layer]
            # Theirs is the mean of the bare prompt's key and of the mean of the others.
            means = (own[:, :1] + own[:, 1:].mean(1, keepdim=True)) / 2
            keys = SubjectKeys.of(means, range(len(facts)))
            solved = found[layer].solve(keys.means)
            mass = float((keys.means * solved).sum(0).median())
            weight = cases["memit"]["mom2_update_weight"] / mass  # the paper's lambda
            u = least_squares(found[layer], keys, weight).float()
            assert relative(u, expected[f"adj_k.{layer}"]) < 1e-3
            name = model.down_projection(layer).name
            update = WeightUpdate(name, u, expected[f"resid.{layer}"])
            assert relative(update.dense().T, expected[f"update.{layer}"]) < 1e-3
            stack.enter_context(tried(model, [update]))


def hidden_at_subject(model: EditableModel, fact: Fact, layer: int) -> Tensor:
    (row,) = model.encode([Sentence(fact.prompt, fact.subject)])
    name = f"blocks.{layer}.hook_resid_post"
    return model.activations(model.pad([row.ids]), [name])[name][0, row.subject_last]


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())
