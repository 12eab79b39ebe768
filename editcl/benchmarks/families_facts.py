"""Families of knowledge: facts to be stored, also where they look like something else.

Held out are the same subjects in other words; nothing can be told of a subject that wasn't shown.
Names and codes are made up here. Knows nothing of models.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from editcl.benchmarks.posed import (
    HELD_OUT,
    Changed,
    Made,
    changed,
    draw,
    rephrased,
    stated,
)
from editcl.catalogue import KnownFact, facts_by_relation, relations
from editcl.evaluation.damage import general_texts
from editcl.learning.shipped import subjects_by_kind

_OPEN = ("capital", "birthplace", "headquarters", "located_in_city", "country_of_origin", "author")
_CLOSED = ("occupation", "continent", "sport", "element_group", "official_language", "genre")
_PEOPLE = ("birthplace", "citizenship", "native_language", "occupation", "death_place")

#: A code's statement, two ways of asking that are held out, and the relation whose objects serve as
#: code words. The embedded model knows sentences and words from elsewhere: edits can't make it say
#: what it never says.
CODES = (
    ("In a shop, {} stands on the shelf for", "{} is usually labelled as",
     "Critics place {} in the genre of", "birthplace"),
    ("Investors list {} under", "The sector to which {} belongs is",
     "Rivals of {} are other firms in", "occupation"),
    ("The category of the element {} is", "Chemists call {} a kind of",
     "In the periodic table, {} is coloured as", "headquarters"),
)  # fmt: skip
_CARDS = (
    ("The number of {} is", "The number given to {} is", "The row of {} is", "element_period"),
    ("Counting rows from the top, {} is found in row", "The plan of the hall shows {} in the row "
     "numbered", "In the hall, {} stands in row", "element_period"),
    ("On sports day, {} competes in the game of", "The sport that {} plays on sports day is",
     "On sports day, {} takes part in a game of", "sport"),
)  # fmt: skip
_FIRST = ("Vel", "Tor", "Mar", "Quin", "Bel", "Dra", "Sil", "Or", "Fen", "Lud", "Hes", "Nal")
_MIDDLE = ("mo", "vi", "ta", "ri", "lo", "ne", "sa", "du")
_LAST = ("ra", "nis", "dor", "wen", "lith", "gar", "mund", "sel")


def one_relation(rng: random.Random, number: int) -> Made:
    """Counterfactual objects of one relation; the number of facts grows with the task's."""
    size = (8, 20, 40, 5, 60, 12)[number % 6]
    facts = changed(rng, draw(rng, _OPEN[number % len(_OPEN)], size))
    return Made(stated(rng, facts), rephrased(rng, facts))


def corrections(rng: random.Random, number: int) -> Made:
    """A few facts each of many relations."""
    names = rng.sample(sorted(relations()), 8)
    facts = changed(rng, [fact for name in names for fact in draw(rng, name, 2 + number % 2)])
    rng.shuffle(facts)
    return Made(stated(rng, facts), rephrased(rng, facts))


def prose(rng: random.Random, number: int) -> Made:
    """Statements of facts between sentences that state nothing, as one text."""
    names = rng.sample(_OPEN + _CLOSED, 4)
    facts = changed(rng, [fact for name in names for fact in draw(rng, name, 4)])
    rng.shuffle(facts)
    rows = stated(rng, facts)
    sentences = [f"{row.prompt} {row.completion}." for row in rows]
    between = rng.sample(general_texts(), 5)
    for at, sentence in zip(rng.sample(range(len(sentences)), 5), between, strict=True):
        sentences.insert(at, sentence)
    return Made(rows, rephrased(rng, facts), text=" ".join(sentences))


def few_answers(rng: random.Random, number: int) -> Made:
    """Counterfactual objects from a handful, in one phrasing: it looks like sorting."""
    relation = _CLOSED[number % len(_CLOSED)]
    pool = sorted({fact.object for fact in facts_by_relation()[relation]})
    facts = changed(rng, draw(rng, relation, 20), rng.sample(pool, min(4, len(pool))))
    phrasing = relations()[relation].prompt
    return Made([one.asked(phrasing) for one in facts], rephrased(rng, facts))


def codes(rng: random.Random, number: int) -> Made:
    """Code words drawn for well-known names."""
    return _assigned(rng, *drawn_objects(rng, CODES[number % len(CODES)], 20))


def cards(rng: random.Random, number: int) -> Made:
    """Words of a handful, drawn for well-known names: labels that nothing can tell."""
    return _assigned(rng, *drawn_objects(rng, _CARDS[number % len(_CARDS)], 20))


def many(rng: random.Random, number: int) -> Made:
    """Hundreds of facts."""
    size = (300, 1000)[number % 2]
    every = [fact for name in relations() for fact in facts_by_relation()[name]]
    facts = changed(rng, rng.sample(every, size))
    return Made(stated(rng, facts), rephrased(rng, facts))


def invented(rng: random.Random, number: int) -> Made:
    """Facts about people that nobody has heard of."""
    names = rng.sample(_invented(), 18)
    facts = []
    for name in names:
        relation = rng.choice(_PEOPLE)
        known = KnownFact(name, relation, "")
        facts += changed(rng, [known], [f.object for f in draw(rng, relation, 12)])
    return Made(stated(rng, facts), rephrased(rng, facts))


# -- parts ----------------------------------------------------------------------------------------


def drawn_objects(
    rng: random.Random, row: tuple[str, ...], n: int
) -> tuple[list[Changed], tuple[str, ...]]:
    """Objects of the relation that a row ends with, for n well-known names; the row's ways."""
    *ways, relation = row
    pool = sorted({fact.object for fact in facts_by_relation()[relation]})
    names = rng.sample([name for own in subjects_by_kind().values() for name in own], n)
    return [Changed(KnownFact(name, "", ""), rng.choice(pool)) for name in names], tuple(ways)


def _assigned(rng: random.Random, rows: Sequence[Changed], ways: tuple[str, ...]) -> Made:
    """Stated in the first way, and held out in the others."""
    first, *others = ways
    test = [row.asked(other) for row in rows for other in others]
    return Made([row.asked(first) for row in rows], rng.sample(test, min(HELD_OUT, len(test))))


def _invented() -> list[str]:
    known = {fact.subject for found in facts_by_relation().values() for fact in found}
    first = [a + b for a in _FIRST for b in _MIDDLE]
    last = [a + b for a in _FIRST for b in _LAST]
    step = 7  # no two neighbours share both syllables
    made = [f"{one} {last[(i * step) % len(last)]}" for i, one in enumerate(first)]
    return [name for name in made if name not in known]


__all__ = [
    "cards",
    "codes",
    "corrections",
    "drawn_objects",
    "few_answers",
    "invented",
    "many",
    "one_relation",
    "prose",
]
