"""Exactness of learning: logits after a rollback, adapters of killed and resumed trainings.

Compares bytes. Knows nothing of quality and speed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from editcl.architecture import twin
from editcl.benchmarks.learn_speed import fresh_session, second_task
from editcl.errors import EditclError
from editcl.learning.callbacks import Callback
from editcl.learning.checkpoint import Checkpoint
from editcl.learning.runs import encode_rows
from editcl.learning.session import Session
from editcl.learning.settings import TrainSettings
from editcl.learning.skills import Skills
from editcl.learning.strategies import STRATEGIES, Strategy
from editcl.learning.tasks import Task
from editcl.learning.train import train
from editcl.loading import wrap
from editcl.model import EditableModel, tensor_bytes

CHECK_STEPS = 6  # of trainings of which only the bytes count
KILLED_AT = (0, 2, 5)  # before the first checkpoint, after it, at the last step


def rollback_exact(
    model: EditableModel,
    stream: Sequence[Task],
    strategy: str,
    settings: TrainSettings,
    *,
    seed: int,
) -> bool:
    """Whether taking back each task, the last first, gives the logits' bytes from before it.

    Works on a twin, which shares the weights and has a log of its own. The logits are those of the
    base and of every adapter on the first prompts of the first task.
    """
    own = replace(settings, steps=CHECK_STEPS, patience=None, seed=seed)
    on = wrap(twin(model.hf), model.tokenizer, name=model.name)
    skills = Skills(on)
    inputs = on.pad([row.ids for row in encode_rows(on, stream[0])[:8]])
    before = []
    for task in stream:
        before.append(_logits(skills, inputs))
        skills.learn(task, strategy, settings=own, seed=seed, show=False)
        if _logits(skills, inputs) == before[-1]:
            raise EditclError(f"{strategy} learnt nothing of {task.name!r}: nothing to take back.")
    held = []
    for task, then in zip(reversed(stream), reversed(before), strict=True):
        skills.rollback(task.name)
        held.append(_logits(skills, inputs) == then)
    return all(held)


def _logits(skills: Skills, inputs: Mapping[str, Tensor]) -> dict[str, bytes]:
    """Bytes of the logits of the base ("") and through each adapter."""
    bank = skills.adapters
    found = {}
    for name in ("", *bank.names):
        with torch.no_grad(), bank.using((name,) if name else ()):
            found[name] = bank.logits(inputs).float().cpu().numpy().tobytes()
    return found


class _KilledError(Exception):
    """What ends a training in the middle."""


class _Kill(Callback):
    """Ends a training after a step."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step(self, step: int, values: Mapping[str, float]) -> None:
        """At the step."""
        if step == self._step:
            raise _KilledError


def resume_exact(
    model: EditableModel,
    stream: Sequence[Task],
    strategy: str,
    settings: TrainSettings,
    *,
    seed: int,
) -> bool:
    """Whether a training that dies at several steps ends with the bytes of one that doesn't.

    It is the training of the second task, with dropout, so that the random state counts. Whoever
    goes on has a session and a strategy that know of nothing, as in a new process.
    """
    own = replace(settings, steps=CHECK_STEPS, patience=None, seed=seed)
    make = STRATEGIES[strategy]
    whole, one = fresh_session(model, seed, dropout=0.1), make()
    second_task(whole, (stream[0], stream[1]), one, own)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Checkpoint(Path(folder), every=2)
        session, other = fresh_session(model, seed, dropout=0.1), make()
        train(session, stream[0], other, replace(own, steps=1), show=False)
        for step in KILLED_AT:
            try:
                train(
                    session,
                    stream[1],
                    other,
                    own,
                    callbacks=[_Kill(step)],
                    checkpoint=checkpoint,
                    show=False,
                )
            except _KilledError:
                session, other = fresh_session(model, seed, dropout=0.1), make()
                session.seen.append(stream[0].name)
        train(session, stream[1], other, own, checkpoint=checkpoint, show=False)
    return _bytes(session, other) == _bytes(whole, one)


def _bytes(session: Session, strategy: Strategy) -> dict[str, bytes]:
    """Of all adapters, and of what the strategy keeps."""
    bank = session.adapters
    tensors = {f"{name}/{key}": t for name in bank.names for key, t in bank.state(name).items()}
    tensors |= {f" strategy/{name}": tensor for name, tensor in strategy.tensors().items()}
    return {name: bytes(tensor_bytes(tensor)) for name, tensor in tensors.items()}
