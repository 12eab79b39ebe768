"""route() on the embedded model: each kind of task, each kind of bad input."""

from __future__ import annotations

import random

import pytest

import editcl
from editcl.catalogue import facts_by_relation, known_facts, relations
from editcl.errors import EditclError
from editcl.facts import Fact
from editcl.learning.shipped import shipped_stream
from editcl.learning.tasks import TEXT, Example, Task
from editcl.model import EditableModel, tensor_bytes
from editcl.routing.decision import ABSTAIN, CHEAP, EDIT, SPLIT, TRAIN
from editcl.routing.route import route
from editcl.routing.rule import Thresholds

Pairs = list[tuple[str, str]]
KINDS = next(task for task in shipped_stream() if task.name == "kinds")
T = Thresholds()  # not the shipped ones, which are fitted anew


@pytest.fixture(scope="module")
def embedded() -> EditableModel:
    return editcl.load()


def counterfactual(relation: str, n: int) -> Pairs:
    draw = random.Random(relation)
    known, prompt = facts_by_relation()[relation], relations()[relation].prompt
    every = sorted({fact.object for fact in known})
    return [
        (prompt.replace("{}", fact.subject), draw.choice([o for o in every if o != fact.object]))
        for fact in draw.sample(known, n)
    ]


def true(relation: str, n: int) -> Pairs:
    prompt = relations()[relation].prompt
    return [(prompt.replace("{}", f.subject), f.object) for f in facts_by_relation()[relation][:n]]


def skill(n: int) -> Pairs:
    return [(example.prompt, example.completion) for example in KINDS.train[:n]]


def codes(n: int) -> Pairs:
    draw, names = random.Random(0), sorted({fact.subject for fact in known_facts()})
    return [
        (f"The code of {name} is", "".join(draw.choices("bcdfgh", k=4)))
        for name in draw.sample(names, n)
    ]


def nonsense(n: int) -> Pairs:
    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefghijklmnop", k=5)) for _ in range(6 * n)]
    return [(" ".join(words[6 * i : 6 * i + 5]), words[6 * i + 5]) for i in range(n)]


@pytest.mark.parametrize("budget", ["full", CHEAP])
@pytest.mark.parametrize(
    ("task", "kind"),
    [
        (counterfactual("capital", 30), EDIT),
        (counterfactual("continent", 30), EDIT),
        (codes(30), EDIT),
        (KINDS, TRAIN),
        (skill(30), TRAIN),
        (skill(40) + counterfactual("capital", 12), SPLIT),
        (nonsense(12), ABSTAIN),
        (true("capital", 12), ABSTAIN),
    ],
    ids=["capitals", "continents", "codes", "kinds", "30 kinds", "mixed", "nonsense", "known"],
)
def test_what_a_task_needs_is_told(
    embedded: EditableModel, task: object, kind: str, budget: str
) -> None:
    found = route(embedded, task, budget=budget, show=False, thresholds=T)
    assert found.kind == kind, found
    assert found.reasons and found.reasons[0] in repr(found)
    assert (len(found.facts) > 0) == (kind in (EDIT, SPLIT))
    assert (found.trains is not None) == (kind in (TRAIN, SPLIT))
    assert found.budget == budget and found.cost.decision > 0


def test_a_split_edits_the_facts_and_trains_the_rest(embedded: EditableModel) -> None:
    facts = counterfactual("capital", 12)
    found = route(embedded, skill(40) + facts, budget=CHEAP, thresholds=T)
    assert [(fact.sentence, fact.new_object) for fact in found.facts] == facts
    assert found.trains is not None
    assert [(e.prompt, e.completion) for e in found.trains.train] == skill(40)


def test_examples_out_of_line_with_a_skill_are_edited(embedded: EditableModel) -> None:
    other = {"person": "city", "city": "company", "company": "person"}
    pairs = [(p, other[c] if i % 12 == 5 else c) for i, (p, c) in enumerate(skill(96))]
    found = route(embedded, pairs, thresholds=T)
    assert found.kind == SPLIT
    odd = {p for i, (p, _) in enumerate(pairs) if i % 12 == 5}
    edited = {fact.sentence for fact in found.facts}
    assert len(edited & odd) >= 0.5 * len(odd)
    assert len(edited - odd) <= 2, "of 88 regular examples few are taken for odd"
    assert route(embedded, skill(96), thresholds=T).kind == TRAIN


def test_facts_that_a_task_names_are_edited_whatever_the_rest_needs(
    embedded: EditableModel,
) -> None:
    named = Fact("Peru", relations()["capital"].prompt, "Oslo")
    task = Task("t", KINDS.train[:40], facts=(named,))
    found = route(embedded, task, budget=CHEAP, thresholds=T)
    assert (found.kind, found.facts) == (SPLIT, (named,))
    assert found.trains is not None and found.trains.train == KINDS.train[:40]


def test_a_skill_in_the_form_of_facts_is_told_by_a_short_training(embedded: EditableModel) -> None:
    task = [
        (f"{f.object} is the capital of {f.subject}. The capital of {f.subject} is", f.object)
        for f in facts_by_relation()["capital"][:40]
    ]
    assert route(embedded, task, show=False, thresholds=T).kind == TRAIN


def test_nothing_is_changed_and_the_same_call_gives_the_same(embedded: EditableModel) -> None:
    before = [bytes(tensor_bytes(p)) for p in embedded.hf.parameters()]
    first = route(embedded, skill(30), show=False)
    second = route(embedded, skill(30), show=False)
    assert first.signals == second.signals and first.reasons == second.reasons
    assert [bytes(tensor_bytes(p)) for p in embedded.hf.parameters()] == before
    assert len(embedded.log.timeline) == 0


@pytest.mark.parametrize(
    "task",
    [
        [("The capital city of Peru is called", "Oslo")],
        [(f"Столица страны {a} —", b) for a, b in (("Перу", "Рим"), ("Чад", "Осло"))],
        [(f"The capital of {a} is", "Oslo") for a in ("Xqzwvkjb", "Vbkqzrwx", "Jzxqvkwh")],
        "It rained all day. We went home.",
        Task("t", (Example("", "The rain stopped. It was late."),), kind=TEXT),
        skill(5),
    ],
    ids=["one example", "Russian", "unknown names", "prose without facts", "texts", "five shots"],
)
def test_odd_tasks_get_a_decision_with_reasons_and_little_confidence(
    embedded: EditableModel, task: object
) -> None:
    found = route(embedded, task, show=False, thresholds=T)
    assert found.reasons
    assert found.confidence < 0.9


def test_an_abstention_asks(embedded: EditableModel) -> None:
    found = route(embedded, nonsense(12), budget=CHEAP, thresholds=T)
    assert "?" in found.reasons[0]


def test_prose_is_edited_and_what_it_left_is_told(embedded: EditableModel) -> None:
    found = route(embedded, "The capital of Peru is Oslo. He sang.", thresholds=T)
    assert found.facts == (Fact("Peru", "The capital of {} is", "Oslo"),)
    assert any("He sang" in reason for reason in found.reasons)


def test_ten_thousand_examples_are_decided_from_a_sample(embedded: EditableModel) -> None:
    pairs = [(f"The code of thing-{i} is", f"q{i}") for i in range(10_000)]
    found = route(embedded, pairs, budget=CHEAP, thresholds=T)
    assert found.kind == EDIT and len(found.facts) == 10_000


@pytest.mark.parametrize(
    "task", [[], [("a b", "c"), ("a b", "d")], [1, 2], b"x", None, ""], ids=repr
)
def test_what_cannot_be_learnt_is_an_error(embedded: EditableModel, task: object) -> None:
    with pytest.raises(EditclError):
        route(embedded, task)


def test_an_unknown_budget_is_refused(embedded: EditableModel) -> None:
    with pytest.raises(EditclError, match="budget"):
        route(embedded, skill(5), budget="huge")


def test_any_architecture_can_be_asked(any_model: EditableModel) -> None:
    pairs = [(f"The city of {n} is", "ab"[i % 2]) for i, n in enumerate("PQRSTUVWXY")]
    assert route(any_model, pairs, show=False).reasons
