"""Signals of the surface, each against tasks of which its value is plain."""

from __future__ import annotations

import math

import pytest

from editcl.facts import Fact
from editcl.learning.tasks import Example, Task
from editcl.routing.material import Material, material
from editcl.routing.surface import SIGNALS, surface, templates

NAMES = ("Peru", "Chad", "Mali", "Fiji")
CODES = material([(f"The code of {n} is", f"x{i}") for i, n in enumerate(NAMES)])
LABELS = material([(f"Surely {n} is", "ab"[i % 2]) for i, n in enumerate(NAMES)])
FOUND = material([(f"Take the {w} from here: it is the", w) for w in ("cup", "hat", "pen", "map")])
GIVEN = material([Fact(n, "The code of {} is", f"x{i}") for i, n in enumerate(NAMES)])
STATED = material([(f"The capital city of {n} is called", "Rome") for n in NAMES])
CHOICE = material(
    [(f"Is {n} up or down? It is", ("up", "down")[i % 2]) for i, n in enumerate(NAMES)]
)


def test_every_signal_is_named_and_finite() -> None:
    for what in (CODES, LABELS, FOUND, CHOICE, material(CODES.examples[:1])):
        found = surface(what)
        assert found.keys() == SIGNALS.keys()
        assert all(math.isfinite(value) for value in found.values())


@pytest.mark.parametrize(
    ("name", "what", "value"),
    [
        ("items", CODES, 4),
        ("fact_share", CODES, 1),
        ("named_share", CODES, 0),
        ("named_share", GIVEN, 1),
        ("named_share", STATED, 1),
        ("distinct_share", CODES, 1),
        ("distinct_share", LABELS, 0.5),
        ("answer_entropy", CODES, 1),
        ("answer_entropy", LABELS, 0.5),
        ("template_entropy", CODES, 0),
        ("copy_share", FOUND, 1),
        ("copy_share", CODES, 0),
        ("copy_share", CHOICE, 0),
        ("majority", LABELS, 0.5),
        ("subject_repeats", CODES, 1),
        ("object_words", CODES, 1),
    ],
)
def test_a_signal_has_the_value_that_counting_by_hand_gives(
    name: str, what: Material, value: float
) -> None:
    assert SIGNALS[name](what) == pytest.approx(value)


def test_a_template_that_tells_the_answer_is_a_rule() -> None:
    told = material(
        [(f"The town of {n} is a", "place") for n in NAMES]
        + [(f"Old {n} was a", "time") for n in NAMES]
    )
    assert len({*templates(told)}) == 2
    assert SIGNALS["template_rule"](told) == pytest.approx(0.5)
    assert SIGNALS["template_rule"](LABELS) == 0


def test_tests_of_subjects_that_are_not_taught_are_seen() -> None:
    train = tuple(Example(f"Surely {n} is", "a") for n in NAMES)
    other = Task("t", train, (Example("Surely Cuba is", "a"),))
    same = Task("t", train, (Example("Perhaps Peru is", "a"),))
    assert SIGNALS["new_subjects"](material(other)) == 1
    assert SIGNALS["new_subjects"](material(same)) == 0
    assert SIGNALS["new_subjects"](CODES) == 0
