"""The balanced families' skills follow their rules, and their facts are asked of the same names."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator

import pytest

from editcl.benchmarks import families_balanced as balanced
from editcl.benchmarks.families import FAMILIES, make_tasks
from editcl.benchmarks.posed import HELD_OUT, Made, Maker
from editcl.catalogue import facts_by_relation, known_facts, relations
from editcl.facts import fill
from editcl.learning.tasks import Example, Task

KNOWLEDGE = (balanced.handbooks, balanced.rings, balanced.diaries, balanced.rumours)
SKILLS = (balanced.counterparts, balanced.second_hand)
MIXED = (
    balanced.nouns_and_facts,
    balanced.cargo_and_facts,
    balanced.finds_and_rings,
    balanced.labels_and_rumours,
)
KNOWN = (balanced.reminders, balanced.drills)
EVERY = (*KNOWLEDGE, *SKILLS, *MIXED, *KNOWN)
TASKS = 3
TRUE = {(fact.subject, fact.object) for fact in known_facts()}
WAYS = {way for relation in relations().values() for way in relation.phrasings}
NAMES = sorted({fact.subject for fact in known_facts()}, key=len, reverse=True)


def tasks(makers: Iterable[Maker]) -> list[tuple[str, int, Made]]:
    return [
        (maker.__name__, number, maker(random.Random(f"0 {maker.__name__} {number}"), number))
        for maker in makers
        for number in range(TASKS)
    ]


def names_in(prompt: str) -> Iterator[str]:
    """The names in it, the longest first, none of them a part of another."""
    for name in NAMES:
        if name in prompt and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", prompt):
            yield name
            prompt = prompt.replace(name, "{}", 1)


def wording(prompt: str) -> str:
    return next((prompt.replace(name, "{}", 1) for name in names_in(prompt)), prompt)


def told(rows: Iterable[Example]) -> set[tuple[str, str]]:
    return {(next(names_in(row.prompt)), row.completion) for row in rows}


def test_no_task_contradicts_itself_or_shows_what_is_held_out() -> None:
    assert tasks(EVERY) == tasks(EVERY)
    for name, number, one in tasks(EVERY):
        Task(f"{name}-{number}", tuple(one.train), tuple(one.test), one.kind)
        shown, asked = ([row.prompt for row in rows] for rows in (one.train, one.test))
        assert len({*shown, *asked}) == len(shown) + len(asked), (name, number)
        assert 5 <= len(shown) <= 40 and 15 <= len(asked) <= HELD_OUT, (name, number)


def test_no_wording_is_that_of_another_family() -> None:
    own = {maker.__name__ for maker in EVERY}
    before = make_tasks([name for name in FAMILIES if name not in {*own, "many"}])
    others = {wording(row.prompt) for one in before for row in (*one.task.train, *one.task.test)}
    for name, _, one in tasks(EVERY):
        used = {wording(row.prompt) for row in (*one.train, *one.test)}
        assert not (used & others) - WAYS, name


def test_facts_are_asked_of_the_same_subjects_in_other_words_and_are_untrue() -> None:
    for name, number, one in tasks(KNOWLEDGE):
        assert told(one.test) <= told(one.train), (name, number)
        ways = [{wording(row.prompt) for row in rows} for rows in (one.train, one.test)]
        assert not ways[0] & ways[1], (name, number)
        assert (ways[0] <= WAYS) == (name != "rumours"), (name, number)
        true = told(one.train) & TRUE
        assert len(true) <= len(one.train) // 8, true  # of another relation


@pytest.mark.parametrize("maker", [balanced.diaries, balanced.reminders])
def test_a_text_states_its_items_once_and_more(maker: Maker) -> None:
    for _, number, one in tasks([maker]):
        said = [f"{row.prompt} {row.completion}." for row in one.train]
        assert one.text is not None and len(one.text) > len(" ".join(said))
        assert all(one.text.count(sentence) == 1 for sentence in said), number


def test_skills_follow_their_rule_for_names_that_were_never_shown() -> None:
    for name, number, one in tasks(SKILLS):
        shown, asked = ({subject for subject, _ in told(rows)} for rows in (one.train, one.test))
        assert not shown & asked, (name, number)
        assert {row.completion for row in one.test} == {row.completion for row in one.train}
    known = {name: {f.subject: f.object for f in own} for name, own in facts_by_relation().items()}
    for _, number, one in tasks([balanced.second_hand]):
        _, _, first, second, *_ = balanced._SECOND_HAND[number]
        for subject, answer in told([*one.train, *one.test]):
            assert known[second][known[first][subject]] == answer, subject


def test_mixed_tasks_hold_facts_beside_a_skill_about_others() -> None:
    for name, number, one in tasks(MIXED):
        facts = {(fact.sentence, fact.new_object) for fact in one.facts}
        rows = {(row.prompt, row.completion) for row in one.train}
        assert facts < rows and 8 <= len(facts) == len(one.facts) <= 16, (name, number)
        assert 16 <= len(rows - facts) <= 28, (name, number)
        about = {fact.subject for fact in one.facts}
        assert not about & {found for row in rows - facts for found in names_in(row[0])}
        known = {(fact.subject, fact.new_object) for fact in one.facts}
        asked = [row for row in one.test if about & set(names_in(row.prompt))]
        assert told(asked) <= known, (name, number)
        assert len(asked) == len(one.test) - len(asked) == HELD_OUT // 2, (name, number)


def test_all_answers_are_true_where_nothing_is_to_be_gained() -> None:
    true = {
        (fill(way, fact.subject), fact.object)
        for fact in known_facts()
        for way in relations()[fact.relation].phrasings
    }
    for name, number, one in tasks(KNOWN):
        for row in (*one.train, *one.test):
            starts = [0, *(found.end() for found in re.finditer(r"[.!?] ", row.prompt))]
            ends = {(row.prompt[start:], row.completion) for start in starts}
            assert ends & true, (name, number, row)
