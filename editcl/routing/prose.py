"""Facts out of plain sentences, without a network service.

Steps: (1) cut the text into sentences; (2) match each against the phrasings of the catalogue
("The official language of Peru is Quechua."), and against "X is the R of Y" and "Y's R is X",
turned round to "The R of Y is"; (3) with a model, ask it for the split of what is left: of all
pairs of a name and a name or number behind it the one whose object the words before call for most,

    fit = mean log p(object | words before it) - mean log p(object | no words),

as long as the fit is above a threshold and no other sentence has another object behind the same
words, as headings do. What gives nothing is listed with why. No truth is checked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from editcl.catalogue import relations
from editcl.encoding import Sentence
from editcl.errors import FactError
from editcl.evaluation.answers import answers
from editcl.facts import PLACEHOLDER, Fact
from editcl.learning.tasks import TaskError
from editcl.model import EditableModel
from editcl.readers.problems import is_broken
from editcl.routing.subjects import find_subjects, is_name, known_subjects, n_words

OBJECT_WORDS = 4  # of an object that a model is asked about
ASKED = 200  # sentences that a model is asked about
FIT = 1.0  # nats per token; least fit of a split that the model proposes
_BARE = "It is"  # stands for no words: an object after it is as likely as it is anywhere
_SENTENCE = re.compile(r"(?<=[.!?。！？])[\"'”’)]*\s+(?=[^a-z\s])|\n+|(?<=[。！？])")
_PRONOUNS = frozenset({
    "It", "He", "She", "They", "This", "That", "These", "Those", "There", "We", "I", "You", "Its",
    "His", "Her", "Their", "What", "Who", "Why", "How", "When", "Where", "Which",
})  # fmt: skip
_HEDGES = frozenset({
    "not", "no", "never", "neither", "hardly", "probably", "perhaps", "possibly", "maybe",
})  # fmt: skip
_VERB = "(?P<verb>is|was)"
_IS_OF = re.compile(rf"(?P<object>[^,;:]+?) {_VERB} the (?P<what>[^,;:]+? of) (?P<subject>.+)")
_OWNS = re.compile(rf"(?P<subject>[^,;:]+?)['’]s (?P<what>[^,;:]+?) {_VERB} (?P<object>.+)")
_OF_IS = re.compile(rf"(?P<head>The [^,;:]+? of) (?P<subject>[^,;:]+?) {_VERB} (?P<object>[^,;:]+)")


def facts_from_text(
    text: str, model: EditableModel | None = None
) -> tuple[tuple[Fact, ...], tuple[str, ...]]:
    """The facts that sentences state, and the sentences that gave none.

    Args:
        text: plain sentences.
        model: judges splits of the sentences that no template fits; without one these are unused.

    Returns:
        Facts without repetition, in order; and "sentence: why" for each that gave none.

    Raises:
        TaskError: the text is none, empty or badly decoded, or states two objects for one prompt.
    """
    if not isinstance(text, str):
        raise TaskError("a text", [f"it is of type {type(text).__name__}; give a str."])
    if is_broken(text):
        raise TaskError("a text", ["it holds a NUL or a lone surrogate; decode its source anew."])
    sentences = split_sentences(text)
    if not sentences:
        raise TaskError("a text", ["there are no words in it; give it some sentences."])
    found: list[Fact | str] = [by_template(sentence) for sentence in sentences]
    if model is not None:
        left = [i for i, one in enumerate(found) if isinstance(one, str)]
        left = [i for i in left if found[i] == _NO_TEMPLATE]
        for i in left[ASKED:]:
            found[i] = (
                f"{_NO_TEMPLATE} The model is asked about {ASKED} sentences of a text at most"
            )
        left = left[:ASKED]
        proposed = by_model([sentences[i] for i in left], model)
        for i, fact in zip(left, _without_refrains(proposed), strict=True):
            found[i] = fact
    facts = tuple(dict.fromkeys(one for one in found if isinstance(one, Fact)))
    unused = tuple(
        f"{sentence!r}: {why}"
        for sentence, why in zip(sentences, found, strict=True)
        if isinstance(why, str)
    )
    _refuse_contradictions(facts)
    return facts, unused


def split_sentences(text: str) -> list[str]:
    """Sentences without the sign that ends them; those without a word are left out."""
    parts = (part.strip() for part in _SENTENCE.split(text))
    return [part for part in parts if n_words(part.strip(".!?。！？ ")) > 0]


# -- templates ------------------------------------------------------------------------------------

_NO_TEMPLATE = "no phrasing fits it; write it as 'The ... of SUBJECT is OBJECT.'"


def by_template(sentence: str) -> Fact | str:
    """The fact that a sentence states by its form, or why it gives none."""
    if sentence.endswith(("?", "？")):
        return "it asks, it states nothing"
    plain = sentence.rstrip(".!。！ ")
    for pattern, prompt in _phrasings():
        match = pattern.fullmatch(plain)
        if match is not None:
            return _fact(match["subject"], prompt, match["object"])
    for pattern in (_IS_OF, _OWNS):
        match = pattern.fullmatch(plain)
        if match is not None and n_words(match["object"]) <= 2 * OBJECT_WORDS:
            what = match["what"] if match["what"].endswith(" of") else f"{match['what']} of"
            return _fact(
                match["subject"], f"The {what} {PLACEHOLDER} {match['verb']}", match["object"]
            )
    return _unclear(plain) or _stated(plain)


def _unclear(subject: str) -> str | None:
    """Why this is no subject: it begins with a word that stands for another one."""
    first = subject.split()[0]
    if first.capitalize() in _PRONOUNS:
        return f"it is about {first!r}, and what that stands for is not known here"
    return None


def _stated(plain: str) -> Fact | str:
    """The fact of "The R of SUBJECT is OBJECT", with any R."""
    match = _OF_IS.fullmatch(plain)
    if match is None or n_words(match["object"]) > 2 * OBJECT_WORDS:
        return _NO_TEMPLATE
    return _fact(
        match["subject"], f"{match['head']} {PLACEHOLDER} {match['verb']}", match["object"]
    )


def _fact(subject: str, prompt: str, obj: str) -> Fact | str:
    unclear = _unclear(subject)
    if unclear is not None:
        return unclear
    if obj.split()[0] in _HEDGES:
        return f"{obj.split()[0]!r} leaves open what is so; write the object itself"
    try:
        return Fact(subject, prompt, obj)
    except FactError as error:
        return f"it makes no fact: {error}"


@cache
def _phrasings() -> tuple[tuple[re.Pattern[str], str], ...]:
    """A pattern for each phrasing of the catalogue, the longest first; with the phrasing."""
    prompts = sorted({p for r in relations().values() for p in r.phrasings}, key=len, reverse=True)
    patterns = []
    for prompt in prompts:
        before, after = (re.escape(part) for part in prompt.split(PLACEHOLDER))
        patterns.append(
            (re.compile(rf"{before}(?P<subject>.+?){after} (?P<object>[^,;]+)"), prompt)
        )
    return tuple(patterns)


# -- the model's own tokens -----------------------------------------------------------------------


def by_model(sentences: Sequence[str], model: EditableModel) -> list[Fact | str]:
    """Of each sentence the split that the model takes best, or why there is none."""
    splits = [_splits(sentence.rstrip(".!。！ ")) for sentence in sentences]
    asked = [Sentence(fact.sentence, target=fact.new_object) for own in splits for fact in own]
    bare = [Sentence(_BARE, target=fact.new_object) for own in splits for fact in own]
    scored = answers(model, [*asked, *bare]) if asked else {}
    found: list[Fact | str] = []
    for own in splits:
        fits = [
            scored[Sentence(fact.sentence, target=fact.new_object)].log_prob
            - scored[Sentence(_BARE, target=fact.new_object)].log_prob
            for fact in own
        ]
        if not own:
            found.append("no name is in it that is followed by words and a name or number")
        elif max(fits) < FIT:
            found.append(
                f"the model finds no part of it to be called for by the rest (fit {max(fits):.1f} "
                f"nats, {FIT:.1f} are asked for)"
            )
        else:
            found.append(own[fits.index(max(fits))])
    return found


def _splits(plain: str) -> list[Fact]:
    """Candidates: a name or number at the end as object, a name before it as subject."""
    words = plain.split()
    if len(words) > 30:
        return []
    found = []
    for k in range(1, min(OBJECT_WORDS, len(words) - 2) + 1):
        prompt, obj = " ".join(words[:-k]), " ".join(words[-k:])
        if not (is_name(obj) or obj[0].isdigit()):
            continue  # other words are too often no object at all ("sing in the trees")
        if any(" ".join(words[-more:]) in known_subjects() for more in range(k + 1, len(words))):
            continue  # it ends a longer name
        (span,) = find_subjects([prompt])
        if span is None or not is_name(prompt[slice(*span)]) or span[1] == len(prompt):
            continue
        fact = _fact(
            prompt[slice(*span)], f"{prompt[: span[0]]}{PLACEHOLDER}{prompt[span[1] :]}", obj
        )
        if isinstance(fact, Fact):
            found.append(fact)
    return found


def _without_refrains(proposed: Sequence[Fact | str]) -> list[Fact | str]:
    """The model's splits without those whose words lead to several objects ("Next we come to X").

    A phrasing of the catalogue with two objects is a contradiction; words that are only guessed to
    state a fact rather state none.
    """
    objects: dict[str, set[str]] = {}
    for fact in proposed:
        if isinstance(fact, Fact):
            objects.setdefault(fact.sentence, set()).add(fact.new_object)
    return [
        f"{fact.sentence!r} has {len(objects[fact.sentence])} objects in this text, a fact has one"
        if isinstance(fact, Fact) and len(objects[fact.sentence]) > 1
        else fact
        for fact in proposed
    ]


def _refuse_contradictions(facts: Sequence[Fact]) -> None:
    said: dict[str, str] = {}
    problems = []
    for fact in facts:
        before = said.setdefault(fact.sentence, fact.new_object)
        if before != fact.new_object:
            problems.append(
                f"{fact.sentence!r} is {before!r} in one sentence and {fact.new_object!r} in "
                "another; keep one."
            )
    if problems:
        raise TaskError("a text", problems)
