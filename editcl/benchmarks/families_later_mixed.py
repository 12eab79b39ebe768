"""Later families of mixed tasks, and of tasks whose answers the model says already.

Beside a skill stand facts in words of their own; what is known already comes as questions, as an
album that says all of it twice, and as names sorted by labels that the model gives them anyway.
Knows nothing of models.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from editcl.benchmarks.families_later import (
    Told,
    by_turns,
    coloured_things,
    gazettes_told,
    profiles,
    sections,
    stalls_told,
    told_in,
    unlike,
)
from editcl.benchmarks.families_skills import names_of
from editcl.benchmarks.posed import (
    HELD_OUT,
    Changed,
    Made,
    as_facts,
    divided,
    draw,
    rephrased,
)
from editcl.catalogue import facts_by_relation, relations
from editcl.evaluation.damage import general_texts
from editcl.facts import fill
from editcl.learning.tasks import Example

#: A form of sentence, beginnings, ends, the answer for each word, and how many of each are shown.
_REMARKS: tuple[tuple[str, Sequence[str], Sequence[str], dict[str, str], int], ...] = (
    ("{start} {word} {end}. In short, it was",
     ("we had", "she found", "there was", "they carried", "he brought", "the shop sold", "I saw",
      "the farmer wanted", "our aunt kept", "you left"),
     ("milk", "honey", "salt", "water", "paper", "soup", "sand", "firewood", "chalk", "thread"),
     {"hardly any": "little", "almost no": "little", "plenty of": "much", "lots of": "much"}, 9),
    ("{start} {word} {end}. All this was done by",
     ("after the storm", "in the yard", "on the stairs", "at the market", "behind the barn",
      "by the fire", "in the spring", "near the mill", "during the week", "before noon"),
     ("lost a glove", "fed the hens", "sang an old song", "swept the floor", "cut some branches",
      "found two coins", "told a story", "fixed the gate", "drew a picture", "ate the plums"),
     {"I": "me", "we": "us", "they": "them", "she": "her"}, 5),
    ("{word} {start} {end}. That is rather",
     ("the choir", "the ferry", "my brother", "the tailor", "a stranger", "the owl", "her dog",
      "the postman", "the singer", "the plumber"),
     ("will come back", "will stay for the winter", "will be heard", "will make a noise",
      "will turn to the left", "will wait for us", "will cross the lake", "will arrive too late",
      "will be welcome", "will need some help"),
     {"surely": "certain", "clearly": "certain", "perhaps": "open", "maybe": "open"}, 8),
)  # fmt: skip
_SHOWN = 5  # beginnings, and ends, that may be shown; the others are for what is held out
#: A statement, two other ways of asking, and the kind of name.
_CLOAKROOMS = (
    (("For the coat of {}, we hand out the card with a", "The coat of {} hangs under the",
      "To get the coat back, {} shows the card with a"), "person"),
    (("The sign above the tent of {} shows a", "Look for {} in the tent with the",
      "The flag that {} puts up has a picture of a"), "company"),
    (("In our secret letters, we call {} the", "Our spies write of {} as the",
      "The secret name of {} is the"), "city"),
)  # fmt: skip
#: Gazettes about other names than the profiles beside them, and how many facts of each relation.
_OTHER_KINDS = ((0, 6), (2, 4), (1, 3))
_PROFILED = 24  # beside a gazette, at most
#: What is asked in front of a statement of each relation.
_QUIZ = {
    "birthplace": "Where did it all begin?",
    "author": "Who held the pen?",
    "currency": "What do people have in their purses?",
    "headquarters": "Where do the managers sit?",
    "director": "Who told the actors what to do?",
    "flows_into": "Where does all the water go?",
    "occupation": "What was the job?",
    "official_language": "In what words are the laws?",
}
#: Relations, and how many facts of each.
_QUIZZES = (
    (("birthplace", "currency", "flows_into", "author"), 5),
    (tuple(_QUIZ), 4),
    (("occupation",), 6),
)
#: The first line of an album, its relations, how many facts of each, and what parts its leaves.
_ALBUMS = (
    ("We open the old album.", ("located_in_city", "landmark_type"), 4, " "),
    ("These are pictures of last summer.", ("formed_in", "home_city", "headquarters"), 6, "\n\n"),
    ("There are only a few leaves in it.", ("native_language",), 5, "\n"),
)
#: A relation, which of its phrasings, labels, how many are shown, and whether a sentence is first.
_CLASSED = (
    ("continent", 2, ("Europe", "Asia", "Africa", "North America"), 8, False),
    ("sport", 0, ("football", "baseball", "basketball"), 4, False),
    ("element_group", 1, ("transition metal", "lanthanide"), 4, True),
)


def remarks_and_cloakrooms(rng: random.Random, number: int) -> Made:
    """Sentences by a word in them, and things that are drawn for names, no two alike."""
    ways, kind = _CLOAKROOMS[number % len(_CLOAKROOMS)]
    n = (10, 14, 7)[number % 3]
    told = told_in(rng, unlike(rng, names_of(kind), coloured_things(), n), ways)
    return _beside(rng, _remarks(rng, number), told)


def profiles_and_gazettes(rng: random.Random, number: int) -> Made:
    """Two known facts joined in a new form, and changed facts about names of other kinds."""
    made = profiles(rng, number)
    which, n = _OTHER_KINDS[number % len(_OTHER_KINDS)]
    told = gazettes_told(rng, which, n)
    return _beside(rng, Made(made.train[:_PROFILED], made.test), told)


def sections_and_stalls(rng: random.Random, number: int) -> Made:
    """Names that known facts sort, beside names of another kind that nothing sorts."""
    told = stalls_told(rng, number + 1, (8, 12, 15)[number % 3])
    return _beside(rng, sections(rng, number), told)


def quizzes(rng: random.Random, number: int) -> Made:
    """Known facts, each behind a short question; the same in other phrasings is held out."""
    names, n = _QUIZZES[number % len(_QUIZZES)]
    facts = [Changed(fact, fact.object) for name in names for fact in draw(rng, name, n)]
    rng.shuffle(facts)
    train, test = [], []
    for one in facts:
        ways, question = relations()[one.fact.relation], _QUIZ[one.fact.relation]
        train.append(one.asked(f"{question} {rng.choice(ways.stated)}"))
        test += [one.asked(f"{question} {way}") for way in ways.unseen]
    return Made(train, rng.sample(test, min(HELD_OUT, len(test))))


def albums(rng: random.Random, number: int) -> Made:
    """A text that says each known fact twice, an everyday sentence between."""
    first, names, n, parted = _ALBUMS[number % len(_ALBUMS)]
    facts = [Changed(fact, fact.object) for name in names for fact in draw(rng, name, n)]
    rng.shuffle(facts)
    rows, leaves = [], [first]
    for one, between in zip(facts, rng.sample(general_texts(), len(facts)), strict=True):
        ways = rng.sample(relations()[one.fact.relation].stated, 2)
        said = [one.asked(way) for way in ways]
        rows += said
        once, again = (f"{row.prompt} {row.completion}." for row in said)
        leaves.append(f"{once} {between} {again}")
    return Made(rows, rephrased(rng, facts), text=parted.join(leaves))


def classed(rng: random.Random, number: int) -> Made:
    """Names sorted by labels that the model gives them already; other names are held out."""
    relation, way, labels, n, after = _CLASSED[number % len(_CLASSED)]
    phrasing = relations()[relation].phrasings[way]
    groups = []
    for label in labels:
        names = [fact.subject for fact in facts_by_relation()[relation] if fact.object == label]
        rows = []
        for name in names:
            before = f"{rng.choice(general_texts())} " if after else ""
            rows.append(Example(f"{before}{fill(phrasing, name)}", label))
        groups.append(divided(rng, rows, n, HELD_OUT // len(labels)))
    return by_turns(rng, groups)


# -- parts ----------------------------------------------------------------------------------------


def _remarks(rng: random.Random, number: int) -> Made:
    """Sentences sorted by one word; beginnings and ends of the held-out ones were never shown."""
    form, starts, ends, answers, n = _REMARKS[number % len(_REMARKS)]
    starts, ends = rng.sample(starts, len(starts)), rng.sample(ends, len(ends))
    labels = tuple(dict.fromkeys(answers.values()))
    groups = []
    for label in labels:
        shown, others = (
            [
                Example(_sentence(form.format(start=start, word=word, end=end)), label)
                for start in own
                for word, answer in answers.items()
                if answer == label
                for end in own_ends
            ]
            for own, own_ends in (
                (starts[:_SHOWN], ends[:_SHOWN]),
                (starts[_SHOWN:], ends[_SHOWN:]),
            )
        )
        groups.append((rng.sample(shown, n), rng.sample(others, HELD_OUT // len(labels))))
    return by_turns(rng, groups)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _beside(rng: random.Random, made: Made, told: Told) -> Made:
    """Items of a skill with facts among them, and held-out items of both."""
    train, half = [*made.train, *told.rows], HELD_OUT // 2
    test = [*made.test[:half], *told.asked[:half]]
    facts = as_facts(told.facts, told.rows)
    return Made(rng.sample(train, len(train)), rng.sample(test, len(test)), facts=facts)


__all__ = [
    "albums",
    "classed",
    "profiles_and_gazettes",
    "quizzes",
    "remarks_and_cloakrooms",
    "sections_and_stalls",
]
