"""Posed: a task of the router benchmark, and what all its makers draw from.

A posed task is what a user would hand over (a task, or plain text), the items that it states, and
held-out items that tell whether it was learnt or only repeated: of facts the same subjects in
phrasings that were never shown, of skills inputs that were never shown. Knows nothing of models.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from editcl.catalogue import KnownFact, facts_by_relation, relations
from editcl.facts import Fact, fill
from editcl.learning.tasks import COMPLETION, Example, Task

KNOWLEDGE, SKILL, MIXED, UNDECIDABLE = "knowledge", "skill", "mixed", "undecidable"
KINDS = (KNOWLEDGE, SKILL, MIXED, UNDECIDABLE)
HELD_OUT = 40  # items that judge what was not shown


@dataclass(frozen=True, repr=False)
class Posed:
    """A task with what it is hoped to be; how it is best learnt is measured, not said.

    Attributes:
        family: what it is one of.
        kind: of the family: "knowledge", "skill", "mixed" or "undecidable".
        task: its items, and in `test` the held-out ones.
        text: the same items as prose, if that is what is handed over.
        facts: of a mixed task those of its items that are facts.
    """

    family: str
    kind: str
    task: Task
    text: str | None = None
    facts: tuple[Fact, ...] = ()

    @property
    def name(self) -> str:
        """Of the task."""
        return self.task.name

    @property
    def what(self) -> Task | str:
        """What is handed over to be learnt: nothing that is held out, nor which items are facts."""
        return replace(self.task, test=()) if self.text is None else self.text

    def __repr__(self) -> str:
        form = "task" if self.text is None else "prose"
        return (
            f"Posed({self.name}: {self.kind}, {form}, {len(self.task.train):,} items, "
            f"{len(self.task.test):,} held out)"
        )


#: Makes the tasks of a family: items to learn from, held-out items, kind of task, text.
Maker = Callable[[random.Random, int], "Made"]


@dataclass(frozen=True)
class Made:
    """What a family's maker gives.

    Attributes:
        train, test: items and held-out items.
        kind: of the Task.
        text: prose that states the items.
        facts: of a mixed task those of its items that are facts.
    """

    train: Sequence[Example]
    test: Sequence[Example]
    kind: str = COMPLETION
    text: str | None = None
    facts: Sequence[Fact] = ()


# -- facts ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Changed:
    """A fact of the catalogue with another object.

    Attributes:
        fact: as it is.
        object: what it shall be.
    """

    fact: KnownFact
    object: str

    def asked(self, phrasing: str) -> Example:
        """The example in a phrasing."""
        return Example(fill(phrasing, self.fact.subject), self.object)


def draw(rng: random.Random, relation: str, n: int) -> list[KnownFact]:
    """Facts of a relation, in random order; all of them if there are fewer."""
    facts = facts_by_relation()[relation]
    return rng.sample(facts, min(n, len(facts)))


def changed(
    rng: random.Random, facts: Iterable[KnownFact], pool: Sequence[str] | None = None
) -> list[Changed]:
    """Each fact with an object of the same relation that isn't its own, or one of the pool."""
    found = []
    for fact in facts:
        own = pool or sorted({other.object for other in facts_by_relation()[fact.relation]})
        found.append(Changed(fact, rng.choice([o for o in own if o != fact.object])))
    return found


def stated(rng: random.Random, facts: Sequence[Changed]) -> list[Example]:
    """Each in the canonical phrasing or another one that editors may use."""
    return [one.asked(rng.choice(relations()[one.fact.relation].stated)) for one in facts]


def as_facts(facts: Sequence[Changed], rows: Sequence[Example]) -> list[Fact]:
    """The facts that rows state, which stand in the same order."""
    return [
        Fact.from_sentence(one.fact.subject, row.prompt, row.completion)
        for one, row in zip(facts, rows, strict=True)
    ]


def rephrased(rng: random.Random, facts: Sequence[Changed], n: int = HELD_OUT) -> list[Example]:
    """Each in a phrasing that only evaluation uses, until there are enough."""
    asked = [
        one.asked(phrasing) for one in facts for phrasing in relations()[one.fact.relation].unseen
    ]
    by_fact = list(dict.fromkeys(asked))
    rng.shuffle(by_fact)
    return by_fact[:n]


# -- inputs ---------------------------------------------------------------------------------------


def divided(
    rng: random.Random, rows: Sequence[Example], n: int, held_out: int = HELD_OUT
) -> tuple[list[Example], list[Example]]:
    """Items and held-out items, no prompt in both."""
    chosen = rng.sample(list(rows), min(n + held_out, len(rows)))
    return chosen[:n], chosen[n:]


__all__ = [
    "KINDS",
    "KNOWLEDGE",
    "MIXED",
    "SKILL",
    "UNDECIDABLE",
    "Changed",
    "Made",
    "Maker",
    "Posed",
    "as_facts",
    "changed",
    "divided",
    "draw",
    "rephrased",
    "stated",
]
