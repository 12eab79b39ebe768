"""Transactions: what fails or dies half-way leaves everything as before."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from pupils import CHEAP, FACTS, MIXED, bits, learn, learner, story

import editcl
from editcl.editing.values import ValueSettings
from editcl.errors import LogError
from editcl.learner import Learner
from editcl.learner.transaction import KILLED
from editcl.learning.skills import Skills
from editcl.log import EditLog


@pytest.mark.parametrize("error", [RuntimeError("no more memory"), KeyboardInterrupt()])
def test_a_failure_in_the_second_half_of_a_split_leaves_everything_as_before(
    error, monkeypatch
) -> None:
    one = learner()
    learn(one, FACTS, "edit", name="places")
    before, history = bits(one), story(one)

    def fail(*_args: Any, **_options: Any) -> None:
        assert len(one.log.entries) == 2, "a positive control: the first half was done"
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Skills, "learn", fail)
        with pytest.raises(type(error)):
            learn(one, MIXED, "split")
    assert bits(one) == before and story(one)[:1] == history
    assert one.history()[1].state == "undone" and one.log.notes[-1].kind == "undone"
    assert learn(one, MIXED, "split").entries == ("e0003", "s0001")


def test_a_failure_that_can_not_be_rolled_back_is_told_with_what_is_left(monkeypatch) -> None:
    one = learner()

    def fail(*_args: Any, **_options: Any) -> None:
        raise RuntimeError("no more memory")

    def full(*_args: Any, **_options: Any) -> None:
        raise LogError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Skills, "learn", fail)
        patch.setattr(EditLog, "rollback", full)
        with pytest.raises(LogError, match=r"no more memory.*e0001.*the disk is full"):
            learn(one, MIXED, "split")
    assert one.history()[0].state == "unfinished"
    again = Learner(one.model, edits=CHEAP)
    assert bits(again) == bits(learner()) and again.history()[0].state == "undone"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("trained", [False, True])
def test_a_process_killed_within_a_split_leaves_everything_as_before(
    trained, tmp_path, monkeypatch
) -> None:
    one = learner(tmp_path / "log")
    with one.log:
        learn(one, FACTS, "edit", name="places")
        before, history = bits(one), story(one)
    train = Skills.learn

    def die(*args: Any, **options: Any) -> None:
        if trained:
            train(*args, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(Skills, "learn", die)
    child = os.fork()
    if child == 0:
        learn(learner(tmp_path / "log"), MIXED, "split")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    monkeypatch.undo()
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    again = learner(tmp_path / "log")
    with again.log as log:
        left = ["e0002", "s0001"] if trained else ["e0002"]
        assert log.notes[-1].body["entries"] == left, "a positive control: it had got so far"
        assert log.notes[-1].body["why"] == KILLED
        assert bits(again) == before and story(again)[:1] == history
        assert again.history()[1].state == "undone"
        count = len(log.notes)
        assert len(Learner(again.model, edits=CHEAP).log.notes) == count, "once is enough"
        assert learn(again, MIXED, "split").task == "mixed"


def test_what_somebody_put_into_the_log_after_a_death_is_left_alone(monkeypatch) -> None:
    one = learner()

    def die(*_args: Any, **_options: Any) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:  # as if there were no time to undo anything
        patch.setattr("editcl.learner.transaction._undo", die)
        patch.setattr(Skills, "learn", die)
        with pytest.raises(SystemExit):
            learn(one, MIXED, "split")
    quick = ValueSettings(steps=2, scale="absolute")
    editcl.edit_csv(one.model, FACTS, layers=[1], settings=quick, contexts=[""], guard=None)
    mine, theirs = one.log.entries
    again = Learner(one.model, edits=CHEAP)
    assert not again.log.active(mine) and again.log.active(theirs)
