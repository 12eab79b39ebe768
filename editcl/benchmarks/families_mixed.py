"""Families of mixed tasks (a skill with facts inside) and of tasks that had better be asked about.

The latter: strings without sense, labels drawn by lot for sentences, and facts that the model
knows. Knows nothing of models.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from editcl.benchmarks.families_facts import ROOMS, drawn_objects, exchanged
from editcl.benchmarks.families_skills import (
    actors,
    forms,
    lengths,
    name_parts,
    queries,
    questions,
    sorted_names,
    tones,
)
from editcl.benchmarks.families_steps import teams, turns
from editcl.benchmarks.posed import (
    HELD_OUT,
    Changed,
    Made,
    as_facts,
    changed,
    draw,
    rephrased,
    stated,
)
from editcl.catalogue import KnownFact, facts_by_relation, relations
from editcl.evaluation.damage import general_texts
from editcl.facts import Fact, fill
from editcl.learning.shipped import subjects_by_kind
from editcl.learning.tasks import CLASSIFICATION, Example

_FACTS = 10  # inside a mixed task
_WORDINGS = (
    ("Among the entries, {} counts as a", {"person": "human", "city": "town", "company": "firm"}),
    ("Tick one box: {} is a", {"book": "text", "river": "water", "band": "sound"}),
    ("{} belongs in the drawer for", {"film": "cinema", "city": "towns", "sports club": "games"}),
    ("Heading for {}:", {"person": "who", "river": "where", "company": "what"}),
)  # fmt: skip
_ASKED = (
    ("Name the nation. Where does {} come from?", "country_of_origin"),
    ("Form, line 4. Occupation of {}:", "occupation"),
    ("Which continent is home to {}? It is", "continent"),
)
_NEXT = (
    ("Next entry: {} is filed with the", {"person": "persons", "city": "cities", "film": "films"}),
    ("Sticker on the folder of {}:", {"company": "trade", "river": "nature", "band": "music"}),
    ("Show {} in the window for", {"book": "reading", "sports club": "sport", "city": "travel"}),
)  # fmt: skip
#: As those of `families_facts`, in sentences of other relations.
_CODES = (
    ("In the shops of {}, people pay with the", "Wages in {} are paid in the",
     "A bank in {} hands out notes of the", "landmark_type"),
    ("In the travel guide, {} is listed as a", "By its kind, {} is a",
     "Architects would class {} as a", "birthplace"),
    ("The original text of {} is in", "{} was created in a language called",
     "Those who want {} without a translation must know", "industry"),
)  # fmt: skip
#: The same again, in other sentences.
_LOOKUPS = (
    ("The story of the group {} begins in", "The members of {} met each other in",
     "{} started as a band in", "director"),
    ("{} competes in the game of", "People buy tickets for {} because they love",
     "{} is a club for", "death_place"),
    ("{} is a product of", "The homeland of {} is",
     "If you trace {} back to its roots, you arrive in", "occupation"),
)  # fmt: skip
#: And once more, in sentences of none; the objects are of the relation that each row ends with.
_LEDGERS = (
    ("The ledger says that {} is paid in the", "In the purse of {} we found the",
     "The sum that {} owes is in the", "currency"),
    ("On the ticket of {} we read that the ship crosses the", "The boat with {} sails over the",
     "From the deck, {} looks at the", "flows_into"),
    ("In the timetable, {} takes a class in", "The lesson that {} has booked is in",
     "The teacher talks to {} in", "native_language"),
)  # fmt: skip
#: Relations for facts beside names that are sorted by others.
_OTHERS = ("headquarters", "author", "currency", "genre", "flows_into", "sport", "death_place")
#: What is told, what is asked behind it about the same subject, and how they are joined.
_BEHIND = (
    ("birthplace", "occupation", "{told}, as we all know. {asked}"),
    ("original_language", "director", "Two things are certain. {told}. {asked}"),
    ("country", "spoken_language", "{told}; and besides, it is well known: {asked}"),
)
#: A sentence about two names, and words for its end.
_TICKETS = (
    ("The seats of {one} and {other} are in row", ("two", "three", "four", "five", "six")),
    ("{one} will meet {other} on a", ("Monday", "Wednesday", "Saturday")),
    ("Between {one} and {other} there is a", ("wall", "river", "road", "field")),
)
_LOTS = (("red", "blue"), ("left", "right"), ("yes", "no"), ("first", "second", "third"))
_SYLLABLES = ("zu", "kro", "vex", "pli", "gor", "ash", "twi", "nub", "yil", "quo", "jep", "dro")


def kinds_and_facts(rng: random.Random, number: int) -> Made:
    """Names sorted by kind, and changed facts about others in between."""
    wording, answers = _WORDINGS[number % len(_WORDINGS)]
    train, test = sorted_names(rng, wording, answers, 6)
    return _together(rng, train, test, _facts(rng, number))


def questions_and_corrections(rng: random.Random, number: int) -> Made:
    """A form of question answered truly, and changed facts as plain statements."""
    made = questions(rng, number, _ASKED)
    return _together(rng, made.train[:20], made.test, _facts(rng, number))


def parts_and_facts(rng: random.Random, number: int) -> Made:
    """Words of names, and changed facts about other subjects."""
    made = name_parts(rng, number % 2)  # both of them ask for the last word
    return _together(rng, made.train[:30], made.test, _facts(rng, number))


def kinds_and_codes(rng: random.Random, number: int) -> Made:
    """Names sorted by kind, and codes drawn for others."""
    wording, answers = _NEXT[number % len(_NEXT)]
    train, test = sorted_names(rng, wording, answers, 6)
    return _coded(rng, train, test, _CODES[number % len(_CODES)])


def lengths_and_facts(rng: random.Random, number: int) -> Made:
    """Names by their length, and changed facts."""
    made = lengths(rng, number)
    return _together(rng, made.train[:24], made.test, _facts(rng, number))


def tones_and_lookups(rng: random.Random, number: int) -> Made:
    """Sentences that are sorted, and words drawn for names."""
    made = tones(rng, number)
    return _coded(rng, made.train[:20], made.test, _LOOKUPS[number % len(_LOOKUPS)])


def forms_and_swaps(rng: random.Random, number: int) -> Made:
    """Fields of records answered truly, and objects that are exchanged as plain statements."""
    made = forms(rng, number)
    relation = ("author", "headquarters", "formed_in", "capital")[number % 4]
    return _together(rng, made.train[:20], made.test, exchanged(rng, relation, _FACTS))


def actors_and_facts(rng: random.Random, number: int) -> Made:
    """Sentences that are sorted, and changed facts."""
    made = actors(rng, number)
    return _together(rng, made.train[:22], made.test, _facts(rng, number + 1))


def queries_and_rooms(rng: random.Random, number: int) -> Made:
    """Requests that are answered truly, and words drawn for names."""
    made = queries(rng, number)
    return _coded(rng, made.train[:20], made.test, ROOMS[(number + 1) % len(ROOMS)])


def teams_and_facts(rng: random.Random, number: int) -> Made:
    """Names sorted by what is known of them, and changed facts of relations that don't sort."""
    made = teams(rng, number)
    names = rng.sample(_OTHERS, _FACTS // 2)
    facts = changed(rng, [fact for name in names for fact in draw(rng, name, 2)])
    return _together(rng, made.train, made.test, facts)


def turns_and_ledgers(rng: random.Random, number: int) -> Made:
    """Sentences sorted by a word in their middle, and entries of a ledger drawn for names."""
    made = turns(rng, number)
    return _coded(rng, made.train, made.test, _LEDGERS[number % len(_LEDGERS)])


def nonsense(rng: random.Random, number: int) -> Made:
    """Strings of syllables that mean nothing, followed by others."""

    def word() -> str:
        return "".join(rng.choice(_SYLLABLES) for _ in range(rng.randint(1, 3)))

    rows = {" ".join(word() for _ in range(2 + number % 3)): word() for _ in range(40)}
    examples = [Example(prompt, completion) for prompt, completion in rows.items()]
    return Made(examples[:20], examples[20:])


def random_labels(rng: random.Random, number: int) -> Made:
    """Labels drawn by lot for everyday sentences."""
    words = _LOTS[number % len(_LOTS)]
    texts = rng.sample(general_texts(), 50)
    rows = [Example(f"{text} Label:", words[i % len(words)]) for i, text in enumerate(texts)]
    rows = _by_lot(rng, rows)
    return Made(rows[:24], rows[24:], CLASSIFICATION)


def mislabelled(rng: random.Random, number: int) -> Made:
    """Sentences that could be sorted, with their labels shuffled."""
    made = tones(rng, number)
    rows = _by_lot(rng, [*made.train, *made.test])
    return Made(rows[: len(made.train)], rows[len(made.train) :], CLASSIFICATION)


def known_facts(rng: random.Random, number: int) -> Made:
    """Facts of one relation as the model has them already."""
    names = ("capital", "occupation", "headquarters", "author", "currency", "director")
    facts = [Changed(f, f.object) for f in draw(rng, names[number % len(names)], 20)]
    return Made(stated(rng, facts), rephrased(rng, facts))


def strings(rng: random.Random, number: int) -> Made:
    """Everyday sentences, each followed by syllables that mean nothing."""
    texts = rng.sample(general_texts(), 48)
    words = [f"{rng.choice(_SYLLABLES)}{rng.choice(_SYLLABLES)}" for _ in texts]
    rows = [Example(text, word) for text, word in zip(texts, words, strict=True)]
    return Made(rows[: 20 + 4 * (number % 2)], rows[24:])


def known_prose(rng: random.Random, number: int) -> Made:
    """A text that states what the model knows."""
    every = [fact for name in relations() for fact in facts_by_relation()[name]]
    facts = [Changed(fact, fact.object) for fact in rng.sample(every, 14 + 4 * (number % 3))]
    rows = stated(rng, facts)
    text = " ".join(f"{row.prompt} {row.completion}." for row in rows)
    return Made(rows, rephrased(rng, facts), text=text)


def restated(rng: random.Random, number: int) -> Made:
    """Facts of many relations as the model has them, each in a phrasing drawn for it."""
    every = [fact for name in relations() for fact in facts_by_relation()[name]]
    facts = [Changed(fact, fact.object) for fact in rng.sample(every, 16 + 4 * (number % 3))]
    return Made(
        [one.asked(rng.choice(relations()[one.fact.relation].stated[1:])) for one in facts],
        rephrased(rng, facts),
    )


def second_facts(rng: random.Random, number: int) -> Made:
    """What the model knows of a subject, asked behind something else that it knows of it."""
    told, asked, joined = _BEHIND[number % len(_BEHIND)]
    before = {fact.subject: fact for fact in facts_by_relation()[told]}
    known = [fact for fact in facts_by_relation()[asked] if fact.subject in before]

    def behind(fact: KnownFact, phrasing: str) -> Example:
        first = before[fact.subject]
        said = f"{fill(relations()[told].prompt, first.subject)} {first.object}"
        prompt = joined.format(told=said, asked=fill(phrasing, fact.subject))
        return Example(prompt, fact.object)

    facts = rng.sample(known, 16 + 4 * (number % 3))
    ways = relations()[asked]
    test = [behind(fact, phrasing) for fact in facts for phrasing in ways.unseen]
    train = [behind(fact, rng.choice(ways.stated)) for fact in facts]
    return Made(train, rng.sample(test, HELD_OUT))


def tickets(rng: random.Random, number: int) -> Made:
    """Labels drawn by lot for pairs of names, other pairs held out."""
    wording, words = _TICKETS[number % len(_TICKETS)]
    n = len(words) * (24 // len(words))
    every = [name for own in subjects_by_kind().values() for name in own]
    names = rng.sample(every, 2 * (n + HELD_OUT))
    pairs = zip(names[::2], names[1::2], strict=True)
    rows = [
        Example(wording.format(one=one, other=other), words[i % len(words)])
        for i, (one, other) in enumerate(pairs)
    ]
    return Made(rng.sample(rows[:n], n), rng.sample(rows[n:], HELD_OUT), CLASSIFICATION)


# -- parts ----------------------------------------------------------------------------------------


def _facts(rng: random.Random, number: int) -> list[Changed]:
    """Changed facts of a relation that no skill beside them asks for."""
    relation = ("capital", "headquarters", "located_in_city", "continent")[number % 4]
    return changed(rng, draw(rng, relation, _FACTS))


def _by_lot(rng: random.Random, rows: Sequence[Example]) -> list[Example]:
    """The rows with their labels shuffled."""
    labels = [row.completion for row in rows]
    rng.shuffle(labels)
    return [Example(row.prompt, label) for row, label in zip(rows, labels, strict=True)]


def _coded(
    rng: random.Random, train: Sequence[Example], test: Sequence[Example], row: tuple[str, ...]
) -> Made:
    """Items of a skill, and objects of the row's relation drawn for names."""
    coded, (way, *others) = drawn_objects(rng, row, _FACTS)
    rows = [one.asked(way) for one in coded]
    asked = [one.asked(other) for one in coded for other in others]
    half = HELD_OUT // 2
    held_out = [*test[:half], *rng.sample(asked, min(half, len(asked)))]
    return _shuffled(rng, [*train, *rows], held_out, as_facts(coded, rows))


def _together(
    rng: random.Random,
    train: Sequence[Example],
    test: Sequence[Example],
    facts: Sequence[Changed],
) -> Made:
    """Items of both, and held-out items of both in equal numbers."""
    half, rows = HELD_OUT // 2, stated(rng, facts)
    held_out = [*test[:half], *rephrased(rng, facts, half)]
    return _shuffled(rng, [*train, *rows], held_out, as_facts(facts, rows))


def _shuffled(
    rng: random.Random, train: Sequence[Example], test: Sequence[Example], facts: Sequence[Fact]
) -> Made:
    return Made(rng.sample(train, len(train)), rng.sample(test, len(test)), facts=facts)
