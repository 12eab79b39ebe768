"""Unfreezing, Reptile, DAPT and mixed data: what trains when, on what, and how far."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from lessons import QUICK, answered, labelled, session
from streams import texts as text_task

from editcl.errors import EditclError
from editcl.learning.strategies import (
    DAPT,
    L2SP,
    BottomFreezing,
    Mixed,
    ProgressiveUnfreezing,
    Replay,
    Reptile,
    Sequential,
    Strategy,
    combine,
)
from editcl.learning.texts import Texts
from editcl.learning.train import mean_loss, train

ONE, TWO = labelled("one"), labelled("two", ("red", "blue"))


class Watch(Strategy):
    """Takes down which parameters have gradients, all parameters, and rows, at each step."""

    name = "watch"

    def __init__(self) -> None:
        self.with_gradient, self.parameters, self.rows = [], [], []

    def examples(self, session, batch, step):
        self.rows.append((session.n_new, list(batch)))
        return batch

    def after_backward(self, session):
        found = {n for n, p in session.training.items() if p.grad is not None}
        self.with_gradient.append(found)

    def after_step(self, session, step, total):
        self.parameters.append({n: p.clone() for n, p in session.training.items()})


def layers(names) -> set[int]:
    return {i for i in range(3) for name in names if f".h.{i}." in name}


def learn(strategy: Strategy, task=ONE, settings=QUICK, own=None):
    own, watch = own or session(), Watch()
    result = train(own, task, combine(strategy, watch), settings, show=False)
    return own, watch, result


# -- unfreezing -----------------------------------------------------------------------------------


def test_layers_are_unfrozen_from_the_top() -> None:
    settings = replace(QUICK, steps=12)
    _, watch, _ = learn(ProgressiveUnfreezing(3, share=0.5), settings=settings)
    wanted = [{2}] * 2 + [{1, 2}] * 2 + [{0, 1, 2}] * 8
    assert [layers(found) for found in watch.with_gradient] == wanted
    bottom = [name for name in watch.parameters[0] if ".h.0." in name]
    at_3, at_11 = watch.parameters[3], watch.parameters[11]
    fresh = {f"shared/{name}": t for name, t in untrained().items()}
    assert all(torch.equal(at_3[name], fresh[name]) for name in bottom)
    assert all(not torch.equal(at_11[name], fresh[name]) for name in bottom)


def untrained():
    own = session()
    own.new_adapter("shared")
    return own.adapters.state("shared")


def test_two_groups_of_three_layers_hold_neighbours() -> None:
    _, watch, _ = learn(ProgressiveUnfreezing(2, share=0.6), settings=replace(QUICK, steps=10))
    wanted = [{1, 2}] * 3 + [{0, 1, 2}] * 7
    assert [layers(found) for found in watch.with_gradient] == wanted


def test_bottom_layers_stay_as_the_first_task_left_them() -> None:
    strategy = BottomFreezing(0.5)
    own, watch, _ = learn(strategy)
    assert layers(watch.with_gradient[0]) == {0, 1, 2}
    before = own.adapters.state("shared")
    _, watch, result = learn(strategy, TWO, own=own)
    after = own.adapters.state("shared")
    assert all(layers(found) == {2} or layers(found) == {1, 2} for found in watch.with_gradient)
    frozen = [name for name in before if layers([name]) <= {0, 1} - layers(watch.parameters[0])]
    assert frozen and all(torch.equal(before[name], after[name]) for name in frozen)
    trained = [name for name in before if name not in frozen]
    assert all(not torch.equal(before[name], after[name]) for name in trained)
    assert result.parameters == sum(before[name].numel() for name in trained)


def test_schedules_combine() -> None:
    both = combine(ProgressiveUnfreezing(2), BottomFreezing(0.34, whole_tasks=0), L2SP())
    _, watch, result = learn(both)
    assert layers(watch.with_gradient[0]) <= {1, 2} and layers(watch.with_gradient[-1]) == {1, 2}
    assert result.penalties["l2sp"][-1] > 0


def test_schedules_that_fit_no_layers_are_refused() -> None:
    with pytest.raises(EditclError, match="train in 3 layers, which 4 groups"):
        learn(ProgressiveUnfreezing(4))
    with pytest.raises(EditclError, match="share of 0.1 of 3 layers is 0"):
        learn(BottomFreezing(0.1, whole_tasks=0))
    with pytest.raises(EditclError, match="of kind prompt train in no layer"):
        learn(ProgressiveUnfreezing(), own=session(kind="prompt"))


# -- reptile --------------------------------------------------------------------------------------


def test_reptile_goes_a_part_of_each_stretch() -> None:
    states = {"before": [], "after": []}

    class Look(Strategy):
        name = "look"

        def __init__(self, when: str) -> None:
            self.when = when

        def after_step(self, session, step, total):
            states[self.when].append({n: p.clone() for n, p in session.training.items()})

    own = session()
    train(own, ONE, Sequential(), QUICK, show=False)
    slow = {f"shared/{name}": t for name, t in own.adapters.state("shared").items()}
    parts = combine(Look("before"), Reptile(0.3, inner_steps=3), Look("after"))
    train(own, TWO, parts, replace(QUICK, steps=8), show=False)
    for step, (fast, now) in enumerate(zip(states["before"], states["after"], strict=True)):
        if step in (2, 5, 7):
            slow = {n: slow[n] + 0.3 * (fast[n] - slow[n]) for n in slow}
            for name in slow:
                torch.testing.assert_close(now[name], slow[name], rtol=1e-6, atol=1e-7)
            assert any(not torch.equal(now[n], fast[n]) for n in slow)
        else:
            assert all(torch.equal(now[n], fast[n]) for n in slow)


def test_reptile_that_goes_all_the_way_is_sequential() -> None:
    states = []
    for strategy in (Reptile(1.0, inner_steps=2), Sequential()):
        own, _, _ = learn(strategy)
        states.append(own.adapters.state("shared"))
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], rtol=1e-4, atol=1e-6)


def test_reptile_holds_a_copy_during_a_task_only() -> None:
    strategy, held = Reptile(), []

    class Look(Strategy):
        name = "look"

        def after_step(self, session, step, total):
            held.append(strategy.memory())

    own = session()
    train(own, ONE, combine(strategy, Look()), QUICK, show=False)
    size = sum(t.numel() * 4 for t in own.adapters.state("shared").values())
    assert held == [size] * 6 and strategy.memory() == 0


# -- dapt and mixed -------------------------------------------------------------------------------


def test_dapt_learns_the_domain_and_then_the_task() -> None:
    settings = replace(QUICK, steps=10)
    for texts in ((), ("Apple makes music", "Rome is a city of towers")):
        _, watch, _ = learn(DAPT(texts, share=0.4), answered("one"), settings)
        for step, (n_new, rows) in enumerate(watch.rows):
            assert len(rows) == n_new == 4
            if step >= 4:
                assert all(row.start > 1 and row.task == "one" for row in rows)
            else:
                assert all(row.start == 1 for row in rows)
                assert {row.task for row in rows} == ({""} if texts else {"one"})


def test_dapt_without_texts_learns_prompts_and_no_answers() -> None:
    settings = replace(QUICK, steps=10)
    own, adapting, _ = learn(DAPT(share=0.5), answered("one"), settings)
    _, plain, _ = learn(Sequential(), answered("one"), settings)
    for (_, rows), (_, full) in zip(adapting.rows[:5], plain.rows[:5], strict=True):
        assert [row.ids for row in rows] == [row.ids[: row.start] for row in full]
    assert adapting.rows[5:] == plain.rows[5:]
    _, texts, _ = learn(DAPT(share=0.5), text_task("towns", ("The city is old", "Rome")))
    assert all(row.start == 1 for _, rows in texts.rows for row in rows)
    assert own.adapters.names == ("shared",)


def test_what_replay_adds_stays_in_the_phase() -> None:
    strategy = combine(Replay(0.5), DAPT(share=0.5))
    own, _, _ = learn(strategy)
    _, watch, _ = learn(strategy, TWO, own=own)
    for n_new, rows in watch.rows:
        assert [row.task for row in rows] == ["two"] * n_new + ["one"] * 2
        assert all(row.start > 1 for row in rows[n_new:])


@pytest.mark.parametrize("ratio", [0.2, 0.1, 0.75])
def test_general_texts_join_to_the_row_over_many_batches(ratio) -> None:
    strategy = Mixed(("The city is old and large", "Music is made"), ratio)
    _, watch, _ = learn(strategy, settings=replace(QUICK, steps=11, batch_size=3))
    count = 0
    for step, (n_new, rows) in enumerate(watch.rows):
        assert all(row.start == 1 and row.task == "" for row in rows[n_new:])
        count += len(rows) - n_new
        assert count == int(Fraction(str(ratio)) * 3 * (step + 1))
    assert strategy.memory() == 38 + len('{"batched": 33, "drawn": 10}') - (count < 10)


def test_general_texts_are_learnt_beside_the_task() -> None:
    lines = ("The city is old and large", "Music is made of towers")
    losses = []
    for strategy in (Sequential(), Mixed(lines, 1.0)):
        own, _, _ = learn(strategy, settings=replace(QUICK, steps=30))
        pool = Texts(lines)
        pool.encode(own.model)
        with own.adapters.using(("shared",)):
            losses.append(mean_loss(own, pool.rows))
    assert losses[1] < 0.7 * losses[0]


@pytest.mark.parametrize("make, message", [
    (lambda: ProgressiveUnfreezing(1), "1 groups"),
    (lambda: ProgressiveUnfreezing(share=1.0), "share is 1.0"),
    (lambda: BottomFreezing(0), "share is 0"),
    (lambda: BottomFreezing(whole_tasks=-1), "whole_tasks is -1"),
    (lambda: Reptile(0), "rate of reptile is 0"),
    (lambda: Reptile(inner_steps=0), "inner_steps is 0"),
    (lambda: DAPT(share=1), "share is 1"),
    (lambda: DAPT("text"), "no list of texts"),
    (lambda: Mixed([]), "no list of texts"),
    (lambda: Mixed(["a b c"], 0), r"ratio of 0 is not in \(0, 10\]"),
])  # fmt: skip
def test_settings_that_make_no_sense_are_refused(make, message) -> None:
    with pytest.raises(EditclError, match=message):
        make()
