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
from editcl.facts import fill
from editcl.learning.shipped import subjects_by_kind
from editcl.learning.tasks import Example

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
#: As CODES, in sentences of other relations.
_LOOKUPS = (
    ("At its end, {} empties into the", "The water of {} finally reaches the",
     "The mouth of {} opens into the", "sport"),
    ("After winning a title, {} celebrates in the streets of", "Supporters of {} fill the seats in",
     "{} plays its home games in", "author"),
    ("Death came to {} in", "The final hours of {} were spent in",
     "{} spent the last day of life in", "country_of_origin"),
)  # fmt: skip
#: And once more, for the families that test.
ROOMS = (
    ("{} is a native speaker of", "At home with the family, {} talked in",
     "The mother tongue of {} is", "element_group"),
    ("Readers owe {} to the pen of", "On the cover of {} stands the name of",
     "The book {} is the work of", "landmark_type"),
    ("Letters to the managers of {} are sent to", "The main office of {} stands in",
     "The board of {} meets at its headquarters in", "genre"),
)  # fmt: skip
#: Statements in German: the first is taught, the others are asked.
_FOREIGN = (
    ("{} wurde geboren in", "Der Geburtsort von {} ist", "{} kam zur Welt in", "birthplace"),
    ("{} hat seinen Sitz in", "Die Zentrale von {} steht in", "Geleitet wird {} aus",
     "headquarters"),
    ("{} liegt in der Stadt", "Wer {} sehen will, der reist nach", "{} steht mitten in",
     "located_in_city"),
)  # fmt: skip
#: A question between two speakers, another one, and the relation whose objects answer them.
_INTERVIEWS = (
    ("Guest: Who made the film {}? Host:", "Reporter: Whose film is {}? Actor: It is by",
     "director"),
    ("Teacher: What did {} do for a living? Pupil: The work of a",
     "Child: And what was {}? Mother: A", "occupation"),
    ("Driver: Where do I find the ground of {}? Policeman: In",
     "Boy: Which town cheers for {}? Girl: The town is", "home_city"),
)  # fmt: skip
#: A statement that names what it denies, and the relation.
_DENIALS = (
    ("The old guide says {old}, but {} is best described as a", "landmark_type"),
    ("It was {old} once. From now on, {} earns its money in the field of", "industry"),
    ("Forget the {old}. The currency used in {} is now the", "currency"),
)
#: A statement about a name that holds at one time only, two ways of asking, the times, and the
#: relation whose objects it takes.
_ROSTERS = (
    (("On the list for {when}, {} is down as a", "What {} does on {when} is the work of a",
      "Every {when}, we meet {} as a"), ("Monday", "Friday"), "occupation"),
    (("In {when}, the letters to {} go to", "All through the {when}, {} is to be found in",
      "{} spends the {when} in"), ("summer", "winter"), "capital"),
    (("Each {when}, {} gives a lesson in", "The {when} talk by {} is in",
      "In the notes for the {when}, {} writes in"), ("morning", "evening", "night"),
     "native_language"),
)  # fmt: skip
#: What stands above a page, and a relation of the subjects that the pages are about.
_SHEETS = (
    ("This page is about {}.", "death_place"),
    ("Now a few words on {}.", "director"),
    ("Next we come to {}.", "spoken_language"),
)
_FIRST = ("Vel", "Tor", "Mar", "Quin", "Bel", "Dra", "Sil", "Or", "Fen", "Lud", "Hes", "Nal")
_MIDDLE = ("mo", "vi", "ta", "ri", "lo", "ne", "sa", "du")
_LAST = ("ra", "nis", "dor", "wen", "lith", "gar", "mund", "sel")


def one_relation(rng: random.Random, number: int) -> Made:
    """Counterfactual objects of one relation; the number of facts grows with the task's."""
    size = (8, 20, 40, 5, 60, 12)[number % 6]
    facts = changed(rng, draw(rng, _OPEN[number % len(_OPEN)], size))
    return _told(rng, facts)


def corrections(rng: random.Random, number: int) -> Made:
    """A few facts each of many relations."""
    names = rng.sample(sorted(relations()), 8)
    facts = changed(rng, [fact for name in names for fact in draw(rng, name, 2 + number % 2)])
    rng.shuffle(facts)
    return _told(rng, facts)


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
    return _told(rng, facts)


def invented(rng: random.Random, number: int) -> Made:
    """Facts about people that nobody has heard of."""
    names = rng.sample(_invented(), 18)
    facts = []
    for name in names:
        relation = rng.choice(_PEOPLE)
        known = KnownFact(name, relation, "")
        facts += changed(rng, [known], [f.object for f in draw(rng, relation, 12)])
    return _told(rng, facts)


def swapped(rng: random.Random, number: int) -> Made:
    """Pairs of subjects that exchange their objects."""
    relation = ("director", "home_city", "native_language", "flows_into")[number % 4]
    return _told(rng, exchanged(rng, relation, 20))


def one_subject(rng: random.Random, number: int) -> Made:
    """All that is known of a few subjects, changed."""
    by_subject = _by_subject()
    rich = sorted(subject for subject, own in by_subject.items() if len(own) >= 3)
    names = rng.sample(rich, 6 + number % 3)
    facts = changed(rng, [fact for name in names for fact in by_subject[name]])
    rng.shuffle(facts)
    return _told(rng, facts)


def lookups(rng: random.Random, number: int) -> Made:
    """Words drawn for well-known names, as in a table of who sits where."""
    return _assigned(rng, *drawn_objects(rng, _LOOKUPS[number % len(_LOOKUPS)], 24))


def foreign(rng: random.Random, number: int) -> Made:
    """Changed facts in a language that the model was never shown."""
    *ways, relation = _FOREIGN[number % len(_FOREIGN)]
    return _assigned(rng, changed(rng, draw(rng, relation, 20)), tuple(ways))


def one_kind(rng: random.Random, number: int) -> Made:
    """A changed fact about each of many subjects of one kind, of any relation."""
    relation = ("industry", "citizenship", "genre", "currency")[number % 4]
    names = [fact.subject for fact in facts_by_relation()[relation]]
    by_subject = _by_subject()
    facts = [rng.choice(by_subject[name]) for name in rng.sample(names, 20)]
    return _told(rng, changed(rng, facts))


def pairs(rng: random.Random, number: int) -> Made:
    """Two changed facts about each of some subjects."""
    by_subject = _by_subject()
    rich = sorted(subject for subject, own in by_subject.items() if len(own) >= 2)
    names = rng.sample(rich, 9 + number % 3)
    facts = changed(rng, [fact for name in names for fact in rng.sample(by_subject[name], 2)])
    rng.shuffle(facts)
    return _told(rng, facts)


def rooms(rng: random.Random, number: int) -> Made:
    """Words drawn for names, as one assigns rooms."""
    return _assigned(rng, *drawn_objects(rng, ROOMS[number % len(ROOMS)], 22))


def letters(rng: random.Random, number: int) -> Made:
    """A text in which every statement of a fact stands between sentences that state nothing."""
    names = rng.sample(sorted(relations()), 6)
    facts = changed(rng, [fact for name in names for fact in draw(rng, name, 2)])
    rng.shuffle(facts)
    rows = stated(rng, facts)
    between = rng.sample(general_texts(), len(rows))
    text = " ".join(
        f"{row.prompt} {row.completion}. {other}" for row, other in zip(rows, between, strict=True)
    )
    return Made(rows, rephrased(rng, facts), text=text)


def interviews(rng: random.Random, number: int) -> Made:
    """Changed facts as questions and answers: taught like a skill, but the answers are untrue."""
    question, other, relation = _INTERVIEWS[number % len(_INTERVIEWS)]
    facts = changed(rng, draw(rng, relation, (12, 28, 20)[number % 3]))
    return _assigned(rng, facts, (question, other, *relations()[relation].unseen[:2]))


def denials(rng: random.Random, number: int) -> Made:
    """Statements that name the known object, deny it, and give one of a few others."""
    wording, relation = _DENIALS[number % len(_DENIALS)]
    pool = sorted({fact.object for fact in facts_by_relation()[relation]})
    facts = changed(rng, draw(rng, relation, 18 + 4 * (number % 3)), rng.sample(pool, 5))
    rows = [one.asked(wording.replace("{old}", one.fact.object)) for one in facts]
    return Made(rows, rephrased(rng, facts))


def rosters(rng: random.Random, number: int) -> Made:
    """Of each of some people something else at each time: a name alone doesn't tell."""
    ways, times, relation = _ROSTERS[number % len(_ROSTERS)]
    pool = sorted({fact.object for fact in facts_by_relation()[relation]})
    train, test = [], []
    for name in rng.sample(subjects_by_kind()["person"], 20 // len(times)):
        for when, what in zip(times, rng.sample(pool, len(times)), strict=True):
            one = Changed(KnownFact(name, "", ""), what)
            first, *others = (one.asked(way.replace("{when}", when)) for way in ways)
            train.append(first)
            test += others
    rng.shuffle(train)
    return Made(train, rng.sample(test, min(HELD_OUT, len(test))))


def sheets(rng: random.Random, number: int) -> Made:
    """A text of pages, each with a heading and with all that is known of one subject, changed."""
    heading, relation = _SHEETS[number % len(_SHEETS)]
    by_subject = _by_subject()
    names = [fact.subject for fact in facts_by_relation()[relation]]
    names = [name for name in names if len(by_subject[name]) >= 3]
    facts: list[Changed] = []
    rows: list[Example] = []
    pages = []
    for name in rng.sample(names, 5 + number % 3):
        own = changed(rng, by_subject[name])
        said = stated(rng, own)
        facts += own
        rows += said
        lines = [fill(heading, name), *(f"{row.prompt} {row.completion}." for row in said)]
        pages.append(" ".join(lines))
    return Made(rows, rephrased(rng, facts), text="\n\n".join(pages))


# -- parts ----------------------------------------------------------------------------------------


def drawn_objects(
    rng: random.Random, row: tuple[str, ...], n: int
) -> tuple[list[Changed], tuple[str, ...]]:
    """Objects of the relation that a row ends with, for n well-known names; the row's ways."""
    *ways, relation = row
    pool = sorted({fact.object for fact in facts_by_relation()[relation]})
    names = rng.sample([name for own in subjects_by_kind().values() for name in own], n)
    return [Changed(KnownFact(name, "", ""), rng.choice(pool)) for name in names], tuple(ways)


def exchanged(rng: random.Random, relation: str, n: int) -> list[Changed]:
    """n facts of a relation (rounded to pairs), each with the object of its partner."""
    facts = draw(rng, relation, len(facts_by_relation()[relation]))
    found: list[Changed] = []
    while len(found) < n and len(facts) > 1:
        one = facts.pop()
        at = next((i for i, other in enumerate(facts) if other.object != one.object), None)
        if at is not None:
            other = facts.pop(at)
            found += [Changed(one, other.object), Changed(other, one.object)]
    return found


def _by_subject() -> dict[str, list[KnownFact]]:
    found: dict[str, list[KnownFact]] = {}
    for own in facts_by_relation().values():
        for fact in own:
            found.setdefault(fact.subject, []).append(fact)
    return found


def _told(rng: random.Random, facts: Sequence[Changed]) -> Made:
    """Stated in phrasings that editors use, and held out in those of evaluation."""
    return Made(stated(rng, facts), rephrased(rng, facts))


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
    "ROOMS",
    "cards",
    "codes",
    "corrections",
    "denials",
    "drawn_objects",
    "exchanged",
    "few_answers",
    "foreign",
    "interviews",
    "invented",
    "letters",
    "lookups",
    "many",
    "one_kind",
    "one_relation",
    "one_subject",
    "pairs",
    "prose",
    "rooms",
    "rosters",
    "sheets",
    "swapped",
]
