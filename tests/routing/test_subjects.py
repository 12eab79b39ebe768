"""Subjects: found by templates, by the catalogue, by capitals."""

from __future__ import annotations

import pytest

from editcl.catalogue import facts_by_relation, relations
from editcl.facts import Fact
from editcl.learning.tasks import Example
from editcl.routing.subjects import find_facts, find_subjects, is_name, template_counts


def subjects(prompts: list[str]) -> list[str | None]:
    spans = find_subjects(prompts)
    return [None if s is None else p[slice(*s)] for p, s in zip(prompts, spans, strict=True)]


def test_a_template_is_counted_by_what_it_leaves() -> None:
    counts = template_counts(["The code of ab is", "The code of xy is", "Else"])
    assert counts["The code of ", " is"] == 2
    assert ("", "Else") not in counts


def test_words_that_differ_between_alike_prompts_are_the_subjects() -> None:
    names = [f"item-{i}" for i in range(5)]
    assert subjects([f"The code of {name} is" for name in names]) == names
    assert subjects([f"what does a {w} eat?" for w in ("cat", "dog", "old cow")]) == [
        "cat",
        "dog",
        "old cow",
    ]


@pytest.mark.parametrize("relation", ["capital", "currency", "located_in_city", "headquarters"])
def test_of_catalogue_prompts_nearly_all_subjects_are_found(relation: str) -> None:
    known = [fact.subject for fact in facts_by_relation()[relation][:40]]
    found = subjects([relations()[relation].prompt.replace("{}", name) for name in known])
    assert sum(a == b for a, b in zip(found, known, strict=True)) >= 0.9 * len(known)


def test_several_relations_at_once_do_not_confuse_it() -> None:
    pairs = [
        (fact.subject, relations()[name].prompt)
        for name in ("capital", "continent", "currency", "official_language")
        for fact in facts_by_relation()[name][:8]
    ]
    found = subjects([prompt.replace("{}", subject) for subject, prompt in pairs])
    assert found == [subject for subject, _ in pairs]


def test_a_single_prompt_gives_its_name() -> None:
    assert subjects(["The capital of Peru is"]) == ["Peru"]
    assert subjects(["We went to see Zarkon Blip yesterday"]) == ["Zarkon Blip"]
    assert subjects(["nothing here has a name"]) == [None]


def test_scripts_without_spaces_have_subjects_too() -> None:
    assert subjects(["法国的首都是", "德国的首都是", "日本的首都是"]) == ["法国", "德国", "日本"]


def test_prompts_beyond_the_sample_go_by_the_templates_of_the_sample() -> None:
    names = [f"thing-{i}" for i in range(3000)]
    assert subjects([f"The code of {name} is" for name in names]) == names


def test_an_example_becomes_a_fact_unless_its_answer_is_long() -> None:
    short = Example("The capital of Peru is", "Rome")
    long = Example("The capital of Chad is", "a town which I will not name to you here today")
    assert find_facts([short, long]) == (Fact("Peru", "The capital of {} is", "Rome"), None)


def test_a_subject_that_stands_twice_makes_no_fact() -> None:
    twice = Example("Lima is the capital of Peru. The capital of Peru is", "Lima")
    (found,) = find_facts([twice])
    assert found is None or found.subject != "Peru"


def test_names_are_told_from_words() -> None:
    assert is_name("Marie Curie") and is_name("Peru")
    assert not is_name("The") and not is_name("blue") and not is_name("")


def test_the_question_that_ends_all_prompts_is_no_subject() -> None:
    texts = [
        "It rained on Monday. Label:",
        "He sold his bicycle to a friend. Label:",
        "Nobody came. Label:",
        "The soup was cold again. Label:",
    ]
    assert "Label" not in subjects(texts)


def test_a_name_that_ends_all_prompts_is_their_subject() -> None:
    asked = ("birthplace", "job", "mother tongue", "citizenship", "rank")
    assert subjects([f"The {what} of Marie Curie:" for what in asked]) == ["Marie Curie"] * 5


def test_clauses_are_no_subjects_and_long_names_are() -> None:
    assert subjects(["he sharpened his old pencil again. Mood:", "x y. Mood:"])[0] is None
    names = ["One Hundred Years of Solitude", "The Lord of the Rings", "natural gas", "北京市"]
    assert subjects([f"The author of {name} is" for name in names]) == names


def test_subjects_that_end_alike_are_whole() -> None:
    """Prompts may share the end of their subjects too."""
    names = [f"thing-{i}0" for i in range(2000)]
    assert subjects([f"The code of {name} is" for name in names]) == names


def test_a_subject_of_the_catalogue_in_its_phrasing_is_taken_whole() -> None:
    titles = ["Notre-Dame de Paris", "A Midsummer Night's Dream", "Rome, Open City", "Paris"]
    prompts = [relations()["genre"].prompt.replace("{}", title) for title in titles]
    assert subjects([*prompts, "We saw Paris and Rome"])[:4] == titles
