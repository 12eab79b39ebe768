"""The whole checklist: what it says of a model with a history, of a bare one, and of bad input."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest
from histories import ASKED, COLOURS, FACTS, KNOWN, TEXTS, WRONG, bare, taught
from lessons import answered

import editcl
from editcl.catalogue import relations
from editcl.errors import EditclError
from editcl.evaluation.compare import weight_checksums
from editcl.facts import Fact
from editcl.learner import Learner
from editcl.learning.drift import Instruction
from editcl.learning.skills import Skills
from editcl.learning.tasks import Example, Task
from editcl.reporting import Report, report
from editcl.reporting.checks import catalogue_facts

QUICK: Mapping[str, Any] = {
    "facts": KNOWN, "texts": TEXTS, "instructions": ASKED, "show": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def learner() -> Learner:
    return taught()


@pytest.fixture(scope="module")
def found(learner: Learner) -> Report:
    return report(learner, [answered("other")], **QUICK)


def test_tasks_are_judged_on_both_sides(found, learner) -> None:
    given, logged = sorted(found.tasks, key=lambda line: line.name, reverse=True)
    assert (logged.name, given.name) == ("colours", "other")
    untouched = Learner(bare())
    for line, task in ((logged, COLOURS), (given, answered("other"))):
        assert line.base == sum(untouched.correct(task.test, task.labels)) / len(task.test)
        assert line.now == sum(learner.correct(task.test, task.labels)) / len(task.test)
        assert line.n == len(task.test)
    told = learner.correct(COLOURS.test, COLOURS.labels, "colours")
    assert logged.told == sum(told) / len(told)
    assert given.told is None and given.how == "not learnt"
    assert logged.how.startswith("train (n")


def test_a_given_task_takes_the_place_of_the_logged_one_of_its_name(learner) -> None:
    harder = replace(COLOURS, test=COLOURS.test[:3])
    (line,) = report(learner, [harder], **QUICK).tasks
    assert line.name == "colours" and line.n == 3


def test_texts_are_judged_by_perplexity_on_both_sides(learner) -> None:
    texts = tuple(Example("", text) for text in TEXTS[:2])
    (_, line) = report(learner, [Task("prose", texts, texts, "text")], **QUICK).tasks
    base = Skills(bare()).evaluate(Task("prose", texts, texts, "text"), None).score
    assert not line.share and line.base == pytest.approx(base, rel=1e-6) and line.base < 0
    assert line.now != line.base, "a positive control: the edits show"


def test_knowledge_counts_what_the_base_knew_and_what_is_left_of_it(learner) -> None:
    untouched = bare()
    right = []
    for fact in KNOWN:  # true by definition: what the base says after a space
        ids = untouched.tokenizer(fact.sentence)["input_ids"]
        spaced = [w for w, i in untouched.tokenizer.get_vocab().items() if w[0] == "Ġ" and w[1:]]
        best = untouched.generate_ids([ids], 1)[0].tolist()
        word = untouched.tokenizer.convert_ids_to_tokens(best)[0]
        right += [replace(fact, new_object=word[1:])] if word in spaced else []
    assert right, "the tiny model says words"
    wrong = Fact("Tower 0", "Of {} we never say", "埃菲尔铁塔")
    one = report(learner, **{**QUICK, "facts": [*right, wrong]}).knowledge
    assert one is not None and (one.n, one.known) == (len(right) + 1, len(right))
    asked = [Example(fact.sentence, fact.new_object) for fact in right]
    still = learner.correct(asked)
    assert one.kept == sum(still) and len(one.lost) == len(right) - one.kept
    assert one.share == one.kept / one.known
    kept = report(bare(), **{**QUICK, "facts": [*right, wrong]}).knowledge
    assert kept is not None and kept.share == 1.0 and kept.lost == ()


def test_edited_relations_are_not_asked_as_knowledge() -> None:
    relation = relations()["capital"]
    edited = [Fact("France", phrasing, "Rome") for phrasing in relation.phrasings[1:2]]
    asked = catalogue_facts(0, edited, 10_000)
    about = {fact.prompt for fact in asked if fact.subject == "France"}
    assert relation.prompt not in about and about, "others of the subject are asked"
    assert relation.prompt in {f.prompt for f in catalogue_facts(0, (), 10_000)}
    assert catalogue_facts(3, (), 5) == catalogue_facts(3, (), 5) != catalogue_facts(4, (), 5)


def test_survival_cost_and_story_are_those_of_the_log(found, learner) -> None:
    log = learner.log
    assert found.survival is not None and found.survival.n_facts == len(FACTS)
    assert [one.id for one in found.spent] == [entry.id for entry in log.timeline]
    for one, entry in zip(found.spent, log.timeline, strict=True):
        assert one.seconds == entry.seconds and one.active == log.active(entry)
    (skill,) = log.skills
    kept = log.skill_tensors(skill).values()
    line = next(one for one in found.spent if one.id == skill.id)
    assert line.numbers == sum(t.numel() for t in kept)
    assert line.n_bytes == sum(t.numel() * t.element_size() for t in kept)
    assert [step.id for step in found.steps] == [step.id for step in learner.history()]
    assert [one.id for one in found.moments] == [one.id for one in log.everything]
    states = {one.id: one.state for one in found.moments if one.state}
    assert sorted(states.values()) == ["active", "active", "rolled back"]
    assert any(one.kind == "rollback" and "e0002" in one.text for one in found.moments)


def test_everything_is_in_the_order_in_which_it_was_written(learner) -> None:
    kinds = [one.kind for one in report(learner, **QUICK).moments]
    assert kinds.index("edit") < kinds.index("skill") < kinds.index("rollback")
    assert kinds[:2] == ["decision", "begin"] and kinds[-1] == "rollback"


def test_notes_are_told_in_words_and_foreign_ones_as_they_are() -> None:
    one = taught()
    one.log.note("remark", {"who": "me", "what": 3})
    told = {(moment.kind, moment.text) for moment in report(one, **QUICK).moments}
    assert {("begin", "n0001: step, 2 facts"), ("done", "n0001: step, e0001")} <= told
    assert ("decision", "facts: edit (confidence 1.00), asked for") in told
    assert ("remark", "who: me, what: 3") in told


def test_reporting_changes_nothing(learner) -> None:
    weights, entries = weight_checksums(learner.model), len(learner.log.everything)
    report(learner, **QUICK)
    assert weight_checksums(learner.model) == weights
    assert len(learner.log.everything) == entries


def test_a_report_is_json_and_reads_well(found) -> None:
    body = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert set(body) >= {
        "tasks", "ability", "knowledge", "drift", "survival", "cost", "decisions", "timeline",
    }  # fmt: skip
    assert [one["kind"] for one in body["decisions"]] == ["edit", "train", "edit"]
    assert body["cost"]["bytes"] == sum(one.n_bytes for one in found.spent)
    text = repr(found)
    for words in ("task colours", "knowledge kept", "edit survival", "KL(base || now)", "cost"):
        assert words in text
    assert all(len(row) == 4 for row in found.rows())
    assert "<script>" not in found._repr_html_()


def test_a_bare_model_is_its_own_base() -> None:
    one = report(bare(), **QUICK)
    assert one.ability is not None and one.ability.kl == 0 and one.ability.increase == 0
    assert one.drift is not None and one.drift.kl == 0 and one.drift.bleed is None
    assert one.survival is None and one.tasks == () and one.spent == () and one.to_skills == 0
    assert one.drift.constraints is not None
    assert one.drift.constraints.before == one.drift.constraints.now == 0.5
    assert one.drift.reference is not None and one.drift.reference.increase == 0


def test_drift_of_a_taught_model_is_seen(found) -> None:
    assert found.drift is not None and found.drift.kl > 1e-4
    assert found.drift.bleed is not None, "the skill has labels"
    assert found.ability is not None and found.ability.kl > 1e-4


def test_a_model_and_its_skills_are_reported_on_like_a_learner_with_defaults(learner) -> None:
    ours = report(learner, **QUICK)
    for other in (learner.model, learner.skills):
        theirs = report(other, **QUICK)
        assert theirs.tasks == ours.tasks and theirs.ability == ours.ability
        assert theirs.drift == ours.drift and theirs.survival == ours.survival


def test_skills_without_a_kept_test_and_prompts_that_do_not_fit_are_named() -> None:
    model = bare()
    skills = Skills(model)
    skills.learn(COLOURS, settings=_steps(2), show=False)
    long = Instruction("word " * 90)
    one = report(model, **{**QUICK, "instructions": (long,), "facts": KNOWN[:1]})
    assert one.drift is None and one.tasks == ()
    assert any("s0001 (colours)" in note for note in one.notes)
    assert any("too long" in note for note in one.notes)
    assert any("knowledge retention is not measured" in note for note in one.notes)
    judged = report(skills, [COLOURS], **QUICK)
    assert judged.tasks[0].told is not None and not any("s0001" in n for n in judged.notes)


@pytest.mark.parametrize(
    ("what", "tasks", "message"),
    [
        ("text", (), "a str can't be reported on"),
        (None, ["tasks.jsonl"], "tasks holds a str"),
        (None, COLOURS, None),
        (None, [replace(COLOURS, test=())], "has no test"),
        (None, [COLOURS, COLOURS], "two of the tasks"),
    ],
)
def test_what_can_not_be_reported_is_said(what, tasks, message) -> None:
    if message is None:
        assert report(bare(), tasks, **QUICK).tasks[0].name == "colours", "one alone is a list"
        return
    with pytest.raises(EditclError, match=message):
        report(what or bare(), tasks, **QUICK)


def test_without_the_extra_its_tasks_are_refused_with_how_to_install_it() -> None:
    if find_spec("lm_eval") is not None:
        pytest.skip("lm-eval is installed here")
    with pytest.raises(EditclError, match=r"pip install 'editcl\[lm-eval\]'"):
        report(bare(), lm_eval=["hellaswag"], **QUICK)


def test_facts_taken_back_are_no_longer_counted(learner) -> None:
    assert not any(str(fact) in repr(report(learner, **QUICK).survival) for fact in WRONG)


def test_on_the_embedded_model_an_edit_survives_and_knowledge_is_kept() -> None:
    model = editcl.load()
    editcl.edit(model, "Canada", "Rome", prompt="The capital of {} is", method="ft-m", layer=2)
    facts = catalogue_facts(0, [], 40)
    one = report(model, facts=facts, instructions=ASKED, show=False)
    assert one.survival is not None and one.survival.share == 1.0 and one.survival.before == 1
    assert one.knowledge is not None and one.knowledge.known >= 36
    assert one.knowledge.share is not None and one.knowledge.share >= 0.9
    assert one.ability is not None and 0 < one.ability.kl < 0.05
    assert one.spent[0].numbers > 0 and one.log.startswith("EditLog")


def _steps(count: int) -> Any:
    from editcl.learning.settings import TrainSettings

    return TrainSettings(steps=count, batch_size=4, autocast="off")
