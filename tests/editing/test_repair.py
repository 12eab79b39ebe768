"""Lost facts: which they are, and that a sequence edits them again and lists them."""

from __future__ import annotations

import batches
import pytest

import editcl
from editcl.editing import many
from editcl.editing.repair import lost_facts
from editcl.facts import Fact
from editcl.model import EditableModel

CITY = "{} is located in the city of"
SAID = Fact("Louvre", CITY, "Paris", "Rome")
LOST = Fact("Eiffel Tower", CITY, "Oslo", "Paris")
OTHER = Fact("Colosseum", CITY, "Oslo", "Rome")
TWO_BY_TWO = {
    "batch_size": 2,
    "layers": [1],
    "contexts": ("",),
    "guard": None,
    "resume": False,
}


@pytest.fixture(scope="module")
def embedded() -> EditableModel:
    return editcl.load()


def test_what_the_model_says_is_not_lost(embedded) -> None:
    assert lost_facts(embedded, [SAID, LOST], [OTHER]) == [LOST]
    assert lost_facts(embedded, [], [OTHER]) == []


def test_of_several_about_one_relation_the_last_counts(embedded) -> None:
    """The last one is what the model says; in other words it is the same relation."""
    anew = Fact("eiffel tower", "Anyone who wants to see {} has to go to", "Paris", "Oslo")
    assert lost_facts(embedded, [LOST, anew], [OTHER]) == []
    assert lost_facts(embedded, [anew, LOST], [OTHER]) == [LOST]


def test_what_the_batch_edits_is_not_repaired(embedded) -> None:
    again = Fact("Eiffel Tower", CITY, "Berlin", "Paris")
    assert lost_facts(embedded, [LOST], [again]) == []


def test_no_more_than_the_batch_has_the_least_said_first(embedded) -> None:
    known = [Fact(name, CITY, "Oslo") for name in ("Eiffel Tower", "Louvre", "Colosseum")]
    whole = lost_facts(embedded, known, batches.FACTS)
    said = [embedded.score([_sentence(f)]).log_prob.item() for f in whole]
    assert len(whole) == 3 and said == sorted(said)
    assert lost_facts(embedded, known, batches.FACTS[:2]) == whole[:2]


def test_what_was_repaired_twice_is_given_up(embedded) -> None:
    assert lost_facts(embedded, [LOST] * 3, [OTHER]) == [LOST]
    assert lost_facts(embedded, [LOST] * 4, [OTHER]) == []


def _sentence(fact: Fact) -> object:
    from editcl.encoding import Sentence

    return Sentence(fact.prompt, fact.subject, fact.new_object)


def test_a_lost_fact_is_edited_again_in_the_next_entry_and_rolls_back_with_it(
    model, monkeypatch
) -> None:
    """Which one is lost is said here; a random model loses none by itself."""
    facts = list(batches.CONTROL)
    monkeypatch.setattr(many, "lost_facts", lambda _m, earlier, _b: list(earlier[:1]))
    before = batches.state(model)
    report = editcl.edit_csv(model, facts, **TWO_BY_TWO, refine=True)
    first, second = report.entries
    assert second.facts == (facts[2], facts[0])
    assert second.details["repaired"] == 1 and first.details["repaired"] == 0
    assert [row.index for row in report.rows] == [0, 1, 0]
    model.log.rollback((first, 0))
    assert model.log.active_facts(first) == (False, True)
    assert model.log.active_facts(second) == (True, False)
    model.log.reapply(facts[0])
    model.log.rollback(second)
    assert model.log.active_facts(first) == (True, True)
    model.log.reapply(second)
    model.log.rollback(first)
    assert model.log.active_facts(second) == (True, False)
    model.log.rollback("all")
    assert batches.state(model) == before


def test_without_a_refinement_nothing_is_repaired(model, monkeypatch) -> None:
    monkeypatch.setattr(many, "lost_facts", lambda *_: pytest.fail("asked"))
    report = editcl.edit_csv(model, list(batches.CONTROL), **TWO_BY_TWO, refine=False)
    assert [len(entry.facts) for entry in report.entries] == [2, 1]
