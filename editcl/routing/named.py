"""Facts that are called so: by the caller, or by their words.

A fact is named if it was given as a Fact, or stands in a phrasing of a relation of the catalogue.
Where some examples are named facts and others are not, the question is what the others are: the
named ones are edited in any case. Knows nothing of models.
"""

from __future__ import annotations

from dataclasses import replace

from editcl.catalogue import relation_of
from editcl.facts import Fact
from editcl.learning.tasks import TEXT
from editcl.routing.material import Material, train_only

LEAST = 3  # named facts, or other examples, that are worth telling apart


def named(what: Material) -> list[bool]:
    """Of each example whether it is a fact that is called so."""
    given = set(what.given)
    return [
        fact is not None and (fact in given or relation_of(fact.prompt) is not None)
        for fact in what.facts
    ]


def set_apart(what: Material) -> tuple[Material, tuple[Fact, ...]]:
    """The examples that are no named facts, and the named facts; all and none if it is not both."""
    mask = named(what)
    rest = [example for example, own in zip(what.examples, mask, strict=True) if not own]
    plain_text = what.task is not None and what.task.kind == TEXT
    enough = LEAST if not what.given else 1
    if plain_text or sum(mask) < enough or len(rest) < LEAST:
        return what, ()
    facts = [fact for fact, own in zip(what.facts, mask, strict=True) if own and fact is not None]
    left = replace(
        what,
        examples=tuple(rest),
        facts=tuple(fact for fact, own in zip(what.facts, mask, strict=True) if not own),
        task=None if what.task is None else train_only(what.task, rest),
        given=(),
    )
    return left, tuple(dict.fromkeys(facts))
