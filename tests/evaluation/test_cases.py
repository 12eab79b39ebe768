"""Cases of the catalogue: true before, false after, apart from each other."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from editcl.catalogue import facts_by_relation, known_facts, relation_of, relations
from editcl.evaluation import catalogue_cases
from editcl.evaluation.cases import case_of
from editcl.facts import fill


def test_catalogue_cases_are_true_before_and_false_after() -> None:
    truth = {(f.subject, f.relation): f.object for f in known_facts()}
    for case in catalogue_cases(60, seed=1):
        relation = relation_of(case.fact.prompt)
        assert relation is not None
        assert truth[case.fact.subject, relation.name] == case.fact.old_object
        assert case.fact.new_object != case.fact.old_object
        assert case.fact.new_object in {f.object for f in facts_by_relation()[relation.name]}
        assert all(n.object != case.fact.new_object for n in case.neighbours)
        assert case.fact.sentence not in case.paraphrases
        assert all(case.fact.subject in prompt for prompt in case.paraphrases)


def test_cases_repeat_with_their_seed() -> None:
    assert catalogue_cases(20, seed=3) == catalogue_cases(20, seed=3)
    assert catalogue_cases(20, seed=3) != catalogue_cases(20, seed=4)


def test_the_catalogue_is_what_data_readme_says() -> None:
    facts, catalogue = known_facts(), relations()
    assert len(facts) >= 2000
    assert len(catalogue) >= 12
    assert len({(f.subject, f.relation) for f in facts}) == len(facts)
    assert {f.relation for f in facts} == set(catalogue)
    for relation in catalogue.values():
        assert len(set(relation.phrasings)) >= 5
        assert all(p.count("{}") == 1 for p in relation.phrasings)
    phrasings = [p for r in catalogue.values() for p in r.phrasings]
    assert len(set(phrasings)) == len(phrasings)


def asked(case) -> set[str]:
    """Every phrasing of the fact that a case edits."""
    relation = relation_of(case.fact.prompt)
    assert relation is not None
    return {fill(phrasing, case.fact.subject) for phrasing in relation.phrasings}


@pytest.mark.parametrize("count", [50, 1000])
def test_no_probe_asks_for_what_another_case_edits(count: int) -> None:
    cases = catalogue_cases(count, seed=1)
    edits = Counter((case.fact.subject, case.fact.prompt) for case in cases)
    assert len(edits) == count
    edited = set().union(*map(asked, cases))
    probes = [p for case in cases for p in (*case.neighbours, *case.same_subject)]
    assert edited.isdisjoint(probe.prompt for probe in probes)
    for case in cases:
        near = [probe.prompt for probe in case.neighbours]
        assert len(set(near)) == len(near) <= 5
        assert all(probe.object != case.fact.new_object for probe in case.neighbours)


def test_the_probes_that_are_left_out_would_have_been_there() -> None:
    """The positive control: without the rule many probes of a large batch are edited."""
    rng = random.Random(0)
    known = rng.sample(known_facts(), 1000)
    cases = [case_of(fact, rng) for fact in known]
    edited = set().union(*map(asked, cases))
    hit = [p for case in cases for p in case.neighbours if p.prompt in edited]
    assert len(hit) > 500


def test_neighbours_that_are_left_out_are_replaced() -> None:
    cases = catalogue_cases(1000)
    assert sum(len(case.neighbours) for case in cases) > 0.95 * 5 * len(cases)
    truth = {(f.subject, f.relation): f.object for f in known_facts()}
    by_prompt = {fill(relations()[r].prompt, s): o for (s, r), o in truth.items()}
    assert all(by_prompt[p.prompt] == p.object for case in cases for p in case.neighbours)


def test_the_edits_of_fewer_cases_are_the_first_of_more() -> None:
    few, many = catalogue_cases(30, seed=4), catalogue_cases(300, seed=4)
    assert [(c.fact.subject, c.fact.prompt) for c in few] == [
        (c.fact.subject, c.fact.prompt) for c in many[:30]
    ]
    assert [c.fact for c in few] == [c.fact for c in many[:30]]
