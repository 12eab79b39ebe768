"""Refinement: its gradient, what it may change, and that facts, texts and earlier edits gain."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from batches import CONTROL, FACTS, plan_for, state
from torch import Tensor

import editcl
from editcl.editing import arms
from editcl.editing.arms import compare_methods
from editcl.editing.background import Background, unrelated
from editcl.editing.choices import CAREFUL
from editcl.editing.memit import memit
from editcl.editing.methods import METHODS
from editcl.editing.plan import Plan, Solution
from editcl.editing.refine import (
    Refinement,
    _Columns,
    _draw,
    _steps,
    _Task,
    refine,
    worth_refining,
)
from editcl.editing.trial import tried
from editcl.editing.values import ValueSettings
from editcl.editing.way import plan_for as planned
from editcl.editing.way import way_of
from editcl.encoding import Sentence
from editcl.errors import EditclError, NonFiniteError
from editcl.evaluation import Case, catalogue_cases, evaluate
from editcl.facts import Fact
from editcl.model import EditableModel
from editcl.partial import frozen_parameters

SETTINGS = Refinement(passes=4, lr=0.1, kl=0.1)


def refining(
    model: EditableModel, facts: Sequence[Fact], layers: tuple[int, ...], **changes: Any
) -> Plan:
    """A plan with a refinement; the text is random tokens."""
    rows = torch.randint(2, model.d_vocab, (6, 12)).tolist()
    weights = {p.name: p.parameter.detach().clone() for p in map(model.down_projection, layers)}
    made = {
        "essence": [("{} is a", "The story of {}")] * len(facts),
        "contexts": ("", "It rained all night."),
        "refinement": SETTINGS,
        "background": Background(rows, weights),
    }
    return plan_for(model, facts, layers, **{**made, **changes})


def loss_at(task: _Task, columns: _Columns, n_facts: int) -> tuple[float, list[Tensor]]:
    """The loss of one step over all facts, always the same draw, and its gradient."""
    with frozen_parameters(task.model), torch.enable_grad():
        found = task.gradient(columns, range(n_facts), torch.zeros(n_facts), random.Random(0))
    gradients = [r.grad.clone() for r in columns.right if r.grad is not None]
    for right in columns.right:
        right.grad = None
    return found, gradients


def test_the_gradient_is_that_of_the_loss_on_every_architecture(any_model) -> None:
    plan = refining(any_model, FACTS[:2], (0,), earlier=FACTS[2:])
    solution = memit(any_model, FACTS[:2], plan)
    assert solution.values is not None
    unit = solution.values.residual_norm
    columns = _Columns.of(any_model, solution.updates, unit)
    task = _Task.of(any_model, FACTS[:2], plan)
    _, (gradient,) = loss_at(task, columns, 2)
    step = 1e-2 * unit.mean() * gradient / gradient.norm()
    ends = []
    for sign in (1, -1):
        moved = _Columns.of(any_model, solution.updates, unit)
        with torch.no_grad():
            moved.right[0] += sign * step
        ends.append(loss_at(task, moved, 2)[0])
    slope = (ends[0] - ends[1]) / 2
    assert slope == pytest.approx(float((gradient * step).sum()), rel=0.05, abs=1e-4)


def test_replaced_weights_say_what_written_ones_say(any_model) -> None:
    plan = refining(any_model, FACTS[:2], (0,))
    solution = memit(any_model, FACTS[:2], plan)
    columns = _Columns.of(any_model, solution.updates, torch.ones(2))
    row = any_model.encode([Sentence(FACTS[0].prompt, FACTS[0].subject)])[0]
    inputs = any_model.pad([row.ids])
    with torch.no_grad():
        plain = any_model.forward(inputs)
        replaced = any_model.forward(inputs, weights=columns.weights())
        with tried(any_model, solution.updates):
            written = any_model.forward(inputs)
    assert torch.allclose(replaced, written, atol=1e-5)
    assert not torch.allclose(replaced, plain, atol=1e-5)


def test_only_the_facts_own_columns_move_and_the_model_stays(model) -> None:
    plan = refining(model, FACTS, (0, 1))
    before = state(model)
    plain = memit(model, FACTS, plan)
    refined = METHODS["memit"](model, FACTS, plan)
    assert state(model) == before
    for a, b in zip(plain.updates, refined.updates, strict=True):
        assert torch.equal(a.left, b.left)
        assert b.owner is None and b.right.shape == a.right.shape
        assert not torch.equal(a.right, b.right)
    assert refined.details["refinement"]["passes"] == SETTINGS.passes
    assert plain.values is not None and refined.values is not None


def test_the_same_seed_gives_the_same_columns(model) -> None:
    plan = refining(model, FACTS, (1,))
    solution = memit(model, FACTS, plan)
    one, two = (refine(model, FACTS, plan, solution) for _ in range(2))
    assert torch.equal(one.updates[0].right, two.updates[0].right)


def log_probs(model: EditableModel, facts: Sequence[Fact], solution: Solution) -> Tensor:
    sentences = [Sentence(f.prompt, f.subject, f.new_object) for f in facts]
    with tried(model, solution.updates):
        return model.score(sentences).log_prob


def test_facts_that_the_closed_form_half_says_are_said(model) -> None:
    plan = refining(model, CONTROL, (1,), preservation=3.0, contexts=("",))
    plan = replace(plan, refinement=replace(SETTINGS, passes=20, kl=0.0, text=0.0))
    plain = memit(model, CONTROL, plan)
    refined = refine(model, CONTROL, plan, plain)
    gained = log_probs(model, CONTROL, refined) - log_probs(model, CONTROL, plain)
    assert float(gained.min()) > 0.1 and float(gained.mean()) > 1


def test_earlier_facts_are_held(model) -> None:
    """Positive control: without them the same training says them less."""
    first = CONTROL[:1]
    plan = refining(model, first, (1,), contexts=("",), preservation=0.001)
    early = memit(model, first, plan)
    rest = CONTROL[1:]
    heavy = replace(SETTINGS, passes=20, kl=0.0, text=0.0)
    with tried(model, early.updates):
        own = refining(model, rest, (1,), contexts=("",), refinement=heavy)
        solution = memit(model, rest, own)
        held = refine(model, rest, replace(own, earlier=first), solution)
        free = refine(model, rest, own, solution)
        with_it, without = (float(log_probs(model, first, s)) for s in (held, free))
    assert with_it > without


def test_text_is_held_to_the_base(model) -> None:
    """Positive control: with no weight on text it moves further."""
    plan = refining(model, FACTS, (1,))
    solution = memit(model, FACTS, plan)
    moved = []
    for text in (100.0, 0.0):
        own = replace(plan, refinement=replace(SETTINGS, passes=12, text=text))
        done = refine(model, FACTS, own, solution)
        assert plan.background is not None
        named = [fact.subject for fact in FACTS]
        inputs = model.pad(unrelated(model, plan.background.rows, named))
        with torch.no_grad():
            base = model.forward(inputs).log_softmax(-1)
            with tried(model, done.updates):
                now = model.forward(inputs).log_softmax(-1)
        moved.append(float((now.exp() * (now - base)).sum(-1)[inputs["attention_mask"] > 0].mean()))
    assert moved[0] < 0.8 * moved[1]


def test_the_reference_of_text_is_the_base_of_the_log(model) -> None:
    way = way_of(model, "memit", layers=[1], refine=True)
    assert way.settings == CAREFUL and way.refinement is not None
    names = [model.down_projection(i).name for i in (0, 1)]
    pristine = model.down_projection(1).parameter.detach().clone()
    editcl.edit_csv(model, list(FACTS), layers=[1], contexts=("",), guard=None, resume=False)
    assert not torch.equal(model.down_projection(1).parameter, pristine)
    background = Background.of(model, (0, 1))
    assert torch.equal(background.weights[names[1]], pristine)
    assert set(background.weights) == set(names)


def test_the_text_is_the_callers_where_there_is_one(model) -> None:
    found = Background.of(model, (0,), texts=["The Eiffel Tower is in Paris.", "It rained."])
    said = {model.tokenizer.decode(row) for row in found.rows}
    assert said == {"The Eiffel Tower is in Paris.", "It rained."}


def test_a_pass_goes_over_all_that_do_not_hold() -> None:
    loss = torch.full((10,), torch.inf)
    whole = [i for step in _steps(loss, 0.1, 0, 4, random.Random(0)) for i in step]
    assert sorted(whole) == list(range(10))
    loss[:] = 0.0
    loss[7] = 1.0
    drawn = random.Random(0)
    seen = [sorted(itertools.chain(*_steps(loss, 0.1, n, 4, drawn))) for n in (1, 2, 3)]
    assert seen == [[1, 4, 7], [2, 5, 7, 8], [0, 3, 6, 7, 9]]


def test_a_draw_has_the_bare_prompt_first(model) -> None:
    rows = model.encode([Sentence(text) for text in ("one", "two two", "three three three")])
    assert _draw(rows, 2, random.Random(0))[0] is rows[0]
    assert len(_draw(rows, 9, random.Random(0))) == 3
    assert _draw([], 2, random.Random(0)) == []


def test_without_a_refinement_nothing_is_trained(model) -> None:
    plan = refining(model, FACTS, (1,), refinement=None)
    assert torch.equal(
        METHODS["memit"](model, FACTS, plan).updates[0].right,
        memit(model, FACTS, plan).updates[0].right,
    )


@pytest.mark.parametrize("method", ["memit-published", "rome", "ft-m", "ultraedit", "pmet"])
def test_methods_as_published_and_shared_columns_are_not_refined(model, method) -> None:
    assert way_of(model, method, layers=[1], refine=True).refinement is None
    published = way_of(model, "memit", layers=[1], settings="published", refine=True)
    assert published.refinement is None


def test_weights_that_overflow_are_told(model) -> None:
    plan = refining(model, FACTS, (1,))
    solution = memit(model, FACTS, plan)
    wild = [replace(u, right=u.right.sign() * 1e38) for u in solution.updates]
    with pytest.raises(NonFiniteError, match="refinement"):
        refine(model, FACTS, plan, replace(solution, updates=tuple(wild)))


def test_many_facts_gain_and_their_subjects_other_facts_too() -> None:
    """On the embedded model; the closed form alone is the control."""
    own = editcl.load()
    cases = catalogue_cases(8, seed=5)
    facts = [case.fact for case in cases]
    way = way_of(own, "memit", layers=[1], settings=ValueSettings(steps=20), refine=True)
    plan = replace(planned(own, facts, way), contexts=("",), preservation=0.5)
    plain = memit(own, facts, plan)
    refined = refine(own, facts, plan, plain)
    found = []
    for solution in (plain, refined):
        with tried(own, solution.updates):
            found.append(evaluate(own, cases).summary())
    assert found[1]["efficacy"] > found[0]["efficacy"] + 0.1
    assert found[1]["efficacy"] >= 0.7 and found[1]["specificity"] >= 0.9


def test_what_is_said_of_edited_subjects_is_not_held(model) -> None:
    texts = ("Rome is big. The Eiffel Tower is in Paris. It rained.", "the eiffel tower, again.")
    rows = [row.ids for row in model.encode([Sentence(text) for text in texts])]
    kept = unrelated(model, rows, ["The Eiffel Tower", "Rom"])
    assert [model.tokenizer.decode(row) for row in kept] == ["Rome is big. It rained."]
    assert unrelated(model, rows[1:], ["the Eiffel tower"]) == []
    assert len(unrelated(model, rows, ["Berlin"])) == 2


def test_more_than_fifty_facts_in_the_weights_are_refined_unless_one_says_otherwise(
    model, monkeypatch
) -> None:
    """Fifty are three here; those of the log count."""
    assert not worth_refining(50) and worth_refining(51)
    monkeypatch.setattr("editcl.editing.refine.ENOUGH", 3)
    fast = {"layers": [1], "contexts": ("",), "guard": None, "resume": False}
    few = editcl.edit_csv(model, list(FACTS), **fast)
    assert "refinement" not in few.entries[0].details
    assert few.entries[0].details["settings"]["lr"] == ValueSettings().lr
    more = Fact("The story", "{} of the city is called", "Rome", "Paris")
    later = editcl.edit_csv(model, [more], **fast)
    assert later.entries[0].details["refinement"]["passes"] == Refinement().passes
    assert later.entries[0].details["settings"]["lr"] == CAREFUL.lr
    model.log.rollback(later.entries[0])
    plain = editcl.edit_csv(model, [more], refine=False, **fast)
    assert "refinement" not in plain.entries[0].details


def test_the_reference_of_text_is_what_the_background_says(model) -> None:
    """Without a change text diverges from other weights, and from the model's own by nothing."""
    plan = refining(model, FACTS, (1,))
    assert plan.background is not None
    solution = memit(model, FACTS, plan)
    columns = _Columns.of(model, solution.updates, torch.ones(3))
    columns.right = [torch.zeros_like(right).requires_grad_() for right in columns.right]
    (name,) = plan.background.weights
    elsewhere = {name: 3 * plan.background.weights[name]}
    found = []
    for weights in (plan.background.weights, elsewhere):
        own = replace(plan, background=Background(plan.background.rows, weights))
        task = _Task.of(model, FACTS, own)
        with frozen_parameters(model), torch.enable_grad():
            found.append(task._text(task.texts, 1.0, columns))
    assert found[0] == pytest.approx(0, abs=1e-4) and found[1] > 0.1


def test_every_batch_of_a_comparison_is_held_to_the_weights_before_the_first(
    model, monkeypatch
) -> None:
    pristine = model.down_projection(1).parameter.detach().clone()
    seen, plan_of = [], arms.plan_for

    def watched(*arguments: Any, **named: Any) -> Plan:
        plan = plan_of(*arguments, **named)
        assert plan.background is not None
        seen.extend(plan.background.weights.values())
        return plan

    monkeypatch.setattr(arms, "plan_for", watched)
    cases = [Case(fact) for fact in CONTROL]
    compare_methods(model, cases, ["memit"], batch_size=2, layers=[1], refine=True)
    assert len(seen) == 2 and all(torch.equal(weight, pristine) for weight in seen)


def test_earlier_facts_that_are_meant_no_more_are_no_targets(model) -> None:
    first, second = FACTS[0], replace(FACTS[0], new_object="Apple")
    other = replace(FACTS[0], prompt="Anyone who wants to see {} has to go to")
    plan = refining(model, FACTS[1:2], (1,), earlier=[first, second])
    assert len(_Task.of(model, FACTS[1:2], plan).earlier) == 1
    plan = refining(model, [other], (1,), earlier=[first, FACTS[1]])
    assert len(_Task.of(model, [other], plan).earlier) == 1


@pytest.mark.parametrize(("method", "settings"), [("rome", None), ("memit", "published")])
def test_a_refinement_that_can_not_be_had_is_told(model, method, settings) -> None:
    with pytest.raises(EditclError, match="be refined with these settings"):
        editcl.edit_csv(
            model, list(FACTS), method=method, settings=settings, layers=[1], refine=True
        )
    assert not len(model.log)
