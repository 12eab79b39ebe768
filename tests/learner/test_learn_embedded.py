"""Learner on the embedded model: what is said where nobody tells which skill is asked for."""

from __future__ import annotations

from dataclasses import replace

from pupils import learn

import editcl
from editcl.evaluation import catalogue_cases
from editcl.learner import Learner
from editcl.learning.settings import TrainSettings
from editcl.learning.shipped import shipped_stream
from editcl.learning.tasks import Example


def test_facts_outlast_a_skill_where_nobody_tells_which_is_asked_for() -> None:
    model = editcl.load()
    one = Learner(model)
    facts = [case.fact for case in catalogue_cases(5)]
    assert not any(one.holds(facts))
    learn(one, facts, "edit", name="five")
    (cards, *_) = shipped_stream()
    small = replace(cards, test=cards.test[:45])
    quick = TrainSettings(steps=80, batch_size=8, lr=1.5e-3, autocast="off")
    outcome = learn(one, small, "train", settings=quick)
    assert all(one.holds(facts)) and outcome.survival.share == 1.0 and not outcome.weakened
    assert all(one.correct([Example(f.sentence, f.new_object) for f in facts]))
    assert sum(one.correct(small.test)) >= 0.95 * len(small.test)
    assert sum(one.correct(small.test, task="five")) == 0, "told otherwise, the base is asked"
    said = one.predict([small.test[0].prompt, facts[0].sentence])
    assert [answer.task for answer in said] == ["cards", None]
    assert said[0].text == small.test[0].completion
    one.rollback("cards")
    assert sum(one.correct(small.test)) == 0 and all(one.holds(facts))
