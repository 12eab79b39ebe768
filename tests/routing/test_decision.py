"""Decisions: read well, survive JSON, refuse nonsense."""

from __future__ import annotations

import json

import pytest

from editcl.errors import EditclError
from editcl.facts import Fact
from editcl.learning.tasks import Example, Task
from editcl.routing.decision import ABSTAIN, EDIT, SPLIT, Cost, Decision

FACT = Fact("Peru", "The capital of {} is", "Rome", "Lima")
TASK = Task("t", (Example("a", "b"), Example("c", "d")))


def decision(kind: str = SPLIT, **changes: object) -> Decision:
    values: dict[str, object] = {
        "task": "t",
        "kind": kind,
        "confidence": 0.75,
        "reasons": ("it <carries> over",),
        "signals": {"items": 3.0},
        "cost": Cost(0.1, 2.0, 1.0),
        "facts": (FACT,),
        "trains": TASK,
    }
    return Decision(**(values | changes))  # type: ignore[arg-type]


def test_a_decision_says_what_goes_where_and_why() -> None:
    shown = repr(decision())
    for part in (
        "split",
        "0.75",
        "1 facts to edit",
        "2 examples to train on",
        "<carries>",
        "items 3",
    ):
        assert part in shown
    assert "&lt;carries&gt;" in decision()._repr_html_()


def test_json_brings_back_all_but_the_examples() -> None:
    once = decision(EDIT, trains=None)
    assert Decision.from_json(json.loads(json.dumps(once.to_json()))) == once
    assert decision().to_json()["trains"] == "t"
    assert Decision.from_json(decision().to_json()).trains is None


def test_the_cheaper_arm_is_the_possible_one() -> None:
    assert Cost(0.0, 2.0, 1.0).cheaper == 1.0
    assert Cost(0.0, 2.0, None).cheaper == 2.0
    assert Cost(0.0, None, None).cheaper is None
    assert "editing not possible" in str(Cost(0.0, None, 1.0))


@pytest.mark.parametrize(
    "changes", [{"kind": "guess"}, {"confidence": 1.5}, {"budget": "huge"}], ids=str
)
def test_what_is_no_decision_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(EditclError):
        decision(**changes)  # type: ignore[arg-type]


def test_json_of_something_else_is_refused_by_what_it_lacks() -> None:
    with pytest.raises(EditclError, match="kind"):
        Decision.from_json({"task": "t"})


def test_signals_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        decision(ABSTAIN).signals["items"] = 1.0  # type: ignore[index]
