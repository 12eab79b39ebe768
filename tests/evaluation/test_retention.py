"""Retention: the final state by order of edit."""

from __future__ import annotations

import json

import pytest

from editcl.errors import EditclError
from editcl.evaluation import Case, CaseResult, Evaluation, evaluate
from editcl.evaluation.retention import Retention, retention
from editcl.facts import Fact


def made(shares: list[float]) -> Evaluation:
    return Evaluation(tuple(CaseResult(efficacy=s, fact=str(i)) for i, s in enumerate(shares)))


def test_a_curve_is_the_mean_over_consecutive_edits() -> None:
    found = Retention(made([0, 0, 0, 1, 1, 1, 1]), made([1] * 7))
    curve = found.curve(stretches=2)
    assert [(s.first, s.last) for s in curve] == [(0, 3), (4, 6)]
    assert [s.mean for s in curve] == [0.25, 1.0]
    assert [s.at_edit for s in curve] == [1.0, 1.0]
    assert curve[0].low <= 0.25 <= curve[0].high
    assert len(found.curve(stretches=50)) == 7
    assert found.curve("portability") == []
    with pytest.raises(EditclError, match="no measure 'effect'"):
        found.curve("effect")


@pytest.mark.parametrize("n", [1, 2, 9, 10, 11, 103])
def test_every_edit_is_in_one_stretch(n: int) -> None:
    curve = Retention(made([1.0] * n)).curve()
    covered = [i for s in curve for i in range(s.first, s.last + 1)]
    assert covered == list(range(n))


def test_the_final_state_is_what_evaluate_says(model) -> None:
    cases = [
        Case(Fact("The Eiffel Tower", "{} is in", "Rome", "Paris")),
        Case(Fact("Beats Music", "{} is owned by", "Rome", "Apple")),
    ]
    then = Evaluation.join(evaluate(model, [case]) for case in cases)
    found = retention(model, cases, at_edit=then)
    assert found.final == evaluate(model, cases)
    frame = found.to_frame()
    assert list(frame["position"]) == [0, 1] and len(frame) == 2
    assert (frame["efficacy"] == frame["efficacy_at_edit"]).all()
    assert json.loads(json.dumps(found.to_dict()))["curves"]["efficacy"][0]["first"] == 0
    assert "first / middle / last third" in repr(found)
    with pytest.raises(EditclError, match="not these 2 in this order"):
        retention(model, cases, at_edit=Evaluation(then.results[::-1]))
