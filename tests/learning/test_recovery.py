"""Ten examples bring back what was misaddressed, and leave the session as it was."""

from __future__ import annotations

import pytest
import streams
import torch

from editcl.errors import EditclError
from editcl.learning.kinds import AdapterSettings
from editcl.learning.lora import Adapters
from editcl.learning.recovery import _few, recovery
from editcl.learning.session import Session
from editcl.learning.settings import TrainSettings
from editcl.learning.strategies import Sequential
from editcl.learning.strategies.base import SHARED
from editcl.learning.tasks import Example, Task
from editcl.learning.train import train
from editcl.model import EditableModel

SETTINGS = TrainSettings(steps=20, batch_size=6, lr=3e-2, autocast="off")


@pytest.fixture
def session(model: EditableModel) -> Session:
    """Has learnt a task and then its contradiction."""
    found = Session(model, Adapters(model), settings=AdapterSettings(rank=4))
    strategy = Sequential()
    for task in streams.conflicting():
        train(found, task, strategy, SETTINGS, show=False)
    return found


def test_a_forgotten_task_comes_back(session: Session) -> None:
    before = session.adapters.state(SHARED)
    task = streams.conflicting()[0]
    found = recovery(session, task, (SHARED,), SETTINGS)
    # Not exactly none and all: the last bits of a training differ between processors.
    assert found.now <= 0.2 and found.recovered >= 0.8
    assert found.n_examples == 6 and 0 <= found.fresh <= 1
    assert found.spurious == found.recovered - found.fresh
    after = session.adapters.state(SHARED)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert session.seen == ["first", "second"]


def test_every_label_has_an_example_even_if_labels_are_many() -> None:
    labels = tuple(f"label {i}" for i in range(14))
    rows = tuple(Example(f"text {i}", labels[min(i, 13)]) for i in range(200))
    task = Task("many", rows, (), "classification")
    drawn = _few(task, 10, seed=0)
    assert {example.completion for example in drawn} == set(labels) and len(drawn) == 14
    assert _few(task, 10, seed=0) == drawn != _few(task, 10, seed=1)
    assert len(_few(task, 20, seed=0)) == 20


def test_what_cannot_recover_is_said(session: Session) -> None:
    task = streams.conflicting()[0]
    with pytest.raises(EditclError, match="no adapter is named"):
        recovery(session, task, ())
    with pytest.raises(EditclError, match="too few"):
        recovery(session, task, (SHARED,), n_examples=1)
