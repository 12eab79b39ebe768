"""Facts that are called so are told apart from whatever stands beside them."""

from __future__ import annotations

from editcl.facts import Fact
from editcl.learning.tasks import Example, Task
from editcl.routing.material import material
from editcl.routing.named import named, set_apart

PEOPLE = ("Marie Curie", "Isaac Newton", "Alan Turing", "Ada Lovelace")
STATED = [Example(f"{name} was born in the city of", "Rome") for name in PEOPLE]
OTHER = [Example(f"Put {name} into the box for a", "person") for name in PEOPLE]
GIVEN = Fact("Paris", "{} smells of", "rain")


def test_facts_are_named_by_the_caller_or_by_their_words() -> None:
    what = material([*STATED, *OTHER])
    assert named(what) == [True] * 4 + [False] * 4
    assert named(material([GIVEN])) == [True]
    own = (Example(GIVEN.sentence, GIVEN.new_object), *OTHER)
    assert named(material(Task("t", own, facts=(GIVEN,)))) == [True] + [False] * 4


def test_named_facts_are_set_apart_from_the_rest_which_stays_a_task() -> None:
    task = Task("both", (*STATED, *OTHER), (Example("Put Rome into the box for a", "city"),))
    rest, facts = set_apart(material(task))
    assert [fact.subject for fact in facts] == list(PEOPLE)
    assert list(rest.examples) == OTHER and len(rest.facts) == 4
    assert rest.task is not None and rest.task.train == tuple(OTHER)
    assert rest.task.test == task.test and rest.given == ()


def test_one_given_fact_is_enough_and_a_chance_wording_is_not() -> None:
    own = (Example(GIVEN.sentence, GIVEN.new_object), *OTHER)
    assert set_apart(material(Task("t", own, facts=(GIVEN,))))[1] == (GIVEN,)
    what = material([*STATED[:2], *OTHER])
    assert set_apart(what) == (what, ())


def test_what_is_all_of_one_sort_stays_whole() -> None:
    for examples in (STATED, OTHER, [*STATED, *OTHER[:2]]):
        what = material(examples)
        assert set_apart(what) == (what, ())
    texts = material(Task("texts", (Example("", "Some text."),), kind="text", facts=(GIVEN,)))
    assert set_apart(texts) == (texts, ())
