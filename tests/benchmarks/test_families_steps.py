"""Skills of more than one step are asked of parts that were never shown, with all answers alike."""

from __future__ import annotations

from collections import Counter

from editcl.benchmarks.families import make_tasks
from editcl.benchmarks.families_steps import _SERIES, _TURNS
from editcl.catalogue import known_facts

SUBJECTS = {fact.subject for fact in known_facts()}


def test_every_answer_is_shown_and_asked_as_often_as_any_other() -> None:
    for one in make_tasks(["teams", "turns"]):
        shown = Counter(row.completion for row in one.task.train)
        asked = Counter(row.completion for row in one.task.test)
        assert len(set(shown.values())) == 1, one
        assert shown.keys() == asked.keys(), one
        assert max(asked.values()) - min(asked.values()) <= 1, one


def test_names_are_chosen_among_others_that_were_in_no_list() -> None:
    for one in make_tasks(["picks"]):
        lists = [row.prompt for row in one.task.train]
        for row in one.task.test:
            names = [name for name in SUBJECTS if name in row.prompt and len(name) > 5]
            assert row.completion in row.prompt
            assert not [name for name in names if _listed(name, lists)], row


def test_sentences_turn_on_a_word_between_parts_that_were_never_shown() -> None:
    for one in make_tasks(["turns"]):
        shown, asked = (
            {tuple(row.prompt.split(".")[0].split()) for row in rows}
            for rows in (one.task.train, one.task.test)
        )
        assert not {words[:3] for words in shown} & {words[:3] for words in asked}, one
        assert not {words[-2:] for words in shown} & {words[-2:] for words in asked}, one


def test_sentences_show_every_word_that_they_turn_on() -> None:
    for one, (_, _, answers, _) in zip(make_tasks(["turns"]), _TURNS, strict=True):
        for word in answers:
            assert any(f" {word} " in row.prompt for row in one.task.train), word


def test_a_series_ends_truly_and_holds_nothing_of_what_is_held_out() -> None:
    true = {(fact.subject, fact.object) for fact in known_facts()}
    for one, (start, between, *_) in zip(make_tasks(["series"]), _SERIES, strict=True):
        end = start.removeprefix("{}")
        shown = [row.prompt for row in one.task.train]
        for row in (*one.task.train, *one.task.test):
            *before, last = row.prompt.split(between)
            assert (last.removesuffix(end), row.completion) in true, row
            assert not [line for line in before if line.endswith(f"{end} {row.completion}")], row
            assert row.prompt in shown or not [each for each in shown if last in each], row


def _listed(name: str, lists: list[str]) -> bool:
    return any(f"{name}{end}" in each for each in lists for end in (",", ":", " and", "."))
