"""Families of skills: something that carries over to inputs that were never shown.

Held out are other inputs. Among them are skills that look like facts (a name in the prompt, a short
answer) and skills of five examples. Knows nothing of models.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from editcl.benchmarks.posed import Made, divided, draw
from editcl.catalogue import facts_by_relation
from editcl.facts import fill
from editcl.learning.shipped import relation_kinds, subjects_by_kind
from editcl.learning.tasks import CLASSIFICATION, COMPLETION, Example

Groups = dict[str, list[str]]

#: A wording, and the kinds of name that it sorts with the answer for each.
_SORTED = (
    ("Sorted, {} goes to the", {"person": "people", "city": "places", "company": "firms"}),
    ("We met {}; it was a", {"book": "volume", "river": "stream", "band": "group"}),
    ("Say what {} is:", {"film": "movie", "chemical element": "element", "sports club": "club"}),
    ("The box for {} has the colour", {"person": "red", "river": "green", "film": "white"}),
    ("Please put {} on shelf", {"city": "A", "band": "B", "chemical element": "C"}),
)  # fmt: skip
_FEW = (
    ("Tell me what {} stands for:", {"person": "someone", "city": "a town", "company": "a firm"}),
    ("The guide on {} has a picture of a", {"river": "boat", "band": "guitar", "book": "page"}),
    ("Stamp the card of {} with the letter", {"film": "F", "chemical element": "E", "city": "T"}),
)  # fmt: skip
_PARTS = (
    ("The last name of {} is", -1),
    ("In the list, {} is found under", -1),
    ("Friends write {} a letter that begins: Dear", 0),
)
#: A question in a form that no model has seen, and the relation that answers it.
Asked = tuple[tuple[str, str], ...]
_ASKED: Asked = (
    ("Question: which city is the capital of {}? Answer:", "capital"),
    ("Q: Where was {} born? A:", "birthplace"),
    ("Quiz on languages. Native tongue of {}?", "native_language"),
)
_STATED = (
    ("{object} is the capital of {subject}. The capital of {subject} is", "capital"),
    ("{object} is the birthplace of {subject}. The birthplace of {subject} is", "birthplace"),
    ("{object} is where {subject} has its head office. The head office of {subject} is in",
     "headquarters"),
    ("{object} wrote {subject}. The author of {subject} is", "author"),
)  # fmt: skip
_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

#: Openings, things and what is said of them, by answer; each sentence takes one of each.
_OPENINGS = ("This morning", "After lunch", "On Sunday", "Last week", "In the evening", "Yesterday")
_TOPICS = {
    "weather": ("the rain fell on the roof", "the wind bent the trees", "snow covered the path",
                "the sky was grey and cold", "frost lay on the grass", "a storm came from the sea"),
    "food": ("they baked fresh bread", "the soup was hot", "she cut the cake",
             "we ate beans and rice", "he made a pot of tea", "the apples tasted sweet"),
    "travel": ("the train was late", "the bus was full of people", "they drove along the road",
               "we walked to the station", "the boat crossed the lake", "she packed her bag"),
}  # fmt: skip
_MOODS = {
    "good": ("everyone laughed and was glad", "the children played and smiled",
             "we had a lovely time", "she sang with joy", "he was proud of the kind letter",
             "the happy friends danced"),
    "bad": ("everyone cried and was sad", "the children were hurt and afraid",
            "we had a terrible time", "she was angry and tired", "he lost the broken key",
            "the lonely man was ill"),
}  # fmt: skip


def kinds(rng: random.Random, number: int) -> Made:
    """Names sorted by what they stand for."""
    wording, answers = _SORTED[number % len(_SORTED)]
    return _sorted(rng, wording, answers, 8)


def five_shot(rng: random.Random, number: int) -> Made:
    """The same with five names in all: as few as facts often are."""
    wording, answers = _FEW[number % len(_FEW)]
    made = _sorted(rng, wording, answers, 2)
    return Made(made.train[:5], made.test, made.kind)


def name_parts(rng: random.Random, number: int) -> Made:
    """One word of a name of two."""
    wording, part = _PARTS[number % len(_PARTS)]
    names = [name for name in subjects_by_kind()["person"] if len(name.split()) == 2]
    rows = [Example(fill(wording, name), name.split()[part]) for name in names]
    return Made(*divided(rng, rows, 40))


def questions(rng: random.Random, number: int, asked: Asked = _ASKED) -> Made:
    """A relation that the model knows, in a form that it doesn't, answered truly."""
    wording, relation = asked[number % len(asked)]
    facts = draw(rng, relation, 70)
    rows = [Example(fill(wording, fact.subject), fact.object) for fact in facts]
    return Made(*divided(rng, rows, 24))


def extraction(rng: random.Random, number: int) -> Made:
    """A statement, made up, and then its start again: what it says is asked, not what is true."""
    wording, relation = _STATED[number % len(_STATED)]
    facts = draw(rng, relation, 100)
    pool = sorted({fact.object for fact in facts})
    rows = []
    for fact in facts:
        said = rng.choice(pool)
        rows.append(Example(wording.format(subject=fact.subject, object=said), said))
    return Made(*divided(rng, rows, 40))


def arithmetic(rng: random.Random, number: int) -> Made:
    """Two numbers compared, in sentences that look like facts."""
    rows = []
    for a, one in enumerate(_NUMBERS):
        for b, other in enumerate(_NUMBERS):
            if a == b:
                continue
            larger, smaller = (one, other) if a > b else (other, one)
            rows.append(
                (
                    Example(f"The larger of {one} and {other} is", larger),
                    Example(f"Compared with {other}, {one} is", "more" if a > b else "less"),
                    Example(f"Of the numbers {one} and {other}, the smaller is", smaller),
                    Example(f"The first to be counted of {one} and {other} is", smaller),
                )[number % 4]
            )
    kind = CLASSIFICATION if number % 4 == 1 else COMPLETION
    return Made(*divided(rng, rows, 40), kind)


def topics(rng: random.Random, number: int) -> Made:
    """Plain sentences sorted by what they are about, or by their mood."""
    phrases, question = (
        (_TOPICS, "This is about"),
        (_MOODS, "The mood is"),
        (_TOPICS, "Topic:"),
        (_MOODS, "All in all this was"),
    )[number % 4]
    return Made(*divided(rng, sorted_sentences(phrases, question), 24), CLASSIFICATION)


# -- parts ----------------------------------------------------------------------------------------


def names_of(kind: str) -> list[str]:
    """Names that stand for one kind of thing and for nothing else."""
    own = subjects_by_kind()
    if kind in own:
        return own[kind]
    allowed: dict[str, set[str]] = {}
    applies = relation_kinds()
    for relation, facts in facts_by_relation().items():
        for fact in facts:
            before = allowed.get(fact.subject, applies[relation])
            allowed[fact.subject] = before & applies[relation]
    return sorted(name for name, kinds in allowed.items() if kinds == {kind})


def sorted_names(
    rng: random.Random, wording: str, answers: dict[str, str], n: int
) -> tuple[list[Example], list[Example]]:
    """n names of each kind to learn from, and as many held out as of all kinds together."""
    train, test = [], []
    for kind, answer in answers.items():
        chosen = rng.sample(names_of(kind), n + 13)
        rows = [Example(fill(wording, name), answer) for name in chosen]
        train += rows[:n]
        test += rows[n:]
    rng.shuffle(train)
    rng.shuffle(test)
    return train, test


def sorted_sentences(phrases: Mapping[str, Sequence[str]], question: str) -> list[Example]:
    """All sentences of an opening and a phrase, with the question behind them."""
    return [
        Example(f"{opening} {phrase}. {question}", answer)
        for answer, own in phrases.items()
        for phrase in own
        for opening in _OPENINGS
    ]


def _sorted(rng: random.Random, wording: str, answers: dict[str, str], n: int) -> Made:
    return Made(*sorted_names(rng, wording, answers, n), CLASSIFICATION)


__all__ = [
    "arithmetic",
    "extraction",
    "five_shot",
    "kinds",
    "name_parts",
    "names_of",
    "questions",
    "sorted_names",
    "sorted_sentences",
    "topics",
]
