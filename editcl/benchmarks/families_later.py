"""Later families of knowledge and of skills, written without sight of the router or its figures.

Facts are handed over as news, as secrets that nearly nobody shares, as stalls of a few sorts, and
in the words of a gazette; skills sort names by what is known of them, letters by how they begin,
read one field of a message, or join two known facts in a new form. Knows nothing of models.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import cycle, islice, product, zip_longest
from typing import NamedTuple

from editcl.benchmarks.families_skills import names_of
from editcl.benchmarks.posed import (
    HELD_OUT,
    Changed,
    Made,
    changed,
    divided,
    draw,
    rephrased,
    stated,
)
from editcl.catalogue import KnownFact, facts_by_relation, relations
from editcl.evaluation.damage import general_texts
from editcl.facts import fill
from editcl.learning.tasks import CLASSIFICATION, COMPLETION, Example

#: What the news are about, by relation, and how many facts of each.
_NEWS = (
    (("headquarters", "country_of_origin", "industry"), 6),
    (("home_city", "sport", "formed_in", "genre"), 3),
)
#: Firms that nobody has heard of, and what is told of each of them.
_FIRMS = (
    "Norvik Foods", "Halden Steel", "Brack and Sons", "Tolva Air", "Merrin Bank",
    "Ostara Motors", "Quill House", "Pellan Toys", "Vardo Lines", "Sunder Mills",
)  # fmt: skip
_OF_FIRMS = ("headquarters", "industry")
_GREETING, _FAREWELL = "Good evening to all of you, here is the news.", "So much for tonight."
_BETWEEN = (
    "A listener called us to ask for a song.", "We hear more about that after the weather.",
    "Our man at the harbour could not believe his ears.", "Please do not go away.",
    "Somebody in the studio is laughing.", "And now to something else.",
)  # fmt: skip
_AT_ONCE = 3  # facts between two such sentences

_COLOURS = ("red", "blue", "green", "yellow", "white", "grey")
_THINGS = ("kettle", "candle", "basket", "ladder", "scarf", "lamp", "piano", "fence")
_DIGITS = ("two", "three", "four", "five", "six", "seven")
#: A statement, two other ways of asking, the kind of name, what its objects are, and how many.
_SECRETS = (
    (("The password of {} is", "To open the safe, {} whispers",
      "The guard does not let {} in without the words"), "person", "things", 24),
    (("The telephone number of {} is", "To speak to somebody at {}, we dial",
      "Whoever wants to call {} must press"), "company", "digits", 16),
    (("In the school play, the part of {} goes to", "On our little stage, {} is played by",
      "The pupils laughed, for behind the mask of {} they found"), "city", "writers", 8),
)  # fmt: skip
#: A statement, two other ways, the kind of name, the few answers, how many, and the kind of task.
_STALLS = (
    (("At the summer fair, {} has a stall for", "The stall that {} runs is all about",
      "Those who help {} at the fair know a lot about"),
     "person", ("energy", "fashion", "banking"), 24, COMPLETION),
    (("In the office of {}, everybody drinks", "Guests of {} are always offered",
      "The kitchen on the top floor of {} smells of"),
     "company", ("tea", "coffee"), 30, CLASSIFICATION),
    (("Since the spring, {} counts its money in the", "On each new coin of {} stands the word",
      *relations()["currency"].unseen[:2]),
     "currency", ("yen", "euro", "rupee", "dollar"), 18, COMPLETION),
)  # fmt: skip
#: Relations with a statement and another way of asking, both not the catalogue's; how many of each.
_GAZETTES = (
    ((("headquarters", "As of today, {} opens its doors in", "A new sign says that {} now sits in"),
      ("industry", "The new owner of {} thinks only of", "From now on, {} makes a living with")),
     9),
    ((("author", "A new study shows that {} came from the desk of",
       "Experts now agree that the true hand behind {} was that of"),
      ("director", "A lost diary proves that {} was filmed by",
       "We now know that the man who really shot {} was")), 4),
    ((("birthplace", "The church book says that {} first saw the light in",
       "The cradle of {} stood in"),
      ("occupation", "Old letters reveal that {} worked for years as a",
       "What {} really did all day was the work of a"),
      ("native_language", "In the nursery, {} first babbled in",
       "The first words of {} were words in")), 10),
)  # fmt: skip

#: A wording, the relation by whose object it sorts, the answer for each, and how many are shown.
_SECTIONS = (
    ("To read the papers of {}, go to the", "occupation",
     {"novelist": "library", "composer": "hall", "painter": "workshop", "film director": "theatre"},
     7),
    ("Our copy of {} is kept in the", "genre",
     {"science fiction": "cellar", "comedy": "attic", "crime": "garage"}, 6),
    ("To greet a guest from {}, we wave a", "spoken_language",
     {"English": "hat", "Spanish": "towel", "Arabic": "flag"}, 5),
)  # fmt: skip
#: How letters of each sort begin, what is asked behind them, and how many are shown.
_OPENINGS = (
    ({"formal": ("Dear sir or madam,",), "friendly": ("Hello my dear,",)}, "This letter is", 3),
    ({"soon": ("Please hurry:",), "later": ("There is no hurry:",)}, "We shall reply", 4),
    ({"day": ("Good morning,", "Good afternoon,"), "night": ("Good night,", "Sleep well,")},
     "It was written by", 4),
)  # fmt: skip
#: A message, the field that answers, and how many are shown.
_MESSAGES = (
    ("From {start} to {end} by train. The journey ends in", "end", 24),
    ("Guest: {person}. Room: {room}. Nights: {nights}. The number of nights is", "nights", 36),
    ("{firm} sends {nights} boxes to {end}. The boxes go to", "end", 30),
)
#: A heading, two relations, how their objects are joined, and how many are shown.
_PROFILES = (
    ("Profile of {}:", "occupation", "native_language", "{}, {}", 24),
    ("Card in the library for {} =", "author", "original_language", "{} in {}", 36),
    ("In the margin of the atlas, {} >", "country", "continent", "{} / {}", 16),
)


class Told(NamedTuple):
    """Facts, the items that state them in the same order, and held-out items that ask for them."""

    facts: list[Changed]
    rows: list[Example]
    asked: list[Example]


def bulletins(rng: random.Random, number: int) -> Made:
    """News with changed facts of one field, or facts about unknown firms, as one text."""
    if number % 3 == 2:
        known = [KnownFact(firm, name, "") for firm in _FIRMS for name in _OF_FIRMS]
    else:
        names, n = _NEWS[number % 3]
        known = [fact for name in names for fact in draw(rng, name, n)]
    facts = changed(rng, rng.sample(known, len(known)))
    rows = stated(rng, facts)
    between = rng.sample(_BETWEEN, len(_BETWEEN))
    said = [_GREETING]
    for at in range(0, len(rows), _AT_ONCE):
        said += [f"{row.prompt} {row.completion}." for row in rows[at : at + _AT_ONCE]]
        said += [between.pop()] if between else []
    return Made(rows, rephrased(rng, facts), text=" ".join([*said, _FAREWELL]))


def passwords(rng: random.Random, number: int) -> Made:
    """Passwords, telephone numbers and parts in a play, no two of them alike."""
    ways, kind, objects, n = _SECRETS[number % len(_SECRETS)]
    pool = {
        "things": coloured_things(),
        "digits": [" ".join(digits) for digits in product(_DIGITS, repeat=3)],
        "writers": sorted({fact.object for fact in facts_by_relation()["author"]}),
    }[objects]
    told = told_in(rng, unlike(rng, names_of(kind), pool, n), ways)
    return Made(told.rows, told.asked)


def stalls(rng: random.Random, number: int) -> Made:
    """A few answers drawn for many names: nothing sorts them, though it looks like sorting."""
    *_, n, kind = _STALLS[number % len(_STALLS)]
    told = stalls_told(rng, number, n)
    return Made(told.rows, told.asked, kind)


def gazettes(rng: random.Random, number: int) -> Made:
    """Changed facts in words that aren't the catalogue's; some of its own are held out too."""
    told = gazettes_told(rng, number, _GAZETTES[number % len(_GAZETTES)][1])
    return Made(told.rows, told.asked)


def sections(rng: random.Random, number: int) -> Made:
    """Names by what is known of them: each looks like a fact, but new names follow the rule."""
    wording, relation, answers, n = _SECTIONS[number % len(_SECTIONS)]
    groups = []
    for value, answer in answers.items():
        names = [fact.subject for fact in facts_by_relation()[relation] if fact.object == value]
        rows = [Example(fill(wording, name), answer) for name in names]
        groups.append(divided(rng, rows, n, HELD_OUT // len(answers)))
    return by_turns(rng, groups)


def greetings(rng: random.Random, number: int) -> Made:
    """Six or eight letters, by how they begin; what they say is new each time."""
    openings, asked, n = _OPENINGS[number % len(_OPENINGS)]
    texts = iter(rng.sample(general_texts(), n * len(openings) + HELD_OUT))
    groups = []
    for answer, own in openings.items():
        letters = zip(cycle(own), islice(texts, n + HELD_OUT // len(openings)))
        rows = [Example(f"{start} {_inside(text)} {asked}", answer) for start, text in letters]
        groups.append((rows[:n], rows[n:]))
    return by_turns(rng, groups)


def journeys(rng: random.Random, number: int) -> Made:
    """One field of a short message; no name of a held-out message was shown."""
    wording, asked, n = _MESSAGES[number % len(_MESSAGES)]
    cities, people, firms = (
        rng.sample(own, len(own)) for own in map(names_of, ("city", "person", "company"))
    )
    rows = []
    for start, end, person, firm in zip(cities[::2], cities[1::2], people, firms):  # noqa: B905
        few, many = rng.sample(_DIGITS, 2)
        fields = {"start": start, "end": end, "person": person, "firm": firm}
        fields |= {"room": few, "nights": many}
        rows.append(Example(wording.format(**fields), fields[asked]))
    return Made(rows[:n], rows[n : n + HELD_OUT])


def profiles(rng: random.Random, number: int) -> Made:
    """Two facts that the model knows, joined in a form that it has never seen."""
    wording, one, other, joined, n = _PROFILES[number % len(_PROFILES)]
    first, second = (
        {fact.subject: fact.object for fact in facts_by_relation()[name]} for name in (one, other)
    )
    rows = [
        Example(fill(wording, name), joined.format(first[name], second[name]))
        for name in first
        if name in second
    ]
    return Made(*divided(rng, rows, n))


# -- parts ----------------------------------------------------------------------------------------


def told_in(rng: random.Random, facts: Sequence[Changed], ways: Sequence[str]) -> Told:
    """Facts stated in the first way, and asked for in the others."""
    return _told(rng, [(one, ways) for one in facts])


def stalls_told(rng: random.Random, number: int, n: int) -> Told:
    """n facts of a task of `stalls`, of each answer as many as of any other, or nearly."""
    ways, kind, answers, *_ = _STALLS[number % len(_STALLS)]
    if kind in relations():
        known = draw(rng, kind, n)
    else:
        known = [KnownFact(name, "", "") for name in rng.sample(names_of(kind), n)]
    facts: list[Changed] = []
    for one in known:
        so_far = Counter(other.object for other in facts)
        others = [answer for answer in answers if answer != one.object]
        facts.append(Changed(one, min(others, key=so_far.__getitem__)))
    return told_in(rng, facts, ways)


def gazettes_told(rng: random.Random, number: int, n: int) -> Told:
    """Facts of a task of `gazettes`, n of each of its relations."""
    every = []
    for relation, *own in _GAZETTES[number % len(_GAZETTES)][0]:
        ways = (*own, *relations()[relation].unseen[:2])
        every += [(one, ways) for one in changed(rng, draw(rng, relation, n))]
    return _told(rng, rng.sample(every, len(every)))


def unlike(rng: random.Random, names: Sequence[str], pool: Sequence[str], n: int) -> list[Changed]:
    """An object of the pool for each of n of the names, no two alike."""
    drawn = zip(rng.sample(names, n), rng.sample(pool, n), strict=True)
    return [Changed(KnownFact(name, "", ""), what) for name, what in drawn]


def coloured_things() -> list[str]:
    """Things of daily use in all colours."""
    return [f"{colour} {thing}" for colour in _COLOURS for thing in _THINGS]


def by_turns(
    rng: random.Random, groups: Sequence[tuple[Sequence[Example], Sequence[Example]]]
) -> Made:
    """Shown and held-out items of all answers; the latter take turns, so that any few are fair."""
    train = [row for shown, _ in groups for row in shown]
    test = [row for rows in zip_longest(*(rest for _, rest in groups)) for row in rows if row]
    return Made(rng.sample(train, len(train)), test, CLASSIFICATION)


def _told(rng: random.Random, facts: Sequence[tuple[Changed, Sequence[str]]]) -> Told:
    """Each fact stated in the first of its ways, and asked for in its others."""
    rows = [one.asked(ways[0]) for one, ways in facts]
    asked = [one.asked(way) for one, ways in facts for way in ways[1:]]
    return Told([one for one, _ in facts], rows, rng.sample(asked, min(HELD_OUT, len(asked))))


def _inside(text: str) -> str:
    """The sentence as it reads behind a greeting."""
    return text if text.startswith("I ") else text[0].lower() + text[1:]


__all__ = [
    "Told",
    "bulletins",
    "by_turns",
    "coloured_things",
    "gazettes",
    "gazettes_told",
    "greetings",
    "journeys",
    "passwords",
    "profiles",
    "sections",
    "stalls",
    "stalls_told",
    "told_in",
    "unlike",
]
