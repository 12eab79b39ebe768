"""The later families' skills follow their rules, and their facts are asked of the same subjects."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator

import pytest

from editcl.benchmarks import families_later as later
from editcl.benchmarks import families_later_mixed as later_mixed
from editcl.benchmarks.families import FAMILIES, make_tasks
from editcl.benchmarks.families_skills import names_of
from editcl.benchmarks.posed import HELD_OUT, Made, Maker
from editcl.catalogue import facts_by_relation, known_facts, relations
from editcl.learning.tasks import Example, Task

KNOWLEDGE = (later.bulletins, later.passwords, later.stalls, later.gazettes)
SKILLS = (later.sections, later.greetings, later.journeys, later.profiles)
MIXED = (
    later_mixed.remarks_and_cloakrooms,
    later_mixed.profiles_and_gazettes,
    later_mixed.sections_and_stalls,
)
KNOWN = (later_mixed.quizzes, later_mixed.albums, later_mixed.classed)
EVERY = (*KNOWLEDGE, *SKILLS, *MIXED, *KNOWN)
TEXTS = (later.bulletins, later_mixed.albums)
TASKS = 3
TRUE = {(fact.subject, fact.object) for fact in known_facts()}
SUBJECTS = {fact.subject for fact in known_facts()}
#: The longest first, for one may be part of another.
NAMES = sorted({*SUBJECTS, *later._FIRMS}, key=len, reverse=True)


def made(maker: Maker, number: int) -> Made:
    return maker(random.Random(f"0 {maker.__name__} {number}"), number)


def tasks(makers: Iterable[Maker]) -> list[tuple[Maker, int, Made]]:
    return [(maker, number, made(maker, number)) for maker in makers for number in range(TASKS)]


def object_of(relation: str) -> dict[str, str]:
    return {fact.subject: fact.object for fact in facts_by_relation()[relation]}


def told(rows: Iterable[Example]) -> set[tuple[str, str]]:
    """What is said of whom."""
    return {(subject(row.prompt), row.completion) for row in rows}


def names_in(prompt: str) -> Iterator[str]:
    """The names in it, the longest first, none of them a part of another."""
    for name in NAMES:
        if name in prompt and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", prompt):
            yield name
            prompt = prompt.replace(name, "{}", 1)


def subject(prompt: str) -> str:
    return next(names_in(prompt))


def wording(prompt: str) -> str:
    return next((prompt.replace(name, "{}", 1) for name in names_in(prompt)), prompt)


# -- all ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("maker", EVERY)
def test_the_same_number_gives_the_same_task(maker: Maker) -> None:
    assert [made(maker, at) for at in range(TASKS)] == [made(maker, at) for at in range(TASKS)]
    assert made(maker, 0) != maker(random.Random("another"), 0)


def test_no_task_contradicts_itself_or_shows_what_is_held_out() -> None:
    for maker, number, one in tasks(EVERY):
        Task(f"{maker.__name__}-{number}", tuple(one.train), tuple(one.test), one.kind)
        shown, asked = ([row.prompt for row in rows] for rows in (one.train, one.test))
        assert len({*shown, *asked}) == len(shown) + len(asked), (maker, number)
        assert 15 <= len(asked) <= HELD_OUT, (maker, number)
        assert all(row.prompt == row.prompt.strip() for row in (*one.train, *one.test))


def test_the_sizes_are_those_of_what_people_hand_over() -> None:
    sizes = {(maker.__name__, number): len(one.train) for maker, number, one in tasks(EVERY)}
    assert all(5 <= size <= 40 for size in sizes.values()), sizes
    assert all(sizes["greetings", number] <= 8 for number in range(TASKS))
    assert sum(size <= 10 for size in sizes.values()) >= 6, sizes


def test_no_wording_is_that_of_another_family() -> None:
    """But for phrasings of the catalogue, which any task may use."""
    catalogue = {way for relation in relations().values() for way in relation.phrasings}
    own = {maker.__name__ for maker in EVERY}
    before = make_tasks([name for name in FAMILIES if name not in {*own, "many"}])
    others = {wording(row.prompt) for one in before for row in (*one.task.train, *one.task.test)}
    for maker, _, one in tasks(EVERY):
        used = {wording(row.prompt) for row in (*one.train, *one.test)}
        assert not (used & others) - catalogue, maker


@pytest.mark.parametrize("maker", TEXTS)
def test_a_text_states_its_items_and_more(maker: Maker) -> None:
    for _, number, one in tasks([maker]):
        said = [f"{row.prompt} {row.completion}." for row in one.train]
        assert one.text is not None
        assert all(one.text.count(sentence) == 1 for sentence in said), number
        assert len(one.text) > len(" ".join(said)), number


# -- knowledge ------------------------------------------------------------------------------------


def test_facts_are_asked_of_the_same_subjects_in_other_words_with_the_same_answers() -> None:
    for maker, number, one in tasks(KNOWLEDGE):
        assert told(one.test) <= told(one.train), (maker, number)
        ways = [{wording(row.prompt) for row in rows} for rows in (one.train, one.test)]
        assert not ways[0] & ways[1], (maker, number)


def test_facts_are_not_what_the_model_knows() -> None:
    for maker, number, one in tasks([later.bulletins, later.gazettes]):
        true = told(one.train) & TRUE
        assert len(true) <= len(one.train) // 4, (maker, number, true)  # true of another relation


def test_no_two_share_a_password_and_many_share_a_stall() -> None:
    for _, number, one in tasks([later.passwords]):
        assert len({row.completion for row in one.train}) == len(one.train), number
    for _, number, one in tasks([later.stalls]):
        shares = Counter(row.completion for row in one.train).values()
        assert 2 <= len(shares) <= 4 and max(shares) <= min(shares) + 2, number


def test_firms_that_nobody_knows_are_not_in_the_catalogue() -> None:
    assert not SUBJECTS & set(later._FIRMS)


# -- skills ---------------------------------------------------------------------------------------


def test_names_go_where_what_is_known_of_them_says() -> None:
    for _, number, one in tasks([later.sections]):
        _, relation, answers, n = later._SECTIONS[number]
        known = object_of(relation)
        for row in (*one.train, *one.test):
            assert answers[known[subject(row.prompt)]] == row.completion, row
        assert set(Counter(row.completion for row in one.train).values()) == {n}


def test_letters_are_told_apart_by_how_they_begin_and_all_beginnings_are_shown() -> None:
    for _, number, one in tasks([later.greetings]):
        openings = later._OPENINGS[number][0]
        for row in (*one.train, *one.test):
            assert row.prompt.startswith(openings[row.completion]), row
        starts = [start for own in openings.values() for start in own]
        assert all(any(row.prompt.startswith(s) for row in one.train) for s in starts), number


def test_a_message_holds_the_answer_and_no_name_that_was_shown() -> None:
    field = (r" to (.+) by train", r"Nights: (\w+)\.", r"boxes to (.+)\. The boxes")
    for _, number, one in tasks([later.journeys]):
        for row in (*one.train, *one.test):
            found = re.search(field[number], row.prompt)
            assert found is not None and found[1] == row.completion, row
        shown, asked = (
            {name for row in rows for name in names_in(row.prompt)}
            for rows in (one.train, one.test)
        )
        assert not shown & asked, number


def test_a_profile_joins_two_true_facts() -> None:
    for _, number, one in tasks([later.profiles]):
        _, first, second, joined, _ = later._PROFILES[number]
        for row in (*one.train, *one.test):
            name = subject(row.prompt)
            true = joined.format(object_of(first)[name], object_of(second)[name])
            assert row.completion == true, row
        assert not {name for name, _ in told(one.train)} & {name for name, _ in told(one.test)}


# -- mixed ----------------------------------------------------------------------------------------


def test_facts_stand_beside_a_skill_and_about_others_than_it() -> None:
    for maker, number, one in tasks(MIXED):
        facts = {(fact.sentence, fact.new_object) for fact in one.facts}
        rows = {(row.prompt, row.completion) for row in one.train}
        assert len(facts) == len(one.facts) and facts < rows, (maker, number)
        assert len(rows - facts) >= 12, (maker, number)
        skill = [row for row in one.train if (row.prompt, row.completion) not in facts]
        about = {fact.subject for fact in one.facts}
        assert not about & {name for row in skill for name in names_in(row.prompt)}


def test_held_out_of_a_mixed_task_are_its_facts_and_new_inputs_of_its_skill() -> None:
    for maker, number, one in tasks(MIXED):
        known = {(fact.subject, fact.new_object) for fact in one.facts}
        about = {fact.subject for fact in one.facts}
        asked = [row for row in one.test if about & set(names_in(row.prompt))]
        assert told(asked) <= known, (maker, number)
        assert min(len(asked), len(one.test) - len(asked)) >= 14, (maker, number)


def test_remarks_turn_on_a_word_between_parts_that_were_never_shown() -> None:
    for number in range(TASKS):
        form, starts, ends, answers, n = later_mixed._REMARKS[number]
        one = later_mixed._remarks(random.Random(number), number)
        parts: list[set[str]] = []
        for rows in (one.train, one.test):
            parts.append(set())
            for row in rows:
                words = [word for word in answers if f" {word} " in f" {row.prompt} "]
                words += [word for word in answers if row.prompt.startswith(f"{word.title()} ")]
                assert [answers[word] for word in words] == [row.completion], row
                low = row.prompt.lower()
                parts[-1] |= {part for part in (*starts, *ends) if part.lower() in low}
        assert not parts[0] & parts[1], number
        assert set(Counter(row.completion for row in one.train).values()) == {n}
        assert form.count("{") == 3


# -- what the model says already ------------------------------------------------------------------


def test_all_answers_are_true_where_nothing_is_to_be_gained() -> None:
    for maker, number, one in tasks(KNOWN):
        for row in (*one.train, *one.test):
            assert (subject(row.prompt), row.completion) in TRUE, (maker, number, row)


def test_the_end_of_every_prompt_is_a_phrasing_of_the_catalogue() -> None:
    ways = {way for relation in relations().values() for way in relation.phrasings}
    for maker, number, one in tasks(KNOWN):
        for row in (*one.train, *one.test):
            asked = wording(row.prompt)
            assert asked in ways or any(asked.endswith(f" {way}") for way in ways), (maker, number)


def test_labels_are_asked_of_names_that_were_never_shown() -> None:
    for _, number, one in tasks([later_mixed.classed]):
        assert not {name for name, _ in told(one.train)} & {name for name, _ in told(one.test)}
        answers = [{row.completion for row in rows} for rows in (one.train, one.test)]
        assert answers[0] == answers[1], number


def test_names_of_a_kind_are_enough_for_every_message() -> None:
    for _, _, n in later._MESSAGES:
        assert len(names_of("city")) >= 2 * (n + 15)
