"""Which facts a rollback weakens: those that were solved with the removed one present.

They are the other facts of its entry and all of later entries. Measuring thousands would take
longer than the rollback, so of many an even sample stands for all. A fact is weakened when its
p(new object) falls below half of what it was, or when the old object overtakes the new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from editcl.encoding import Sentence
from editcl.facts import Fact
from editcl.log.entry import Probability
from editcl.log.report import Weakened
from editcl.model import EditableModel

Place: TypeAlias = tuple[str, int]  # id of an entry, index of a fact

HALF = 0.5
SAMPLE = 64  # so that a rollback out of a large batch stays under a second on a small model


def evenly(places: Sequence[Place], at_most: int = SAMPLE) -> list[Place]:
    """All places, or as many as allowed at even distances, the same ones each time."""
    n = min(len(places), at_most)
    return [places[i * len(places) // n] for i in range(n)]


def probabilities(model: EditableModel, facts: Sequence[Fact]) -> list[Probability]:
    """p(new object) and, where it is known, p(old object) of facts, as the model is now."""
    if not facts:
        return []
    known = [fact.old_object for fact in facts if fact.old_object is not None]
    asked = [Sentence(fact.prompt, fact.subject, fact.new_object) for fact in facts]
    asked += [
        Sentence(fact.prompt, fact.subject, fact.old_object)
        for fact in facts
        if fact.old_object is not None
    ]
    values = [float(p) for p in model.score(asked).prob]
    new, old = values[: len(facts)], iter(values[len(facts) :])
    assert len(values) == len(facts) + len(known), "one score for each sentence"
    return [
        Probability(None if fact.old_object is None else next(old), p)
        for fact, p in zip(facts, new, strict=True)
    ]


def weakened(
    places: Sequence[Place],
    facts: Sequence[Fact],
    before: Sequence[Probability],
    after: Sequence[Probability],
) -> tuple[Weakened, ...]:
    """The facts that fell, with what they fell from and to."""
    return tuple(
        Weakened(name, j, fact, was.new, now.new)
        for (name, j), fact, was, now in zip(places, facts, before, after, strict=True)
        if now.new < HALF * was.new or (_leads(was) and not _leads(now))
    )


def _leads(value: Probability) -> bool:
    return value.old is None or value.new > value.old
