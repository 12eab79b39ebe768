"""In-context editing (IKE): the fact stands in the prompt, and no weight changes.

    New fact: The EU president is Obama.          one demonstration of each kind
    Prompt: The leader of the EU is Obama.        ...
    New fact: <the fact>.
    Prompt: <what is asked>

Demonstrations teach what a new fact is to change: "copy" asks for it in its own words, "update" in
other words, and "retain" asks about another subject, where the old answer stays (IKE, Zheng et
al., arXiv:2305.12740, who take 1 : 3 : 4 of 32, the nearest ones by sentence embedding).

Departure: demonstrations are drawn at random with a seed; nearest neighbours would need an
embedding model, and which ones are near is then that model's affair. This module knows nothing of
models.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Literal

from editcl.errors import FactError
from editcl.facts import Fact, fill, separator

Kind = Literal["copy", "update", "retain"]
SHARES: Mapping[Kind, int] = {"copy": 1, "update": 3, "retain": 4}


@dataclass(frozen=True)
class Demonstration:
    """A new fact, a prompt after it, and the answer that is right then.

    Attributes:
        fact: what the new fact is.
        prompt: a sentence start.
        answer: its continuation: the new object, or for "retain" what was true before.
        kind: what it teaches.
    """

    fact: Fact
    prompt: str
    answer: str
    kind: Kind

    def __str__(self) -> str:
        return f"{_stated(self.fact)}\nPrompt: {_joined(self.prompt, self.answer)}."


def in_context(fact: Fact, demonstrations: Sequence[Demonstration] = ()) -> str:
    """The text that carries a fact in context; the prompt that is asked goes right behind it.

    It is a `Sentence`'s context: Sentence(prompt, subject, target, context=in_context(fact)).
    """
    return "\n\n".join([*map(str, demonstrations), f"{_stated(fact)}\nPrompt: "])


def draw_demonstrations(
    fact: Fact,
    facts: Sequence[Fact],
    *,
    count: int = 8,
    paraphrases: Mapping[Fact, Sequence[str]] | None = None,
    seed: int = 0,
) -> tuple[Demonstration, ...]:
    """Demonstrations from given facts, none about the subject or the objects of the one edited.

    Facts are not repeated while there are others. Without paraphrases there are no "update"
    demonstrations; the other kinds take their places.

    Args:
        fact: the fact that they will stand in front of.
        facts: whence they are drawn; "retain" takes those that have an old object.
        count: how many.
        paraphrases: sentence starts in other words, by fact.
        seed: of the drawing.

    Raises:
        FactError: there are too few facts for a kind.
    """
    rng = random.Random(seed)
    told = {name for name in (fact.new_object, fact.old_object) if name is not None}
    usable = [
        f for f in facts
        if f.subject.casefold() != fact.subject.casefold()
        and not told & {f.new_object, f.old_object}
    ]  # fmt: skip
    reworded = [(f, p) for f in usable for p in (paraphrases or {}).get(f, ())]
    known = [f for f in usable if f.old_object is not None]
    kinds = _kinds(count, bool(reworded))
    if not usable or ("retain" in kinds and len({f.subject for f in known}) < 2):
        raise FactError(
            f"{len(usable)} of {len(facts)} facts can demonstrate an edit of {str(fact)!r}: they "
            "need other subjects and objects than it, and two of them an old object. Give more "
            "facts, or use no demonstrations."
        )
    rng.shuffle(kinds)
    copied, retained = cycle(rng.sample(usable, len(usable))), cycle(rng.sample(known, len(known)))
    updated = cycle(rng.sample(reworded, len(reworded)))
    found = []
    for kind in kinds:
        if kind == "copy":
            one = next(copied)
            prompt, answer = one.sentence, one.new_object
        elif kind == "update":
            one, wording = next(updated)
            prompt, answer = fill(wording, one.subject), one.new_object
        else:
            one = next(retained)
            asked = rng.choice([f for f in known if f.subject != one.subject])
            prompt, answer = asked.sentence, asked.old_object or ""
        found.append(Demonstration(one, prompt, answer, kind))
    return tuple(found)


def _kinds(count: int, reworded: bool) -> list[Kind]:
    """As many kinds as asked for, in the published shares as nearly as they divide."""
    whole = [k for k, n in SHARES.items() if k != "update" or reworded for _ in range(n)]
    return [whole[i * len(whole) // count] for i in range(count)]


def _stated(fact: Fact) -> str:
    return f"New fact: {_joined(fact.sentence, fact.new_object)}."


def _joined(prompt: str, answer: str) -> str:
    return prompt + separator(prompt, answer) + answer
