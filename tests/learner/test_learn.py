"""Learner: edits, trainings and both, from the log and back out of it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from pupils import (
    CHEAP,
    FACTS,
    MIXED,
    ONE,
    OTHER,
    PROMPTS,
    SOUND,
    TWO,
    bits,
    fresh,
    learn,
    learner,
    story,
)

import editcl
from editcl.editing.choices import ask_objects
from editcl.errors import EditclError, LogError
from editcl.facts import Fact
from editcl.learner.making import CostlyError
from editcl.learner.settings import default_training
from editcl.learner.standing import Standing
from editcl.learning.tasks import Example
from editcl.log import EditLog
from editcl.routing.decision import Cost, Decision
from editcl.update import WeightUpdate

HERE = Path(__file__).resolve().parent


# -- the ways to learn ----------------------------------------------------------------------------


def test_an_edit_is_one_entry_whose_facts_hold_and_says_that_it_was_asked_for() -> None:
    one = learner(edits=SOUND)
    assert not all(one.holds(FACTS)), "a positive control"
    outcome = learn(one, FACTS, "edit", name="places")
    (entry,) = one.log.entries
    assert outcome.entries == (entry.id,) and set(entry.facts) <= set(FACTS)
    assert outcome.kind == "edit" and outcome.decision.reasons == ("asked for",)
    assert outcome.scores["facts"] == 1.0 and all(one.holds(FACTS))
    (step,) = one.history()
    assert step.active and step.task == "places" and step.method == "edit"
    assert "places: edit" in repr(outcome) and "asked for" in repr(outcome)
    assert json.loads(json.dumps(outcome.to_json()))["entries"] == [entry.id]


def test_an_edit_that_did_not_take_says_so() -> None:
    one = learner(edits=CHEAP)
    outcome = learn(one, FACTS, "edit", name="places")
    assert outcome.scores["facts"] < 1, "edits this cheap reach nothing"
    (note,) = outcome.notes
    assert "do not hold" in note and note in repr(outcome)
    assert learn(learner(edits=SOUND), FACTS, "edit").notes == ()


def decides(monkeypatch: pytest.MonkeyPatch, facts: list[Fact]) -> None:
    """Makes the router say edit, whatever it is asked."""

    def decided(_model, made, **_options) -> Decision:
        return Decision(
            made.name, "edit", 0.9, ("facts",), {}, Cost(0, 1, 1), tuple(facts), budget="full"
        )

    monkeypatch.setattr("editcl.learner.deciding.route", decided)


def test_an_edit_that_costs_more_than_it_brings_is_taken_back_and_trained(monkeypatch) -> None:
    one = learner(edits=SOUND)
    learn(one, OTHER, "edit", name="before")
    held = bits(one)
    decides(monkeypatch, FACTS)
    # Whatever it costs is too much.
    monkeypatch.setattr("editcl.learner.making.COSTLY", -1.0)
    outcome = learn(one, FACTS, "auto", name="places")
    assert outcome.kind == "train" and outcome.decision.confidence == 0.5
    told, before = outcome.decision.reasons
    assert "taken back" in told and before == "decided before: facts"
    assert [(step.kind, step.active) for step in one.history()][-2:] == [
        ("edit", False),
        ("train", True),
    ]
    one.rollback("places")
    assert bits(one) == held
    assert one.log.verify().ok


def test_a_training_that_fails_after_a_costly_edit_leaves_all_as_it_was(monkeypatch) -> None:
    one = learner(edits=SOUND)
    learn(one, OTHER, "edit", name="before")
    held = bits(one)
    decides(monkeypatch, FACTS)
    monkeypatch.setattr("editcl.learner.making.COSTLY", -1.0)

    def fails(*_arguments, **_options) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(one.skills, "learn", fails)
        with pytest.raises(KeyboardInterrupt):
            learn(one, FACTS, "auto", name="places")
    assert bits(one) == held and one.log.verify().ok
    assert [step.active for step in one.history()] == [True, False, False]
    assert learn(one, FACTS, "auto", name="places").kind == "train"


def test_what_an_edit_costs_is_counted_in_facts_and_answers(monkeypatch) -> None:
    """Of ten sampled facts that stand for forty, `lost` fall; the edit brings about four."""
    one = learner(edits=SOUND)
    learn(one, TWO, "train")
    (step,) = one.history()
    facts = {("e0001", j): Fact(f"Place {j}", "{} is in", "Rome", "Paris") for j in range(10)}
    before = Standing(dict.fromkeys(facts, True), facts, {step.id: 1.0}, (step,))
    rows = [SimpleNamespace(status="edited", fact=fact) for fact in FACTS[:4]]
    rows += [SimpleNamespace(status="already said", fact=FACTS[0])] * 50
    monkeypatch.setattr(one._judge, "holds", lambda asked: [True] * len(asked))

    def costs(lost: int, score: float = 1.0, method: str = "train") -> bool:
        holds = {place: j >= lost for j, place in enumerate(facts)}
        after = replace(before, facts=holds, tasks={step.id: score})
        own = replace(step, decided={**step.decided, "kind": method})
        monkeypatch.setattr(one._maker.standings, "again", lambda _: replace(after, steps=(own,)))
        try:
            one._maker._weigh(SimpleNamespace(rows=rows), replace(before, steps=(own,)), 40)
        except CostlyError:
            return True
        return False

    assert not costs(0)
    assert not costs(1), "one lost fact of a sample tells nothing"
    assert costs(2), "eight facts for four"
    assert step.kept is not None and len(step.kept.examples) > 4
    assert costs(0, score=0.0), "a skill's answers count"
    assert not costs(0, score=0.0, method="edit"), "an edit may change what an edit said"


def test_an_edit_that_costs_nothing_is_kept_and_one_that_is_asked_for_isnt_weighed(
    monkeypatch,
) -> None:
    one = learner(edits=SOUND)
    decides(monkeypatch, FACTS)
    assert learn(one, FACTS, "auto", name="places").kind == "edit"
    other = learner(edits=SOUND)
    monkeypatch.setattr("editcl.learner.making.COSTLY", -1.0)
    assert learn(other, FACTS, "edit", name="places").kind == "edit"


def test_without_a_test_what_was_trained_is_asked_for_again() -> None:
    one = learner()
    outcome = learn(one, replace(TWO, test=()), "train")
    right = one.correct(TWO.train, TWO.labels)
    assert outcome.scores["test"] == sum(right) / len(right)


def test_a_training_is_a_skill_judged_with_and_without_being_told() -> None:
    one = learner()
    outcome = learn(one, TWO, "train")
    (skill,) = one.log.skills
    assert outcome.entries == (skill.id,)
    assert outcome.scores["after"] == one.skills.evaluate(TWO).score
    assert outcome.scores["test"] == sum(one.correct(TWO.test, TWO.labels)) / len(TWO.test)
    said = one.predict([TWO.test[0].prompt], "two")[0]
    assert said.task == "two" and said.text in TWO.labels
    noisy = (*ONE.train, Example(ONE.train[0].prompt, "another answer"))
    assert learn(one, replace(ONE, train=noisy), "train").kind == "train", "noise is borne"


def test_trainings_have_one_epoch_and_no_fewer_steps_than_short_tasks_need() -> None:
    one = learner()
    learn(one, TWO, "train", settings=None)
    training = one.log.skills[0].details["training"]
    assert (training["steps"], training["batch_size"]) == (80, 16)
    assert default_training(1300, seed=3).steps == 82 == -(-1300 // 16)
    assert default_training(1300, seed=3).seed == 3


def test_a_split_edits_the_facts_that_a_task_names_and_trains_the_rest() -> None:
    one = learner(edits=SOUND)
    outcome = learn(one, MIXED, "split")
    edit, skill = one.log.timeline
    assert outcome.kind == "split" and outcome.entries == (edit.id, skill.id)
    assert edit.facts == tuple(OTHER) and skill.details["examples"] == len(TWO.train)
    assert skill.edits == {edit.id: (0,)}, "trained on the edited weights"
    assert all(one.holds(OTHER))
    assert [n.kind for n in one.log.notes] == ["decision", "begin", "done", "evaluation"]


def test_what_is_not_possible_is_refused_and_changes_nothing() -> None:
    one = learner()
    for task, method, message in (
        (TWO, "magic", "no method 'magic'"),
        (FACTS[:1], "train", "training takes two"),
        (FACTS, "split", "can't be split"),
        ([("1", "2"), ("3", "5")], "edit", "states a fact"),
        ([], "edit", "it is empty"),
        ([("a b", "x"), ("a b", "y")], "train", "contradicts itself"),
        (3, "train", "nothing to learn"),
    ):
        with pytest.raises(EditclError, match=message):
            learn(one, task, method)
    assert one.history() == () and len(one.log.timeline) == 0
    learn(one, TWO, "train")
    with pytest.raises(EditclError, match="'two' has been learnt"):
        learn(one, TWO, "train")
    with pytest.raises(LogError, match="no active step is called 'three'"):
        one.rollback("three")
    with pytest.raises(LogError, match="no active step is called 'three'"):
        one.predict(PROMPTS, "three")


def test_the_routers_decision_is_carried_out_and_an_abstention_asks(monkeypatch) -> None:
    one = learner()
    asked = {}

    def decided(_model, made, *, budget, **_options) -> Decision:
        asked["budget"] = budget
        cost = Cost(0.1, None, 1.0)
        if made.name == "noise":
            return Decision("x", "abstain", 0.3, ("What is this?", "it is noise"), {}, cost)
        return Decision("x", "train", 0.9, ("it carries over",), {"gain": 0.5}, cost, (), TWO)

    monkeypatch.setattr("editcl.learner.deciding.route", decided)
    before = bits(one)
    outcome = learn(one, [("a b", "x"), ("c d", "y")], "auto", name="noise", budget="cheap")
    assert outcome.question == "What is this?" and outcome.entries == ()
    assert asked == {"budget": "cheap"} and bits(one) == before
    assert learn(one, FACTS, "auto", name="places").kind == "train"
    noise, places = one.history()
    assert noise.state == "abstained" and not noise.active and noise.task == "noise"
    assert places.decision.signals == {"gain": 0.5} and one.skills.tasks == ("places",)
    assert learn(one, [("a b", "x"), ("c d", "y")], "train", name="noise").kind == "train"


def test_what_the_model_says_already_is_not_edited_but_watched() -> None:
    one = learner()
    (said,) = ask_objects(one.model, ["The owner of Apple is"])
    assert said, "the model says something"
    known = Fact("Apple", "The owner of {} is", said)
    outcome = learn(one, [known], "edit", name="known")
    (step,) = one.history()
    assert outcome.entries == () and step.state == "nothing to change" and step.said == (known,)
    assert learn(one, OTHER, "edit", name="homes").survival.n_facts == 2
    with pytest.raises(LogError, match="changed nothing"):
        one.rollback("known")


# -- taking back ----------------------------------------------------------------------------------


def test_the_middle_step_of_three_goes_as_if_it_had_never_been_learnt() -> None:
    one, twin = learner(), learner()
    base = bits(one)
    learn(one, FACTS, "edit", name="places")
    first = bits(one)
    learn(one, TWO, "train")
    learn(one, OTHER, "edit", name="homes")
    learn(twin, FACTS, "edit", name="places")
    learn(twin, OTHER, "edit", name="homes")
    assert bits(one) != bits(twin)
    one.rollback("two")
    assert bits(one) == bits(twin)
    assert [(s.task, s.state) for s in one.history()] == [
        ("places", "active"), ("two", "rolled back"), ("homes", "active"),
    ]  # fmt: skip
    one.rollback_to("places")
    assert bits(one) == first
    one.rollback("places")
    assert bits(one) == base and not any(step.active for step in one.history())
    assert one.log.verify().ok


def test_an_edit_from_the_middle_leaves_base_weights_and_the_columns_of_the_others() -> None:
    one = learner()
    learn(one, ONE, "train")
    learn(one, FACTS, "edit", name="places")
    both = one.log.active_factors()
    learn(one, OTHER, "edit", name="homes")
    one.rollback("places")
    left = one.log.active_factors()
    assert all(left[n].left.shape[1] == 1 < both[n].left.shape[1] + 1 for n in left)
    twin = fresh()
    updates = [WeightUpdate(n, f.left.float(), f.right.float()) for n, f in left.items()]
    EditLog(twin).append(updates, OTHER, method="memit", layers=[1])
    weights = [bytes(editcl.model.tensor_bytes(p)) for p in twin.hf.parameters()]
    assert bits(one)[-len(weights) :] == weights


def test_a_split_goes_back_as_one_event_and_its_name_is_free_again() -> None:
    one = learner()
    base = bits(one)
    learn(one, MIXED, "split")
    report = one.rollback("mixed")
    assert len(one.log.events) == 1 and len(report.facts) == len(report.skills) == 1
    assert bits(one) == base
    assert learn(one, MIXED, "split").entries == ("e0002", "s0002")


def test_a_skill_that_a_later_one_was_trained_beside_stays_and_so_does_its_edit() -> None:
    one = learner()
    learn(one, MIXED, "split", strategy="olora")
    learn(one, ONE, "train", strategy="olora")
    before = bits(one)
    with pytest.raises(LogError, match="can't go alone"):
        one.rollback("mixed")
    assert bits(one) == before and all(step.active for step in one.history())
    one.rollback_to("start")
    assert bits(one) == bits(learner())


# -- the log --------------------------------------------------------------------------------------


def test_a_log_gives_the_same_logits_and_history_in_a_new_process(tmp_path) -> None:
    one = learner(tmp_path / "log")
    with one.log:
        learn(one, FACTS, "edit", name="places")
        learn(one, MIXED, "split")
        learn(one, ONE, "train")
        one.rollback("mixed")
        digests, history = [hashlib.sha256(b).hexdigest() for b in bits(one)], story(one)
    places = [HERE, HERE.parent, HERE.parent / "editing", HERE.parent / "learning"]
    run = subprocess.run(
        [sys.executable, str(HERE / "reopen.py"), str(tmp_path / "log")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places)), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.splitlines()[-1]) == json.loads(json.dumps([digests, history]))


def test_earlier_tests_come_back_from_the_log_and_are_judged_again(tmp_path) -> None:
    one = learner(tmp_path / "log")
    with one.log:
        first = learn(one, TWO, "train")
    again = learner(tmp_path / "log")
    with again.log:
        outcome = learn(again, FACTS, "edit", name="places")
        test = sum(again.correct(TWO.test, TWO.labels)) / len(TWO.test)
        assert outcome.earlier == {"two": test}
        found = again.evaluate()
        assert found.tasks == {"two": test} and found.survival.n_facts == len(FACTS)
        assert found.survival.before == sum(again._judge.holds_in_weights(FACTS))
        assert found.damage.kl > 0 and 0 <= found.bleed <= 1
        assert again.log.notes[-1].kind == "evaluation"
        assert again.history()[0].evaluations[0]["scores"] == dict(first.scores)


# -- what weakens ---------------------------------------------------------------------------------


def test_facts_that_a_step_undoes_are_reported_and_repaired_on_request() -> None:
    one = learner(edits=SOUND)
    learn(one, FACTS, "edit", name="places")
    undo = [Fact(f.subject, f.prompt + " now", f.old_object, f.new_object) for f in FACTS]
    outcome = learn(one, undo, "edit", name="opposites")
    lost = {str(f) for f, held in zip(FACTS, one.holds(FACTS), strict=True) if not held}
    assert lost, "a positive control: the opposite undid some"
    assert {weak.name for weak in outcome.weakened if weak.what == "fact"} == lost
    assert outcome.survival.kept == len(FACTS) - len(lost)
    one.rollback("opposites")
    again = learn(one, undo, "edit", name="opposites", repair=True)
    held = {str(f) for f, holds in zip(FACTS, one.holds(FACTS), strict=True) if holds}
    assert len(again.entries) == 2 and again.repaired and set(again.repaired) <= held
    one.rollback("opposites")
    assert all(one.holds(FACTS)), "the repair went with its step"


def test_an_update_of_a_fact_is_no_loss_of_it() -> None:
    one = learner(edits=SOUND)
    learn(one, FACTS, "edit", name="places")
    update = [Fact(f.subject, f.prompt, f.old_object, f.new_object) for f in FACTS[:1]]
    outcome = learn(one, update, "edit", name="news")
    assert outcome.survival.before == 2 and str(FACTS[0]) not in repr(outcome.weakened)
    assert one.evaluate().survival.n_facts == len(FACTS)
