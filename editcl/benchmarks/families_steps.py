"""Families of skills that take more than one step: find what counts in the prompt, then answer.

The step before the answer is to recall what is known of a name, to choose among several names, to
see from others what is asked, or to find the word on which a sentence turns. Held out are names and
sentences no part of which was asked before. Knows nothing of models.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import zip_longest

from editcl.benchmarks.families_skills import names_of
from editcl.benchmarks.posed import HELD_OUT, Made, divided, draw
from editcl.catalogue import facts_by_relation
from editcl.facts import fill
from editcl.learning.tasks import CLASSIFICATION, Example

#: A wording, the relation by whose object it sorts names, the answer for each object, and how many
#: names of each are shown.
_TEAMS = (
    ("The picture of {} hangs near the", "continent",
     {"Europe": "door", "Asia": "window", "Africa": "stairs", "North America": "clock"}, 8),
    ("Cups for {} are carried to the", "native_language",
     {"English": "garden", "German": "kitchen", "Italian": "roof"}, 10),
    ("A parcel from {} goes on the", "country",
     {"United States": "train", "United Kingdom": "boat", "Italy": "cart"}, 6),
)  # fmt: skip
#: Names to choose from, how many, the place of the answer, and how many lists are shown.
_PICKS = (
    ("{names}: the second of these is", 3, 1, 36),
    ("They came in this order: {names}. The first to come was", 4, 0, 30),
)
#: The same where the answer is the one that is a person.
_PERSON = "There is one person among {names}, namely"
#: How one line of a series begins, what stands between lines, how many are given before the one
#: that is asked, the relation, and how many series are shown.
_SERIES = (
    ("{} goes with", ". ", 2, "official_language", 20),
    ("{}, by", "; ", 1, "author", 30),
    ("{} /", ", ", 3, "home_city", 14),
)

#: Beginnings of sentences, ends, the answer for each word between them, and the question behind.
_TURNS: tuple[tuple[Sequence[str], Sequence[str], dict[str, str], str], ...] = (
    (("she closed the shop", "he put on his coat", "they stayed in the house",
      "we sat near the fire", "the boys hid behind the hedge", "I washed the dishes",
      "the dog ran to the gate", "he looked for the key", "they lit a candle", "she took the bus"),
     ("the rain fell", "the wind was cold", "the guests came", "it was dark in the yard",
      "the clock struck nine", "the children slept", "the snow lay on the road",
      "the music played", "the train was late", "the soup was hot"),
     {"because": "why", "before": "when", "until": "when", "and": "what", "but": "what"},
     "The last part tells"),
    (("the baker", "our neighbour", "the old man", "my aunt", "the boy", "the nurse", "a friend",
      "the driver", "her cousin", "the gardener"),
     ("opened the door", "read the newspaper", "cut the bread", "waited for the bus",
      "carried the basket", "cleaned the windows", "played cards", "walked over the bridge",
      "wore a red scarf", "counted the money"),
     {"never": "no", "always": "yes", "often": "yes"}, "Did that happen?"),
    (("the cat was", "a ball lay", "the letter was", "he saw a coin", "they left the box",
      "a bird sat", "she found a ring", "the lantern hung", "we kept the tools", "a bag stood"),
     ("the table", "the shelf", "the old bench", "the bridge", "the stairs", "a chair", "the roof",
      "the window", "the bed", "the cupboard"),
     {"above": "high", "over": "high", "under": "low", "below": "low", "beside": "level",
      "behind": "level"},
     "How high? It was"),
)  # fmt: skip
_SEEN = 5  # beginnings, and ends, that may be shown; the others are for what is held out


def teams(rng: random.Random, number: int) -> Made:
    """Names sorted by what is known of them, which isn't said; the answers have no sense."""
    wording, relation, answers, n = _TEAMS[number % len(_TEAMS)]
    groups = []
    for value, answer in answers.items():
        names = [fact.subject for fact in facts_by_relation()[relation] if fact.object == value]
        rows = [Example(fill(wording, name), answer) for name in names]
        groups.append(divided(rng, rows, n, HELD_OUT // len(answers)))
    return _sorted(rng, groups)


def picks(rng: random.Random, number: int) -> Made:
    """One of several names, by its place among them or by what it stands for."""
    if number % 3 == 2:
        return _persons(rng)
    wording, size, place, n = _PICKS[number % 3]
    every = [name for kind in ("person", "city", "company") for name in names_of(kind)]
    names = rng.sample(every, size * (n + HELD_OUT))
    lists = [names[at : at + size] for at in range(0, len(names), size)]
    rows = [Example(wording.format(names=_listed(own)), own[place]) for own in lists]
    return Made(rows[:n], rows[n:])


def series(rng: random.Random, number: int) -> Made:
    """A relation that is not named: facts go before, and the next one is to be ended truly."""
    start, between, given, relation, n = _SERIES[number % len(_SERIES)]
    facts = draw(rng, relation, n + HELD_OUT)
    shown, held_out = facts[:n], facts[n:]
    rows = []
    for fact in (*shown, *held_out):
        others = [other for other in shown if other.object != fact.object]
        before = rng.sample(others, given)
        lines = [f"{fill(start, other.subject)} {other.object}" for other in before]
        rows.append(Example(between.join([*lines, fill(start, fact.subject)]), fact.object))
    return Made(rows[:n], rows[n:])


def turns(rng: random.Random, number: int) -> Made:
    """Sentences sorted by one word in their middle; what stands around it is new when asked."""
    starts, ends, answers, question = _TURNS[number % len(_TURNS)]
    starts, ends = rng.sample(starts, len(starts)), rng.sample(ends, len(ends))
    n, labels = (8, 6, 10)[number % 3], tuple(dict.fromkeys(answers.values()))
    groups = []
    for label in labels:
        words = [word for word, answer in answers.items() if answer == label]
        shown = _turned(starts[:_SEEN], words, ends[:_SEEN], question, label)
        others = _turned(starts[_SEEN:], words, ends[_SEEN:], question, label)
        groups.append((rng.sample(shown, n), rng.sample(others, HELD_OUT // len(labels))))
    return _sorted(rng, groups)


# -- parts ----------------------------------------------------------------------------------------


def _persons(rng: random.Random) -> Made:
    n = 40
    people = rng.sample(names_of("person"), n + HELD_OUT)
    others = rng.sample([*names_of("city"), *names_of("company")], 2 * len(people))
    rows = []
    for at, person in enumerate(people):
        own = [person, *others[2 * at : 2 * at + 2]]
        rng.shuffle(own)
        rows.append(Example(_PERSON.format(names=_listed(own)), person))
    return Made(rows[:n], rows[n:])


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _turned(
    starts: Sequence[str], words: Sequence[str], ends: Sequence[str], question: str, answer: str
) -> list[Example]:
    return [
        Example(f"{start[0].upper()}{start[1:]} {word} {end}. {question}", answer)
        for start in starts
        for word in words
        for end in ends
    ]


def _sorted(
    rng: random.Random, groups: Sequence[tuple[Sequence[Example], Sequence[Example]]]
) -> Made:
    """Items and held-out items of all answers; the latter take turns, so that any few are fair."""
    train = [row for shown, _ in groups for row in shown]
    test = [row for rows in zip_longest(*(rest for _, rest in groups)) for row in rows if row]
    return Made(rng.sample(train, len(train)), test, CLASSIFICATION)


__all__ = ["picks", "series", "teams", "turns"]
