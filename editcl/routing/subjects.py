"""Subjects: what each prompt of a task is about, so that prompt and completion become a fact.

Steps: (1) induce templates: mask every span of up to SPAN words in every prompt, and count with how
many different spans each remainder occurs; (2) in each prompt take the span whose remainder is both
long and frequent, names before other words, unless a subject of the catalogue stands in one of its
phrasings; (3) where no remainder occurs twice, take a subject of the catalogue, or else a span of
capitalised words; (4) leave out what is no subject: words of the question that all prompts end
with, and clauses. Knows nothing of models.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import cache

from editcl.catalogue import known_facts, relation_of
from editcl.errors import FactError
from editcl.facts import PLACEHOLDER, Fact
from editcl.learning.tasks import Example

SPAN = 8  # words of a subject
LONGEST_PROMPT = 40  # words of a prompt that may state a fact
LONGEST_OBJECT = 8  # words of a completion that may be an object
INDUCED_FROM = 1000  # prompts; templates of the rest are recognised, not counted
ASKED_OF = 4  # prompts that show by their common end what is asked of each
NAME = 3  # words that may be a subject in small letters
TEMPLATES = 64  # the commonest, which are tried on the rest
# Scripts without spaces: every character may be where a subject begins or ends.
_WORD = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]|[^\W_]+(?:['’.\-][^\W_]+)*|[^\w\s]")

Span = tuple[int, int]


def find_facts(examples: Sequence[Example]) -> tuple[Fact | None, ...]:
    """A fact for each example, or None where no subject is found or the completion is long."""
    spans = find_subjects([example.prompt for example in examples])
    return tuple(
        None if span is None else as_fact(example, span)
        for example, span in zip(examples, spans, strict=True)
    )


def as_fact(example: Example, span: Span) -> Fact | None:
    """The fact that an example states with its subject at a span; None if it can't be one."""
    if (
        len(example.completion) > 40 * LONGEST_OBJECT
        or n_words(example.completion) > LONGEST_OBJECT
    ):
        return None
    start, end = span
    prompt = example.prompt
    try:
        return Fact(
            prompt[start:end], prompt[:start] + PLACEHOLDER + prompt[end:], example.completion
        )
    except FactError:
        return None  # the subject stands there twice, or braces are in the prompt


def find_subjects(prompts: Sequence[str]) -> list[Span | None]:
    """Of each prompt the characters where its subject starts and ends."""
    sample = list(dict.fromkeys(prompts))
    if len(sample) > INDUCED_FROM:
        sample = [sample[i * len(sample) // INDUCED_FROM] for i in range(INDUCED_FROM)]
    counts = template_counts(sample)
    best = _frequent(counts)
    inside = set(sample)
    asked = _common_end(sample) if len(sample) >= ASKED_OF else 0
    found: dict[str, Span | None] = {}
    for prompt in dict.fromkeys(prompts):
        span = _in_phrasing(prompt)
        if span is None:
            span = _by_counts(prompt, counts) if prompt in inside else _by_match(prompt, best)
        span = span or _named(prompt)
        text = "" if span is None else prompt[slice(*span)]
        is_asked = span is not None and span[0] >= len(prompt) - asked and _sure(text) < 2
        found[prompt] = None if is_asked or _is_clause(text) else span
    return [found[prompt] for prompt in prompts]


def _common_end(prompts: Sequence[str]) -> int:
    """How many characters all prompts end with: the question that is asked of each of them."""
    return len(os.path.commonprefix([p[::-1] for p in prompts]))  # noqa: RUF071 - of characters


def _is_clause(text: str) -> bool:
    """Whether so many words are rather part of a sentence than what it is about: few are written
    as names are. Things that are called so have to be given as Facts."""
    words = text.split()
    small = sum(word[:1].islower() for word in words)
    return len(words) > NAME and small > len(words) / 2 and text not in known_subjects()


def template_counts(prompts: Iterable[str]) -> dict[tuple[str, str], int]:
    """With how many different spans each (text before, text after) occurs; those of two or more."""
    middles: dict[tuple[str, str], set[str]] = defaultdict(set)
    for prompt in prompts:
        for start, end in spans_of(prompt):
            middles[prompt[:start], prompt[end:]].add(prompt[start:end])
    return {key: len(own) for key, own in middles.items() if len(own) > 1}


def _frequent(counts: dict[tuple[str, str], int]) -> list[tuple[str, str]]:
    """The templates that save most words, best first."""
    saved = {key: (count - 1) * n_words(" ".join(key)) for key, count in counts.items()}
    return [key for key, _ in Counter(saved).most_common(TEMPLATES)]


def n_words(text: str) -> int:
    """Words and signs; characters of scripts without spaces."""
    return sum(1 for _ in _WORD.finditer(text))


# -- one prompt -----------------------------------------------------------------------------------


def spans_of(prompt: str) -> list[Span]:
    """Every span of words that leaves some words beside it; none in a long prompt."""
    words = [match.span() for match in _WORD.finditer(prompt[: 40 * LONGEST_PROMPT])]
    if not 2 <= len(words) <= LONGEST_PROMPT:
        return []
    return [
        (words[i][0], words[j][1])
        for i in range(len(words))
        for j in range(i, min(i + SPAN, len(words)))
        if j - i + 1 < len(words)
        and prompt[words[i][0]].isalnum()
        and prompt[words[j][1] - 1].isalnum()
    ]


def _in_phrasing(prompt: str) -> Span | None:
    """A subject of the catalogue that stands in one of its phrasings, whatever names are in it."""
    for start, end in spans_of(prompt):
        if prompt[start:end] not in known_subjects():
            continue
        if relation_of(prompt[:start] + PLACEHOLDER + prompt[end:]) is not None:
            return start, end
    return None


def _by_counts(prompt: str, counts: dict[tuple[str, str], int]) -> Span | None:
    """The span with the best remainder: log(occurrences) * length; names count twice.

    The logarithm keeps scraps ("The ...") from winning over sentences because they are everywhere.
    A subject of the catalogue, or a name of several words, may stand in a remainder of its own.
    """
    best, score = None, (0.0, 0)
    for start, end in spans_of(prompt):
        text = prompt[start:end]
        name = is_name(text)
        count = counts.get((prompt[:start], prompt[end:]), _sure(text) if name else 1)
        kept = n_words(prompt[:start]) + n_words(prompt[end:])
        own = (math.log(count) * kept * (2.0 if name else 1.0), start - end)
        if own > score:
            best, score = (start, end), own
    return None if best is None else _whole(prompt, best)


def _by_match(prompt: str, templates: Iterable[tuple[str, str]]) -> Span | None:
    """The span that a template leaves, of the first template that fits."""
    for before, after in templates:
        end = len(prompt) - len(after)
        if len(before) < end and prompt.startswith(before) and prompt.endswith(after):
            middle = prompt[len(before) : end]
            if middle.strip() and n_words(middle) <= SPAN:
                return _whole(prompt, (len(before), end))
    return None


def _whole(prompt: str, span: Span) -> Span:
    """The span with an article in front of a name, which is part of it ("The Eiffel Tower")."""
    start, end = span
    for article in ("The ", "the "):
        if prompt[:start].endswith(article) and f"The {prompt[start:end]}" in known_subjects():
            return start - len(article), end
    return span


def _named(prompt: str) -> Span | None:
    """The longest subject of the catalogue, or else the last run of capitalised words."""
    spans = sorted(spans_of(prompt), key=lambda span: span[0] - span[1])
    for start, end in spans:
        if prompt[start:end] in known_subjects():
            return start, end
    names = [span for span in spans if span[0] > 0 and is_name(prompt[slice(*span)])]
    if not names:
        names = [span for span in spans if is_name(prompt[slice(*span)]) and " " in prompt]
    return max(names, key=lambda span: (span[1], -span[0]), default=None)


def is_name(text: str) -> bool:
    """Whether it looks like a name: first and last word capitalised, or it is in the catalogue."""
    words = text.split()
    capitals = [word for word in (words[0], words[-1]) if word[:1].isupper()] if words else []
    return (len(capitals) == 2 and not (len(words) == 1 and words[0] in _STARTS)) or (
        text in known_subjects()
    )


def _sure(text: str) -> int:
    """How many occurrences a name is worth whose remainder has no other: 1 is nothing."""
    if text in known_subjects():
        return 4
    words = text.split()
    return 2 if len(words) > 1 and words[0] not in _STARTS else 1


_STARTS = frozenset({
    "A", "An", "The", "In", "On", "At", "Of", "To", "For", "From", "By", "Asked", "What", "Who",
    "Where", "When", "Which", "How", "Why", "Is", "Are", "Was", "Now", "Next", "Then", "Here",
    "Also", "But", "And", "So", "As", "With", "After", "Before", "About", "First", "Finally",
})  # fmt: skip


@cache
def known_subjects() -> frozenset[str]:
    """The subjects of the catalogue."""
    return frozenset(fact.subject for fact in known_facts())
