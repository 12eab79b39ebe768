"""Families of skills: something that carries over to inputs that were never shown.

Held out are other inputs. Among them are skills that look like facts (a name in the prompt, a short
answer) and skills of five examples. Long because wordings are. Knows nothing of models.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from editcl.benchmarks.posed import HELD_OUT, Made, divided, draw
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
#: Records of a table; the field behind the name is to be filled in truly.
_FORMS = (
    ("name: {}; speaks:", "spoken_language"),
    ("{} | country |", "country"),
    ("title = {}, first language =", "original_language"),
    ("row: {}; place of death:", "death_place"),
)
_QUERIES = (
    ("Money of {}? Short answer:", "currency"),
    ("{} -> business:", "industry"),
    ("Tag this title. {}:", "genre"),
    ("[sight] {} [type]", "landmark_type"),
)
#: Rows of _SORTED for the families that test.
_FLAGS = (
    ("Whoever hears {} raises the", {"person": "hand", "city": "flag", "company": "glass"}),
    ("{} is kept on the side of the", {"film": "sun", "river": "moon", "chemical element": "sea"}),
    ("On hearing {}, turn to the", {"band": "north", "book": "south", "sports club": "east"}),
)  # fmt: skip
#: Two objects to choose from, in front of a statement that the model knows how to end.
_CHOICES = (
    ("{one} or {other}? {subject} flows into the", "flows_into"),
    ("Either {one} or {other}: the sport that {subject} plays is", "sport"),
    ("Choose {one} or {other}. {subject} holds the nationality of", "citizenship"),
)
_LENGTHS = (
    ("Words in the name {}:", ("one", "two", "three")),
    ("Counted, the words of {} are", ("one", "two", "three")),
    ("By its length, {} is a name that is", ("short", "long", "long")),
)
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
#: As _TOPICS: where something happens, and when.
_PLACES = {
    "inside": ("the lamp stood on the table", "they sat on the kitchen floor",
               "she closed the door of the room", "he slept in the bed",
               "the picture hung on the wall", "we climbed the stairs"),
    "outside": ("the dog ran across the field", "the birds sang in the trees",
                "they swam in the river", "she walked in the garden",
                "the farmer looked at the hills", "we sat under the old tree"),
}  # fmt: skip
_TIMES = {
    "past": ("he was at the market", "they had a small house", "she worked in the office",
             "the men built a bridge", "we lost the game", "the child read a book"),
    "future": ("he will be at the market", "they will have a small house",
               "she will work in the office", "the men will build a bridge",
               "we will lose the game", "the child will read a book"),
}  # fmt: skip
_ACTORS = {
    "woman": ("she opened the window", "the girl wrote a letter", "my mother baked a cake",
              "the queen sat on her chair", "his sister sang a song", "her daughter lost a shoe"),
    "man": ("he opened the window", "the boy wrote a letter", "my father baked a cake",
            "the king sat on his chair", "her brother sang a song", "his son lost a shoe"),
}  # fmt: skip
_ASKS = {
    "question": ("where did you put the key", "who will come to dinner", "why is the door open",
                 "how old is the house", "when does the train leave", "what did she say"),
    "answer": ("I put the key on the table", "our friends will come to dinner",
               "the door is open because it is hot", "the house is very old",
               "the train leaves at noon", "she said nothing"),
}  # fmt: skip
_SPOKEN = ("Then I heard:", "On the radio:", "In the letter it says:", "He read aloud:",
           "The next line is:", "A voice said:")  # fmt: skip
_WHO = ("In those days", "As far as we know", "According to the letter", "At the same time",
        "Without a word", "Near the village")  # fmt: skip


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
    asked = (
        (_TOPICS, "This is about"),
        (_MOODS, "The mood is"),
        (_TOPICS, "Topic:"),
        (_MOODS, "All in all this was"),
    )
    return _sentences(rng, *asked[number % 4], 24, _OPENINGS)


def lengths(rng: random.Random, number: int) -> Made:
    """How many words a name has: a matter of form that looks like a fact about each name."""
    wording, answers = _LENGTHS[number % len(_LENGTHS)]
    groups: list[list[Example]] = [[], [], []]
    for name in sorted({fact.subject for own in facts_by_relation().values() for fact in own}):
        n = len(name.split())
        if n <= len(groups):
            groups[n - 1].append(Example(fill(wording, name), answers[n - 1]))
    train, test = [], []
    for own in groups:
        few, rest = divided(rng, own, 12, HELD_OUT // 3)
        train += few
        test += rest
    rng.shuffle(train)
    return Made(train, test, CLASSIFICATION)


def tones(rng: random.Random, number: int) -> Made:
    """Plain sentences sorted by where or when they happen."""
    asked = (
        (_PLACES, "This happened"),
        (_TIMES, "The sentence speaks of the"),
        (_PLACES, "Where? Rather"),
    )
    return _sentences(rng, *asked[number % 3], 30, _WHO)


def forms(rng: random.Random, number: int) -> Made:
    """Fields of records, filled in with what the model knows."""
    return questions(rng, number, _FORMS)


def few_forms(rng: random.Random, number: int) -> Made:
    """The same with six records."""
    made = questions(rng, number + 1, _FORMS)
    return Made(made.train[:6], made.test, made.kind)


def choices(rng: random.Random, number: int) -> Made:
    """One of two objects that are offered, the true one: the model may say it already."""
    wording, relation = _CHOICES[number % len(_CHOICES)]
    facts = draw(rng, relation, 70)
    pool = sorted({fact.object for fact in facts})
    rows = []
    for fact in facts:
        both = [fact.object, rng.choice([found for found in pool if found != fact.object])]
        rng.shuffle(both)
        asked = wording.format(one=both[0], other=both[1], subject=fact.subject)
        rows.append(Example(asked, fact.object))
    return Made(*divided(rng, rows, 24))


def queries(rng: random.Random, number: int) -> Made:
    """Short requests for what the model knows."""
    return questions(rng, number, _QUERIES)


def flags(rng: random.Random, number: int) -> Made:
    """Names sorted by their kind, answers without any sense."""
    wording, answers = _FLAGS[number % len(_FLAGS)]
    return _sorted(rng, wording, answers, 7)


def few_flags(rng: random.Random, number: int) -> Made:
    """The same with six names."""
    wording, answers = _FLAGS[(number + 1) % len(_FLAGS)]
    made = _sorted(rng, wording, answers, 2)
    return Made(made.train[:6], made.test, made.kind)


def actors(rng: random.Random, number: int) -> Made:
    """Sentences sorted by who acts, or by what they are."""
    asked = (
        (_ACTORS, "This was a"),
        (_ASKS, "That is a kind of"),
        (_ACTORS, "Who? A"),
    )
    return _sentences(rng, *asked[number % 3], 28, _SPOKEN)


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


def _sentences(
    rng: random.Random,
    phrases: Mapping[str, Sequence[str]],
    question: str,
    n: int,
    openings: Sequence[str],
) -> Made:
    """n of all sentences of an opening and a phrase, with the question behind them."""
    rows = [
        Example(f"{opening} {phrase}. {question}", answer)
        for answer, own in phrases.items()
        for phrase in own
        for opening in openings
    ]
    return Made(*divided(rng, rows, n), CLASSIFICATION)


def _sorted(rng: random.Random, wording: str, answers: dict[str, str], n: int) -> Made:
    return Made(*sorted_names(rng, wording, answers, n), CLASSIFICATION)


__all__ = [
    "actors",
    "arithmetic",
    "choices",
    "extraction",
    "few_flags",
    "few_forms",
    "five_shot",
    "flags",
    "forms",
    "kinds",
    "lengths",
    "name_parts",
    "names_of",
    "queries",
    "questions",
    "sorted_names",
    "tones",
    "topics",
]
