"""route() on the embedded model: each kind of task, each kind of bad input."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

import editcl
from editcl.catalogue import facts_by_relation, known_facts, relations
from editcl.editing.covariance import Covariance
from editcl.errors import EditclError
from editcl.facts import Fact
from editcl.learning.shipped import shipped_stream
from editcl.learning.tasks import CLASSIFICATION, TEXT, Example, Task
from editcl.model import EditableModel, tensor_bytes
from editcl.routing.decision import ABSTAIN, CHEAP, EDIT, FULL, SPLIT, TRAIN
from editcl.routing.route import route
from editcl.routing.rule import Thresholds
from editcl.routing.trials import TrialEdit

Pairs = list[tuple[str, str]]
PEOPLE = ("Marie Curie", "Isaac Newton", "Alan Turing", "Ada Lovelace")
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
        (codes(30), TRAIN),  # words that the model can't say: edits meet none, a training 83 %
        (KINDS, TRAIN),
        (skill(30), TRAIN),
        (skill(40) + counterfactual("capital", 12), SPLIT),
        (nonsense(12), TRAIN),
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
    found = route(embedded, true("capital", 12), budget=CHEAP, thresholds=T)
    assert "?" in found.reasons[0]


def test_prose_is_edited_and_what_it_left_is_told(embedded: EditableModel) -> None:
    found = route(embedded, "The capital of Peru is Oslo. He sang.", thresholds=T)
    assert found.facts == (Fact("Peru", "The capital of {} is", "Oslo"),)
    assert any("He sang" in reason for reason in found.reasons)


def test_ten_thousand_examples_are_decided_from_a_sample(embedded: EditableModel) -> None:
    pairs = [(f"The code of thing-{i} is", f"q{i}") for i in range(10_000)]
    found = route(embedded, pairs, budget=CHEAP, thresholds=T)
    assert found.kind == TRAIN and found.trains is not None and len(found.trains.train) == 10_000


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


# -- what is taken, and what it may cost (a tiny model will do) -----------------------------------

#: By which nothing is strange, however little a random model knows.
FAMILIAR = Thresholds(unknown=99.0, spelling=99.0, pieces=99.0, known=2.0)


def named_facts(n: int) -> list[Fact]:
    names = [name for name in dict.fromkeys(fact.subject for fact in known_facts())][:n]
    return [Fact(name, "The mark of {} is", f"x{i}") for i, name in enumerate(names)]


@pytest.mark.parametrize("budget", [FULL, CHEAP])
@pytest.mark.parametrize(("rows", "n"), [(10.0, 30), (1e6, 30)], ids=["affordable", "dear"])
def test_a_training_is_tried_only_within_the_share_of_the_cheaper_arm(
    model: EditableModel, monkeypatch: pytest.MonkeyPatch, budget: str, rows: float, n: int
) -> None:
    monkeypatch.setattr("editcl.routing.route.PROBE_ROWS", rows)
    monkeypatch.setattr(
        "editcl.routing.trials.transfer_probe", lambda *_, **__: ([0, 1], [False] * 2, [False] * 2)
    )
    pairs = [(f"The code of thing-{i} is", f"q{i}") for i in range(n)]
    found = route(model, pairs, budget=budget, show=False, thresholds=FAMILIAR)
    assert ("probe_transfer" in found.signals) == (budget == FULL and rows == 10.0)


def test_a_trial_edit_that_fails_gives_way_to_a_training_where_covariances_are_at_hand(
    model: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "editcl.routing.trials.trial_edit", lambda *_, **__: TrialEdit(efficacy=0, specificity=1)
    )
    strange = replace(FAMILIAR, spelling=0.01)
    without = route(model, named_facts(30), show=False, thresholds=strange)
    assert without.kind == EDIT and "trial_efficacy" not in without.signals
    model.memo |= {"covariance-x": Covariance(1, torch.eye(8), 1, "a test")}
    tried = route(model, named_facts(30), show=False, thresholds=strange)
    assert tried.kind == TRAIN and tried.signals["trial_efficacy"] == 0
    assert "a trial edit met only 0 %" in tried.reasons[0]


def test_many_facts_of_each_subject_are_trained(model: EditableModel) -> None:
    facts = [Fact(f.subject, f"The {what} of {{}} is", f.new_object) for f in named_facts(6)
             for what in ("mark", "sign", "flag", "coin", "hymn")]  # fmt: skip
    pairs = [(fact.sentence, fact.new_object) for fact in facts]
    found = route(model, pairs, show=False, thresholds=FAMILIAR)
    assert found.kind == TRAIN and found.trains is not None and len(found.trains.train) == 30
    assert "5.0 facts about each subject" in found.reasons[0]
    few = route(model, pairs[::5], show=False, thresholds=FAMILIAR)
    assert few.kind == EDIT and few.signals["mates"] == 1


@pytest.fixture
def eight_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that point everywhere alike, in one layer of eight units."""
    found = {1: Covariance(1, torch.eye(8), 1, "a test")}
    monkeypatch.setattr("editcl.routing.trials.edit_covariances", lambda _: found)


def test_many_facts_are_set_against_what_edits_of_the_model_hold(
    model: EditableModel, eight_directions: None
) -> None:
    found = route(model, named_facts(200), show=False, thresholds=FAMILIAR)
    assert found.signals["load"] == found.signals["fill"] == pytest.approx(200 / (0.2 * 8))
    assert found.kind == ABSTAIN and "125.0 times what edits" in found.reasons[0]
    few = route(model, named_facts(30), show=False, thresholds=FAMILIAR)
    assert "load" not in few.signals and few.confidence > found.confidence


def test_facts_that_earlier_edits_leave_no_room_for_are_trained(
    model: EditableModel, eight_directions: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("editcl.routing.trials.capacity", lambda _: 100.0)
    earlier = [Fact(f"Place {i}", "{} is in", "Rome") for i in range(170)]
    again = named_facts(30)[:10]  # what was edited before is there once
    monkeypatch.setattr("editcl.routing.route.active_facts", lambda _: [*earlier, *again])
    found = route(model, named_facts(30), show=False, thresholds=FAMILIAR)
    assert found.signals["load"] == 0.3 and found.signals["fill"] == 2.0
    assert found.kind == TRAIN and "2.0 times what edits" in found.reasons[0]
    assert found.trains is not None and not found.facts


def test_where_no_layer_can_be_chosen_no_capacity_is_spoken_of(model: EditableModel) -> None:
    found = route(model, named_facts(200), show=False, thresholds=FAMILIAR)
    assert "load" not in found.signals and found.kind == EDIT


def test_facts_beside_too_little_to_train_on_are_edited(model: EditableModel) -> None:
    born = [Example(f"{n} was born in the city of", "Rome") for n in PEOPLE]
    boxes = [Example(f"Put {n} into the box for a", "person") for n in PEOPLE]
    task = Task("one label", (*born, *boxes), kind=CLASSIFICATION)
    found = route(model, task, budget=CHEAP, show=False, thresholds=FAMILIAR)
    assert found.kind == EDIT and {fact.sentence for fact in found.facts} >= {
        e.prompt for e in born
    }


def test_facts_that_a_task_of_texts_names_are_edited_beside_the_training(
    model: EditableModel,
) -> None:
    named = Fact("Peru", "The capital of {} is", "Oslo")
    texts = tuple(
        Example("", f"Somebody walked home {how}. Dogs bark.") for how in ("fast", "late")
    )
    task = Task("texts", texts, kind=TEXT, facts=(named,))
    found = route(model, task, budget=CHEAP, show=False, thresholds=FAMILIAR)
    assert (found.kind, found.facts, found.trains) == (SPLIT, (named,), task)
    alone = route(model, replace(task, facts=()), budget=CHEAP, show=False, thresholds=FAMILIAR)
    assert (alone.kind, alone.facts) == (TRAIN, ())


def test_one_example_of_a_skill_is_asked_about(model: EditableModel) -> None:
    found = route(
        model, [("Take the cup from here: it is the", "cup")], show=False, thresholds=FAMILIAR
    )
    assert found.kind == ABSTAIN and "two examples" in found.reasons[0] and "?" in found.reasons[0]
