"""The machinery of batch editors: subjects, their keys, and the residual over the layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import batches
import pytest
import tiny
import torch
from batches import FACTS, MATES, plan_for, state
from torch import Tensor

import editcl
from editcl.editing.batch import SubjectKeys, figures, look_ahead, spread, subject_groups
from editcl.editing.keys import subject_keys
from editcl.editing.memit import memit, published
from editcl.editing.rome import mean_direction
from editcl.editing.trial import tried
from editcl.editing.values import Values
from editcl.encoding import Sentence
from editcl.errors import EditclError
from editcl.facts import Fact
from editcl.model import EditableModel


def exact(layer: int, keys: SubjectKeys) -> Tensor:
    """u with u_g^T k_g = 1 and 0 at the other subjects' mean keys."""
    return torch.linalg.pinv(keys.means).T


def hidden(model: EditableModel, fact: Fact, layer: int) -> Tensor:
    """The residual stream behind a layer at the bare prompt's last subject token."""
    (row,) = model.encode([Sentence(fact.prompt, fact.subject)])
    name = f"blocks.{layer}.hook_resid_post"
    _, cache = model.run_with_cache(model.pad([row.ids]), [name])
    return cache[name][0, row.subject_last]


# -- subjects and their keys -----------------------------------------------------------------------


def test_facts_of_one_subject_share_a_number_whatever_the_case_of_its_letters() -> None:
    facts = [Fact(name, "{} is", "x") for name in ("Paris", "Rome", "PARIS", "Ulm", "rome")]
    assert subject_groups(facts) == [0, 1, 0, 2, 1]
    assert subject_groups([]) == []


def test_subject_keys_are_means_over_facts_and_contexts() -> None:
    keys = torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(0))
    groups = [0, 1, 0, 2]
    found = SubjectKeys.of(keys, groups)
    assert found.rows.dtype == torch.float64
    moment = torch.zeros(6, 6, dtype=torch.float64)
    for group in range(3):
        own = [keys[i, j].double() for i in range(4) if groups[i] == group for j in range(3)]
        assert torch.allclose(found.means[:, group], sum(own) / len(own))  # type: ignore[arg-type]
        moment += sum(torch.outer(k, k) for k in own) / len(own)
    assert torch.allclose(found.moment, moment)


# -- the spread over layers ------------------------------------------------------------------------


@pytest.fixture
def deep(tokenizer) -> EditableModel:
    """One block more: what the last one writes at the subject changes no later token."""
    return editcl.wrap(tiny.build("gpt2", n_layer=4), tokenizer)


@pytest.mark.parametrize("layers", [(1,), (0, 1), (0, 1, 2)])
def test_the_hidden_state_at_the_last_layer_moves_by_delta_and_the_model_is_as_before(
    deep: EditableModel, layers: tuple[int, ...]
) -> None:
    model = deep
    before = state(model)
    solution = spread(model, FACTS, plan_for(model, FACTS, layers), exact)
    assert state(model) == before
    assert solution.values is not None
    start = [hidden(model, fact, layers[-1]) for fact in FACTS]
    with tried(model, solution.updates):
        for i, fact in enumerate(FACTS):
            moved = hidden(model, fact, layers[-1]) - start[i]
            delta = solution.values.delta[i]
            # The last layer is met exactly given what the lower ones did: the residual was
            # measured anew.
            assert float((moved - delta).norm() / delta.norm()) < 1e-3
    assert state(model) == before


def test_each_layer_gets_its_share_of_what_is_left_measured_anew(deep: EditableModel) -> None:
    model = deep
    layers = (0, 1, 2)
    plan = plan_for(model, FACTS, layers)
    halves = spread(model, FACTS, plan, lambda *a: 0.5 * exact(*a))  # too weak on purpose
    assert halves.values is not None
    start = torch.stack([hidden(model, fact, 2) for fact in FACTS])
    for i, update in enumerate(halves.updates):
        with tried(model, halves.updates[:i]):
            now = torch.stack([hidden(model, fact, 2) for fact in FACTS])
            keys = subject_keys(model, FACTS, [layers[i]], plan.contexts)[layers[i]]
        remaining = halves.values.delta - (now - start)
        assert torch.allclose(update.right.T, remaining / (3 - i), atol=1e-4)
        expected = 0.5 * exact(layers[i], SubjectKeys.of(keys, [0, 1, 2])).float()
        assert torch.allclose(update.left, expected, atol=1e-4)


@pytest.mark.parametrize("layers", [(0,), (0, 1), (0, 1, 2)])
def test_looking_ahead_is_the_ridge_regression_on_the_keys_of_all_layers(
    deep: EditableModel, layers: tuple[int, ...]
) -> None:
    plan = plan_for(deep, FACTS, layers)
    generator = torch.Generator().manual_seed(0)
    metrics = {}
    for layer in layers:
        root = torch.randn(tiny.D_MLP, tiny.D_MLP, generator=generator).double()
        metrics[layer] = root @ root.T + torch.eye(tiny.D_MLP).double()
    asked: list[list[int]] = []

    def metric(keys: Mapping[int, SubjectKeys]) -> dict[int, Tensor]:
        asked.append(list(keys))
        return {m: torch.linalg.solve(metrics[m], own.means) for m, own in keys.items()}

    before = state(deep)
    first, *rest = look_ahead(deep, FACTS, plan, metric).updates
    assert state(deep) == before
    assert asked == [list(layers[i:]) for i in range(len(layers))]
    assert len(rest) == len(layers) - 1

    # Naively: one regression on the stacked keys, of which the first layer's part is written.
    found = subject_keys(deep, FACTS, layers, plan.contexts)
    keys = torch.cat([found[layer].double().mean(1) for layer in layers], 1)
    system = torch.block_diag(*metrics.values()) + keys.T @ keys
    u = torch.linalg.solve(system, keys.T)[: tiny.D_MLP]
    assert torch.allclose(first.left.double(), u, atol=1e-5)


def test_memit_at_one_layer_is_the_papers_equation_either_way(model: EditableModel) -> None:
    plan = plan_for(model, FACTS, (1,))
    (ours,), (theirs,) = memit(model, FACTS, plan).updates, published(model, FACTS, plan).updates
    assert torch.allclose(ours.left, theirs.left, rtol=1e-4, atol=1e-6)
    assert torch.equal(ours.right, theirs.right)


def test_the_share_is_the_callers(model: EditableModel) -> None:
    asked: list[int] = []

    def share(left: int) -> float:
        asked.append(left)
        return 4.0

    solution = spread(model, FACTS, plan_for(model, FACTS, (0, 1)), exact, share=share)
    assert asked == [2, 1] and solution.values is not None
    assert torch.allclose(solution.updates[0].right.T, solution.values.delta / 4)


def test_an_error_on_the_way_leaves_the_model_as_it_was(model: EditableModel) -> None:
    before = state(model)

    def fails_above(layer: int, keys: SubjectKeys) -> Tensor:
        if layer:
            raise EditclError("no")
        return exact(layer, keys)

    with pytest.raises(EditclError, match="no"):
        spread(model, FACTS, plan_for(model, FACTS, (0, 1)), fails_above)
    assert state(model) == before


# -- facts of one subject --------------------------------------------------------------------------


def test_facts_of_one_subject_have_one_key_and_the_sum_of_their_deltas(
    model: EditableModel,
) -> None:
    seen: list[SubjectKeys] = []

    def directions(layer: int, keys: SubjectKeys) -> Tensor:
        seen.append(keys)
        return exact(layer, keys)

    facts = (FACTS[0], replace(MATES[1], subject=FACTS[0].subject), FACTS[1])
    solution = spread(model, facts, plan_for(model, facts, (1,)), directions)
    (update,), values = solution.updates, solution.values
    assert values is not None and seen[0].means.shape[1] == 2
    assert torch.equal(update.left[:, 0], update.left[:, 1])
    assert torch.equal(update.right.T, values.delta)
    key = seen[0].means[:, 0].float()
    moved = key @ update.dense()
    assert torch.allclose(moved, values.delta[0] + values.delta[1], atol=1e-4)


def test_mates_part_what_the_lower_layers_reached(deep: EditableModel) -> None:
    model = deep
    facts = (FACTS[0], replace(MATES[1], subject=FACTS[0].subject), FACTS[1])
    solution = spread(model, facts, plan_for(model, facts, (0, 2)), exact)
    assert solution.values is not None
    delta = solution.values.delta
    start = torch.stack([hidden(model, fact, 2) for fact in facts])
    with tried(model, solution.updates[:1]):
        reached = torch.stack([hidden(model, fact, 2) for fact in facts]) - start
    right = solution.updates[1].right.T
    assert torch.allclose(right[2], delta[2] - reached[2], atol=1e-4)
    # Together they still ask for the sum of the deltas less what is there on average.
    mean = (reached[0] + reached[1]) / 2
    assert torch.allclose(right[0] + right[1], delta[0] + delta[1] - mean, atol=1e-4)
    # Each has an even part of it.
    assert torch.allclose(delta[0] - right[0], mean / 2, atol=1e-4)
    assert torch.allclose(delta[1] - right[1], mean / 2, atol=1e-4)


# -- where several layers can't be -----------------------------------------------------------------


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_models_that_rescale_what_an_mlp_writes_take_one_layer(name: str, tokenizer) -> None:
    model = editcl.wrap(tiny.build(name), tokenizer)
    before = state(model)
    plan = plan_for(model, FACTS, (0, 1))
    plan = replace(plan, settings=replace(plan.settings, steps=3))
    if name in ("gemma2", "gemma3", "olmo2"):
        with pytest.raises(EditclError, match=r"layers=\[1\]"):
            spread(model, FACTS, plan, exact)
        plan = replace(plan, layers=(1,))
    assert len(spread(model, FACTS, plan, exact).updates) == len(plan.layers)
    assert state(model) == before


# -- figures and rollback --------------------------------------------------------------------------


def test_figures_are_medians_and_count_what_was_not_reached() -> None:
    values = Values(
        delta=torch.tensor([[3.0, 4.0], [6.0, 8.0], [0.0, 1.0]]),
        bare=torch.ones(3, 2),
        residual_norm=torch.tensor([5.0, 5.0, 1.0]),
        loss=torch.zeros(3),
        object_loss=torch.tensor([0.1, 2.0, 0.2]),
        steps=torch.tensor([4, 40, 9]),
    )
    expected = {"steps": 9.0, "object_loss": 0.2, "delta_over_residual": 1.0, "unreached": 1}
    assert figures(values) == pytest.approx(expected)


@pytest.mark.parametrize("layers", [(1,), (0, 1)])
def test_a_mate_taken_out_leaves_the_bytes_of_a_log_without_it(
    hf_model, tokenizer, layers: tuple[int, ...]
) -> None:
    model, twin = (editcl.wrap(tiny.build("gpt2"), tokenizer) for _ in range(2))
    batches.assert_one_fact_comes_out(model, twin, MATES, layers, memit)


def test_one_fact_at_one_layer_with_one_context_is_rome(model: EditableModel) -> None:
    plan = plan_for(model, FACTS[:1], (1,))

    def directions(layer: int, keys: SubjectKeys) -> Tensor:
        return mean_direction(plan.covariances[layer], keys.rows)[:, None]

    (update,) = spread(model, FACTS[:1], plan, directions).updates
    key = subject_keys(model, FACTS[:1], [1], plan.contexts)[1][0, 0]
    assert torch.allclose(key @ update.dense(), update.right[:, 0], atol=1e-4)
