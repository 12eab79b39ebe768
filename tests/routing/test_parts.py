"""Parts: a skill and facts in one task are told apart, and single exceptions from a skill."""

from __future__ import annotations

from editcl.routing.parts import OTHERS, exceptions, part_names, part_signals, parts_of
from editcl.routing.probes import Held


def held(hits: list[bool], lead: float = 0.9) -> Held:
    n = len(hits)
    return Held(tuple(hits), tuple(0.0 if hit else lead for hit in hits), (False,) * n)


def test_parts_go_by_template_and_rare_templates_together() -> None:
    templates = ["a"] * 5 + ["b"] * 4 + ["c"] * 2
    assert part_names(templates) == ["a"] * 5 + [OTHERS] * 6


def test_a_part_that_carries_over_and_one_that_does_not_are_told_apart() -> None:
    hits = [True] * 20 + [False] * 10
    answers = ["x", "y"] * 10 + list("0123456789")
    names = ["skill"] * 20 + ["facts"] * 10
    parts = parts_of(names, held(hits), answers, names, [False] * 20 + [True] * 10)
    found = part_signals(parts, 0.4)
    assert found["best_part"] > 0.8 > 0.2 > found["worst_part"]
    assert found["worst_fact_share"] == 1


def test_a_few_lucky_hits_make_no_part() -> None:
    names = ["lucky"] * 5 + ["facts"] * 10
    hits = [True, True, True, False, False] + [False] * 10
    answers = list("abcdefghijklmno")
    parts = parts_of(names, held(hits), answers, names, [True] * 15)
    assert part_signals(parts, 0.4)["best_part"] < 0.4
    assert part_signals(parts[:1], 0.4) == {}


def test_exceptions_are_clear_misses_among_regular_examples() -> None:
    hits = [True] * 40 + [False] * 4
    stated = [True] * 44
    assert exceptions(held(hits), stated) == [40, 41, 42, 43]
    assert exceptions(held(hits, lead=0.2), stated) == [], "unsure misses are errors"
    assert exceptions(held(hits), [False] * 44) == [], "what states no fact can't be edited"
    assert exceptions(held([True, False] * 22), stated) == [], "half of all is no exception"
    assert exceptions(held([True] * 40 + [False] * 2), stated[:42]) == [], "two are too few"
