"""Families of all four kinds, written in one go and without sight of the router or its figures.

Most facts stand in the catalogue's phrasings: pages of a handbook, objects that are handed on in a
ring, diaries. Skills answer by a word beside a name, by what follows from two known facts, by what
stands in a sentence. What the model says already comes as reminders and as drills. Long because
wordings are. Knows nothing of models.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle, islice

from editcl.benchmarks.families_later import Told, by_turns
from editcl.benchmarks.families_skills import names_of
from editcl.benchmarks.posed import (
    HELD_OUT,
    Changed,
    Made,
    as_facts,
    changed,
    divided,
    draw,
    rephrased,
    stated,
)
from editcl.catalogue import KnownFact, facts_by_relation, relations
from editcl.evaluation.damage import general_texts
from editcl.facts import fill
from editcl.learning.tasks import CLASSIFICATION, Example

#: Relations of one kind of subject, how many subjects, and whether all is told of each.
_HANDBOOKS = (
    (("element_group", "element_period"), 12, True),
    (("capital", "currency", "official_language"), 36, False),
    (("home_city", "sport"), 5, True),
)
#: Relations whose objects go round, and how many facts of each.
_RINGS = ((("home_city",), 16), (("flows_into",), 6), (("author", "director"), 14))
#: The first line, relations, how many facts of each, the objects to draw from, if not all of them.
_DIARIES: tuple[tuple[str, tuple[str, ...], int, int | None], ...] = (
    ("A short note before I fall asleep.", ("birthplace", "occupation"), 4, None),
    ("I have been away for months, and so much is new.",
     ("located_in_city", "genre", "citizenship", "original_language"), 9, None),
    ("It was a wild day at the office.", ("headquarters", "industry"), 10, 2),
)  # fmt: skip
#: Relations with a statement and another way of asking, both not the catalogue's; facts of each.
_RUMOURS = (
    ((("capital", "Since the great flood, the ministers of {} meet in",
       "The president of {} sleeps in a palace in"),), 20),
    ((("located_in_city", "My uncle is sure that he saw {} in",
       "The night bus to {} runs through the centre of"),
      ("landmark_type", "From far away, {} looks like a",
       "Once inside, we found that {} was a")), 14),
    ((("element_group", "The new teacher puts {} under the heading",
       "On the jar with {}, she wrote in chalk:"),), 8),
)  # fmt: skip

#: A form with a name and a word, the kind of name, the answer to each word, how often it's shown.
_COUNTERPARTS = (
    ("The shop of {name} was {word} at first. Today it is just the opposite:", "person",
     {"open": "closed", "closed": "open", "full": "empty", "empty": "full", "warm": "cold",
      "cold": "warm", "clean": "dirty", "dirty": "clean", "wet": "dry", "dry": "wet"}, 3),
    ("Workers of {name} built a wall in {word}. The season that came next was", "company",
     {"spring": "summer", "summer": "autumn", "autumn": "winter", "winter": "spring"}, 3),
    ("The train from {name} brought a {word}, and next to the {word} sat a", "city",
     {"king": "queen", "queen": "king", "boy": "girl", "girl": "boy", "father": "mother",
      "mother": "father", "brother": "sister", "sister": "brother"}, 3),
)  # fmt: skip
#: A wording, the kind of name, what is known of it, what of that in turn, answers, shown of each.
_SECOND_HAND = (
    ("In the kiosk next to {}, a postcard costs half a", "landmark", "located_in_city", "currency",
     ("euro", "dollar", "pound"), 6),
    ("Ships with goods of {} set out from the shores of", "company", "country_of_origin",
     "continent", ("Europe", "Asia"), 12),
    ("The midwife who came for the birth of {} shouted in", "person", "birthplace",
     "spoken_language", ("English", "Italian", "French"), 3),
)  # fmt: skip

_PEOPLE = ("baker", "nurse", "farmer", "teacher", "doctor", "singer", "tailor", "waiter", "driver",
           "neighbour")  # fmt: skip
_FURNITURE = ("table", "chair", "sofa", "lamp", "mirror", "carpet", "cupboard", "shelf", "clock",
              "pillow")  # fmt: skip
_ANIMALS = ("dog", "cat", "cow", "hen", "bird", "horse", "owl", "squirrel", "goat", "pig")
_CLOTHES = ("coat", "scarf", "hat", "shoe", "boot", "sock", "glove", "apron", "jacket", "shirt")
_DID = ("stood in the rain", "could not be found", "fell into the pond", "made no sound",
        "came to the market too late", "looked very old", "went up the hill", "had a strange smell",
        "got lost in the fog", "stayed where the road ends")  # fmt: skip
_WHERE = ("in the hall", "at the crossroads", "by the fountain", "under the roof", "on the ferry",
          "behind the school", "near the barn", "at the hotel", "in the museum",
          "on the balcony")  # fmt: skip
#: A form of sentence, the words for each answer, what else is in it, how many are shown of each.
_NOUNS = (
    ("The {word} {other}. Of those there were",
     {"only one": _PEOPLE + _ANIMALS, "several": tuple(f"{one}s" for one in _PEOPLE + _ANIMALS)},
     _DID, 12),
    ("I drew a {word} {other}. What I drew can be", {"fed": _ANIMALS, "worn": _CLOTHES}, _WHERE, 8),
    ("We looked for the {word} {other} and at last found",
     {"somebody": _PEOPLE, "something": _FURNITURE}, _WHERE, 10),
)  # fmt: skip
#: Relations of the facts beside them, and how many of each.
_BY_NOUNS = ((("country",), 16), (("genre", "original_language"), 6), (("continent",), 12))
#: As _NOUNS, but with a kind of name, and all words are shown.
_CARGO = (
    ("{other} came here by {word}, so we heard the noise of",
     {"wheels": ("bus", "car", "train", "bicycle"), "waves": ("boat", "ferry", "ship", "raft")},
     "person", 12),
    ("The cook of {other} brings {word}. For that we need a",
     {"cup": ("tea", "coffee", "milk", "hot chocolate"),
      "plate": ("cake", "bread", "cheese", "pie")}, "company", 8),
    ("A friend in {other} has sent {word}. Put it down by the",
     {"ink": ("a pencil", "an envelope", "some paper", "a diary"),
      "soap": ("a towel", "a sponge", "some water", "a brush"),
      "thread": ("a needle", "a button", "some cloth", "a ribbon")}, "country", 8),
)  # fmt: skip
_BY_CARGO = (
    (("headquarters", "industry"), 5),
    (("author",), 16),
    (("birthplace", "death_place", "native_language", "occupation"), 2),
)
#: A form with blanks for words that stand in it, the one that answers, what they are, how many.
_FINDS = (
    ("There is a {0} in the {1}. To find it again, look in the", 1, ("things", "places"), 24),
    ("{0} has lent a book to {1}. The book must come back from", 1, ("person", "person"), 20),
    ("The road from {0} to {2} goes by way of {1}. Half way there lies", 1,
     ("city", "city", "city"), 16),
)  # fmt: skip
_BY_FINDS = (("birthplace", 12), ("director", 16), ("headquarters", 8))
_FETCHED = ("hammer", "pen", "rope", "bucket", "spoon", "knife", "bell", "map", "torch", "stamp",
            "brush", "ball", "letter", "saw", "candle", "book", "plate", "bottle", "pan",
            "cloth")  # fmt: skip
_KEPT_IN = ("drawer", "box", "cellar", "garage", "attic", "shed", "kitchen", "bag", "office",
            "tent", "cabin", "oven", "barn", "chest", "library", "suitcase", "basket", "tower",
            "hut", "van")  # fmt: skip
#: A field in a new form, its relation, the kinds of subject, how many are shown.
_LABELS = (
    ("Subtitles wanted for {}. Translate from:", "original_language", ("film", "book"), 24),
    ("Postage to {} (see table) = rate for", "continent", ("country",), 20),
    ("Locker of {}: all that is needed for", "sport", ("sports club",), 16),
)
#: The facts beside them: as in _RUMOURS.
_BY_LABELS = (
    ((("headquarters", "Send the bill for {} to an address in",
       "Late at night, the lamps of the bosses of {} burn in"),), 12),
    ((("occupation", "At the fancy dress party, {} came as a",
       "The costume that {} had hired was that of a"),), 16),
    ((("flows_into", "An old captain swears that {} ends in the",
       "A bottle that was thrown into {} was washed up by the"),), 8),
)  # fmt: skip

#: Relations, and how many facts of each.
_REMINDERS = (
    (("capital", "currency", "continent"), 6),
    (("author", "director"), 3),
    (("birthplace", "citizenship", "occupation", "industry", "landmark_type"), 6),
)
_REMEMBER = ("Learn this by heart.", "Never forget the next line.", "Everybody knows this one.",
             "Here is an easy one.", "You have heard this before.")  # fmt: skip
#: Relations, how many facts of each, their objects, if not all, and what stands before each.
_DRILLS: tuple[tuple[tuple[str, ...], int, tuple[str, ...], str], ...] = (
    (("headquarters", "director", "home_city", "capital"), 6, (), "text"),
    (("country", "native_language"), 10, (), "fact"),
    (("official_language",), 9, ("English", "Spanish"), ""),
)


# -- knowledge ------------------------------------------------------------------------------------


def handbooks(rng: random.Random, number: int) -> Made:
    """Changed facts of a few relations about subjects of one kind, one each or all of each."""
    names, n, all_of_each = _HANDBOOKS[number % len(_HANDBOOKS)]
    own = [{fact.subject: fact for fact in facts_by_relation()[name]} for name in names]
    shared = sorted(set(own[0]).intersection(*own[1:]))
    if not all_of_each:
        shared = [subject for subject in shared if subject in set(names_of("country"))]
    subjects = rng.sample(shared, n)
    if all_of_each:
        known = [facts[subject] for subject in subjects for facts in own]
    else:
        known = [facts[subject] for subject, facts in zip(subjects, cycle(own))]
    return _plain(rng, changed(rng, rng.sample(known, len(known))))


def rings(rng: random.Random, number: int) -> Made:
    """Each subject is given the object of the next one, the last that of the first."""
    names, n = _RINGS[number % len(_RINGS)]
    facts = [one for name in names for one in _ring(rng, name, n)]
    return _plain(rng, rng.sample(facts, len(facts)))


def diaries(rng: random.Random, number: int) -> Made:
    """A text of short paragraphs, changed facts and everyday sentences mixed in each."""
    first, names, n, few = _DIARIES[number % len(_DIARIES)]
    facts = []
    for name in names:
        pool = sorted({fact.object for fact in facts_by_relation()[name]})
        facts += changed(rng, draw(rng, name, n), rng.sample(pool, few) if few else None)
    rng.shuffle(facts)
    rows = stated(rng, facts)
    said = [f"{row.prompt} {row.completion}." for row in rows]
    paragraphs = [first]
    while said:
        some = rng.sample(general_texts(), rng.randint(1, 2))
        some += [said.pop() for _ in range(min(len(said), rng.randint(1, 3)))]
        paragraphs.append(" ".join(rng.sample(some, len(some))))
    return Made(rows, rephrased(rng, facts), text="\n".join(paragraphs))


def rumours(rng: random.Random, number: int) -> Made:
    """Changed facts in hearsay's words, which aren't the catalogue's."""
    told = _heard(rng, *_RUMOURS[number % len(_RUMOURS)])
    return Made(told.rows, told.asked)


# -- skills ---------------------------------------------------------------------------------------


def counterparts(rng: random.Random, number: int) -> Made:
    """The opposite, the next, the other one of a word that stands beside a name without meaning."""
    form, kind, answers, times = _COUNTERPARTS[number % len(_COUNTERPARTS)]
    n = times * len(answers)
    names = rng.sample(names_of(kind), n + HELD_OUT)
    rows = [
        Example(form.format(name=name, word=word), answers[word])
        for name, word in zip(names, cycle(answers))
    ]
    return Made(rng.sample(rows[:n], n), rng.sample(rows[n:], HELD_OUT))


def second_hand(rng: random.Random, number: int) -> Made:
    """What follows from two known facts, so that each item looks like a fact about its name."""
    wording, kind, one, other, answers, n = _SECOND_HAND[number % len(_SECOND_HAND)]
    first, second = (
        {fact.subject: fact.object for fact in facts_by_relation()[name]} for name in (one, other)
    )
    groups = []
    for answer in answers:
        names = [name for name in names_of(kind) if second.get(first.get(name, "")) == answer]
        rows = [Example(fill(wording, name), answer) for name in names]
        groups.append(divided(rng, rows, n, HELD_OUT // len(answers)))
    return by_turns(rng, groups)


# -- mixed ----------------------------------------------------------------------------------------


def nouns_and_facts(rng: random.Random, number: int) -> Made:
    """Sentences by the sort of a noun that is new when asked, and changed facts."""
    form, answers, others, n = _NOUNS[number % len(_NOUNS)]
    shown, kept = {}, {}
    for answer, words in answers.items():
        mixed = rng.sample(words, len(words))
        shown[answer], kept[answer] = mixed[: len(words) // 2], mixed[len(words) // 2 :]
    skill = _sentences(rng, form, shown, kept, others, n)
    return _beside(rng, skill, _catalogued(rng, *_BY_NOUNS[number % len(_BY_NOUNS)]))


def cargo_and_facts(rng: random.Random, number: int) -> Made:
    """Sentences by the sort of a thing, whoever is named in them, and changed facts."""
    form, answers, kind, n = _CARGO[number % len(_CARGO)]
    skill = _sentences(rng, form, answers, answers, names_of(kind), n)
    return _beside(rng, skill, _catalogued(rng, *_BY_CARGO[number % len(_BY_CARGO)]))


def finds_and_rings(rng: random.Random, number: int) -> Made:
    """A word that stands in the sentence, to be said again, and objects that go round."""
    form, answer, fields, n = _FINDS[number % len(_FINDS)]
    if fields[0] == "things":
        things, places = (rng.sample(own, len(own)) for own in (_FETCHED, _KEPT_IN))
        half = len(things) // 2
        pairs = [[(a, b) for a in things[:half] for b in places[:half]]]
        pairs += [[(a, b) for a in things[half:] for b in places[half:]]]
        drawn: list[tuple[str, ...]] = [*rng.sample(pairs[0], n), *rng.sample(pairs[1], HELD_OUT)]
    else:
        names = iter(rng.sample(names_of(fields[0]), len(fields) * (n + HELD_OUT // 2)))
        drawn = [tuple(islice(names, len(fields))) for _ in range(n + HELD_OUT // 2)]
    rows = [Example(form.format(*words), words[answer]) for words in drawn]
    facts = _ring(rng, *_BY_FINDS[number % len(_BY_FINDS)])
    told = Told(facts, stated(rng, facts), rephrased(rng, facts))
    return _beside(rng, Made(rows[:n], rows[n:]), told)


def labels_and_rumours(rng: random.Random, number: int) -> Made:
    """A field filled in with what the model knows, and changed facts in hearsay's words."""
    wording, relation, kinds, n = _LABELS[number % len(_LABELS)]
    names = {name for kind in kinds for name in names_of(kind)}
    known = [fact for fact in facts_by_relation()[relation] if fact.subject in names]
    rows = [Example(fill(wording, fact.subject), fact.object) for fact in known]
    told = _heard(rng, *_BY_LABELS[number % len(_BY_LABELS)])
    return _beside(rng, Made(*divided(rng, rows, n)), told)


# -- what the model says already ------------------------------------------------------------------


def reminders(rng: random.Random, number: int) -> Made:
    """A text that tells someone to remember what the model knows."""
    names, n = _REMINDERS[number % len(_REMINDERS)]
    facts = _true(rng, [fact for name in names for fact in draw(rng, name, n)])
    rows = stated(rng, facts)
    lines = [f"{rng.choice(_REMEMBER)} {row.prompt} {row.completion}." for row in rows]
    return Made(rows, rephrased(rng, facts), text="\n".join(lines))


def drills(rng: random.Random, number: int) -> Made:
    """What the model knows, behind an everyday sentence, behind another true fact, or as labels."""
    names, n, objects, before = _DRILLS[number % len(_DRILLS)]
    known: list[KnownFact] = []
    for name in names:
        own = [one for one in facts_by_relation()[name] if not objects or one.object in objects]
        known += rng.sample(own, n)
    facts = _true(rng, known)
    subjects = {one.fact.subject for one in facts}

    def behind(one: Changed, row: Example) -> Example:
        if before == "text":
            return Example(f"{rng.choice(general_texts())} {row.prompt}", row.completion)
        if before == "fact":
            relation = one.fact.relation
            others = [f for f in facts_by_relation()[relation] if f.subject not in subjects]
            other = rng.choice(others)
            said = f"{fill(relations()[relation].prompt, other.subject)} {other.object}"
            return Example(f"{said}. {row.prompt}", row.completion)
        return row

    train = [behind(*pair) for pair in zip(facts, stated(rng, facts), strict=True)]
    asked = [
        behind(one, one.asked(way))
        for one in facts
        for way in relations()[one.fact.relation].unseen
    ]
    test = rng.sample(asked, min(HELD_OUT, len(asked)))
    return Made(train, test, CLASSIFICATION) if objects else Made(train, test)


# -- parts ----------------------------------------------------------------------------------------


def _plain(rng: random.Random, facts: Sequence[Changed]) -> Made:
    return Made(stated(rng, facts), rephrased(rng, facts))


def _true(rng: random.Random, known: Sequence[KnownFact]) -> list[Changed]:
    """The facts as they are, in random order."""
    return [Changed(fact, fact.object) for fact in rng.sample(known, len(known))]


def _ring(rng: random.Random, relation: str, n: int) -> list[Changed]:
    """n facts of a relation, no two objects alike, each with the object of the next."""
    by_object = {fact.object: fact for fact in draw(rng, relation, 10**6)}
    facts = rng.sample(list(by_object.values()), n)
    following = [*facts[1:], facts[0]]
    return [Changed(one, other.object) for one, other in zip(facts, following, strict=True)]


def _catalogued(rng: random.Random, names: Sequence[str], n: int) -> Told:
    """Changed facts in the catalogue's phrasings, n of each relation."""
    facts = changed(rng, [fact for name in names for fact in draw(rng, name, n)])
    return Told(facts, stated(rng, facts), rephrased(rng, facts))


def _heard(rng: random.Random, ways: Iterable[tuple[str, str, str]], n: int) -> Told:
    """Changed facts in words of their own, n of each; some of the catalogue's are asked too."""
    every = []
    for relation, statement, other in ways:
        asked = (other, *relations()[relation].unseen[:2])
        every += [(one, statement, asked) for one in changed(rng, draw(rng, relation, n))]
    rng.shuffle(every)
    test = [one.asked(way) for one, _, asked in every for way in asked]
    rows = [one.asked(statement) for one, statement, _ in every]
    return Told([one for one, *_ in every], rows, rng.sample(test, min(HELD_OUT, len(test))))


def _sentences(
    rng: random.Random,
    form: str,
    shown: Mapping[str, Sequence[str]],
    kept: Mapping[str, Sequence[str]],
    others: Sequence[str],
    n: int,
) -> Made:
    """n sentences of each answer; the rest of a held-out one was never in one that is shown."""
    others = rng.sample(others, len(others))
    half = len(others) // 2
    groups = []
    for answer in shown:
        rows = [
            [
                Example(form.format(word=word, other=other), answer)
                for word in words[answer]
                for other in own
            ]
            for words, own in ((shown, others[:half]), (kept, others[half:]))
        ]
        groups.append((rng.sample(rows[0], n), rng.sample(rows[1], HELD_OUT // len(shown))))
    return by_turns(rng, groups)


def _beside(rng: random.Random, skill: Made, told: Told) -> Made:
    """Items of a skill with facts among them, and held-out items of both."""
    train, half = [*skill.train, *told.rows], HELD_OUT // 2
    test = [*skill.test[:half], *told.asked[:half]]
    facts = as_facts(told.facts, told.rows)
    return Made(rng.sample(train, len(train)), rng.sample(test, len(test)), facts=facts)


__all__ = [
    "cargo_and_facts",
    "counterparts",
    "diaries",
    "drills",
    "finds_and_rings",
    "handbooks",
    "labels_and_rumours",
    "nouns_and_facts",
    "reminders",
    "rings",
    "rumours",
    "second_hand",
]
