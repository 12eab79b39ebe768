"""PMET: the root of the layers left, and an attention delta that is found and dropped."""

from __future__ import annotations

import math

import batches
import pytest
import tiny
import torch
from batches import FACTS, plan_for

import editcl
from editcl.editing.keys import subject_keys
from editcl.editing.memit import memit
from editcl.editing.pmet import pmet
from editcl.editing.trial import tried
from editcl.editing.values import optimise_values
from editcl.model import EditableModel


def test_the_first_of_two_layers_gets_the_residual_over_the_root_of_two(
    model: EditableModel,
) -> None:
    solution = pmet(model, FACTS, plan_for(model, FACTS, (0, 1)))
    assert solution.values is not None
    expected = solution.values.delta / math.sqrt(2)
    assert torch.allclose(solution.updates[0].right.T, expected)


def test_the_system_is_memits(model: EditableModel) -> None:
    plan = plan_for(model, FACTS, (1,))
    (ours,), (theirs,) = pmet(model, FACTS, plan).updates, memit(model, FACTS, plan).updates
    assert torch.allclose(ours.left, theirs.left, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(ours.right, theirs.right, rtol=0.1)


def test_the_attentions_part_is_searched_for_with_the_mlps_and_not_written(
    model: EditableModel,
) -> None:
    plan = plan_for(model, FACTS, (1,), preservation=0.0)
    solution = pmet(model, FACTS, plan)
    with_attention = optimise_values(
        model, FACTS, 1, plan.contexts, plan.essence, plan.settings, with_attention=True
    )
    assert solution.values is not None
    assert torch.allclose(solution.values.delta, with_attention.delta)
    # Two sites that add to the same stream get the same gradient: each carries one half of it.
    alone = optimise_values(model, FACTS, 1, plan.contexts, plan.essence, plan.settings)
    assert float(with_attention.object_loss.mean()) < float(alone.object_loss.mean()) + 0.3
    keys = subject_keys(model, FACTS, [1], plan.contexts)[1][:, 0]
    (update,) = solution.updates
    assert torch.allclose(keys @ update.dense(), with_attention.delta, atol=1e-2)


def test_attention_weights_are_not_touched(model: EditableModel) -> None:
    solution = pmet(model, FACTS, plan_for(model, FACTS, (0, 1)))
    names = {model.down_projection(layer).name for layer in (0, 1)}
    before = {n: p.detach().clone() for n, p in model.hf.named_parameters()}
    with tried(model, solution.updates):
        changed = {n for n, p in model.hf.named_parameters() if not torch.equal(p, before[n])}
    assert changed == names


@pytest.mark.parametrize("layers", [(1,), (0, 1)])
def test_the_new_objects_lead(model: EditableModel, layers: tuple[int, ...]) -> None:
    batches.assert_it_edits(model, layers, pmet)


def test_one_fact_of_a_batch_can_be_taken_out(tokenizer) -> None:
    model, twin = (editcl.wrap(tiny.build("gpt2"), tokenizer) for _ in range(2))
    batches.assert_one_fact_comes_out(model, twin, FACTS, (0, 1), pmet)
