"""Checkpoints: a training that was killed at any step ends in the bytes of one that was not."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from lessons import QUICK, answered, labelled, session

from editcl.errors import EditclError
from editcl.learning.callbacks import Callback
from editcl.learning.checkpoint import Before, Checkpoint
from editcl.learning.strategies import InstructionReplay, PerTask, Replay, Sequential, combine
from editcl.learning.tasks import Example
from editcl.learning.train import train


class KilledError(Exception):
    pass


class Kill(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, step, values) -> None:
        if step == self.step:
            raise KilledError


POOL = [Example(f"Hello {i}, who are you?", f"I am {i}") for i in range(5)]
MAKE = {
    "sequential": Sequential,
    "per_task": PerTask,
    "replay": lambda: combine(
        Replay(0.3, capacity=7), InstructionReplay(POOL, 0.15), Replay(0.2, keeps="quota")
    ),
}
EARLIER = (labelled("one"), answered("two"))
TASK = labelled("three", ("red", "blue"))
SETTINGS = replace(
    QUICK, steps=7, batch_size=3, accumulate=2, patience=3, evaluate_every=2, held_out=0.2
)


@cache
def before_third_task(name: str) -> Before:
    own, strategy = session(dropout=0.2), MAKE[name]()
    for task in EARLIER:
        train(own, task, strategy, SETTINGS, show=False)
    return Before.of(own, strategy)


def at_third_task(name: str):
    """What a new process finds: a bank with the tasks before, and the strategy's memory of them."""
    own, strategy = session(dropout=0.2), MAKE[name]()
    before_third_task(name).restore(own, strategy)
    own.seen[:] = [task.name for task in EARLIER]
    return own, strategy


@cache
def uninterrupted(name: str):
    own, strategy = at_third_task(name)
    return own, strategy, train(own, TASK, strategy, SETTINGS, show=False)


def ends_alike(own, strategy, other, strategy_other) -> None:
    assert own.adapters.names == other.adapters.names
    for name in own.adapters.names:
        mine, theirs = own.adapters.state(name), other.adapters.state(name)
        assert all(mine[key].numpy().tobytes() == theirs[key].numpy().tobytes() for key in mine)
    mine, theirs = strategy.tensors(), strategy_other.tensors()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert strategy.state() == strategy_other.state()
    assert torch.equal(own.generator.get_state(), other.generator.get_state())


@pytest.mark.parametrize("name, every, kill_at", [
    *[("replay", 1, step) for step in range(7)],
    *[("replay", 2, step) for step in (0, 1, 4)],
    *[("sequential", 2, 3), ("per_task", 3, 5)],
])  # fmt: skip
def test_a_killed_training_goes_on_as_if_nothing_had_been(tmp_path, name, every, kill_at) -> None:
    whole, strategy, expected = uninterrupted(name)
    keep = Checkpoint(tmp_path / "run", every=every)
    dead, killed = at_third_task(name)
    with pytest.raises(KilledError):
        train(dead, TASK, killed, SETTINGS, callbacks=[Kill(kill_at)], checkpoint=keep, show=False)
    again, resumed = at_third_task(name)
    told = []

    class Told(Callback):
        def on_start(self, info) -> None:
            told.append(info["step"])

    result = train(again, TASK, resumed, SETTINGS, callbacks=[Told()], checkpoint=keep, show=False)
    assert told == [kill_at // every * every]
    ends_alike(again, resumed, whole, strategy)
    assert result.losses == expected.losses and result.held_out == expected.held_out
    assert result.penalties == expected.penalties and result.best == expected.best
    assert not keep.folder.exists()


def test_a_killed_process_is_gone_on_from_by_another(tmp_path) -> None:
    script = Path(__file__).with_name("die_in_training.py")
    folder = tmp_path / "run"
    done = subprocess.run([sys.executable, script, folder, "3"], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (folder / "at.checkpoint").exists()
    again, whole = session(dropout=0.2), session(dropout=0.2)
    arguments = (labelled("one"), Sequential(), QUICK)
    train(again, *arguments, checkpoint=Checkpoint(folder, every=1), show=False)
    train(whole, *arguments, show=False)
    ends_alike(again, Sequential(), whole, Sequential())


def test_it_goes_on_even_where_the_bank_was_lost(tmp_path) -> None:
    whole, strategy, _ = uninterrupted("replay")
    keep = Checkpoint(tmp_path / "run", every=2)
    dead, killed = at_third_task("replay")
    with pytest.raises(KilledError):
        train(dead, TASK, killed, SETTINGS, callbacks=[Kill(4)], checkpoint=keep, show=False)
    empty, fresh = session(dropout=0.2), MAKE["replay"]()
    empty.seen[:] = [task.name for task in EARLIER]
    train(empty, TASK, fresh, SETTINGS, checkpoint=keep, show=False)
    ends_alike(empty, fresh, whole, strategy)


def test_a_checkpoint_changes_nothing(tmp_path) -> None:
    plain, strategy, _ = uninterrupted("replay")
    kept, other = at_third_task("replay")
    train(kept, TASK, other, SETTINGS, checkpoint=Checkpoint(tmp_path, every=1), show=False)
    ends_alike(kept, other, plain, strategy)


@pytest.mark.parametrize("change, what", [
    ({"settings": replace(SETTINGS, lr=0.5)}, "settings differs"),
    ({"task": labelled("three", ("green", "blue"))}, "task differs"),
    ({"strategy": PerTask()}, "strategy differs"),
    ({"edit": True}, "model differs"),
])  # fmt: skip
def test_the_checkpoint_of_another_training_is_refused(tmp_path, change, what) -> None:
    keep = Checkpoint(tmp_path / "run", every=1)
    with pytest.raises(KilledError):
        train(
            session(), TASK, Sequential(), SETTINGS, callbacks=[Kill(2)], checkpoint=keep,
            show=False,
        )  # fmt: skip
    own = session()
    if "edit" in change:
        with torch.no_grad():
            own.model.down_projection(0).weight[0, 0] += 1
    task, settings = change.get("task", TASK), change.get("settings", SETTINGS)
    with pytest.raises(EditclError, match=f"of another training: {what}"):
        train(
            own, task, change.get("strategy", Sequential()), settings, checkpoint=keep, show=False
        )
    assert own.adapters.names == () and keep.folder.exists()


@pytest.mark.parametrize("part", ["at", "before"])
def test_a_damaged_checkpoint_is_told(tmp_path, part) -> None:
    keep = Checkpoint(tmp_path / "run", every=1)
    arguments = (TASK, Sequential(), SETTINGS)
    with pytest.raises(KilledError):
        train(session(), *arguments, callbacks=[Kill(2)], checkpoint=keep, show=False)
    path = keep.folder / f"{part}.checkpoint"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    own = session()
    with pytest.raises(EditclError, match="is damaged"):
        train(own, *arguments, checkpoint=keep, show=False)
    assert own.adapters.names == ()


def test_a_half_written_checkpoint_is_as_if_it_were_not_there(tmp_path) -> None:
    keep = Checkpoint(tmp_path / "run", every=2)
    with pytest.raises(KilledError):
        train(
            session(), TASK, Sequential(), SETTINGS, callbacks=[Kill(3)], checkpoint=keep,
            show=False,
        )  # fmt: skip
    (keep.folder / "at.1.tmp").write_bytes(b"half")
    own, whole = session(), session()
    train(own, TASK, Sequential(), SETTINGS, checkpoint=keep, show=False)
    train(whole, TASK, Sequential(), SETTINGS, show=False)
    ends_alike(own, Sequential(), whole, Sequential())
    assert not keep.folder.exists()


def test_checkpoints_come_every_so_many_steps() -> None:
    with pytest.raises(EditclError, match="every 0 steps"):
        Checkpoint("x", every=0)
