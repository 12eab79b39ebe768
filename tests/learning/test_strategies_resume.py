"""What strategies keep survives a kill: a training that was gone on from ends in the same bytes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lessons import QUICK, answered, labelled, session

from editcl.learning.callbacks import Callback
from editcl.learning.checkpoint import Before, Checkpoint
from editcl.learning.strategies import (
    DANN,
    OSF,
    CoLoR,
    Contrastive,
    Control,
    InfLoRA,
    OLoRA,
    Replay,
    combine,
    inflora,
)
from editcl.learning.train import train


class KilledError(Exception):
    pass


class Kill(Callback):
    def on_step(self, step, values) -> None:
        if step == 4:
            raise KilledError


MAKE = {
    "olora": OLoRA,
    "inflora": InfLoRA,
    "osf": OSF,
    "color": CoLoR,
    "contrastive": Contrastive,
    "control": Control,
    "dann": DANN,
    "many": lambda: combine(OSF(), Replay(0.3), Contrastive(), Control(), DANN()),
}
EARLIER = (labelled("one"), answered("two"))
TASK = labelled("three", ("red", "blue"))
SETTINGS = replace(
    QUICK, steps=6, batch_size=3, accumulate=2, patience=3, evaluate_every=2, held_out=0.2
)


@pytest.mark.parametrize("name", MAKE)
def test_a_killed_training_goes_on_as_if_nothing_had_been(tmp_path, name) -> None:
    first, strategy = session(dropout=0.2), MAKE[name]()
    for task in EARLIER:
        train(first, task, strategy, SETTINGS, show=False)
    kept = Before.of(first, strategy)

    def again():
        own, other = session(dropout=0.2), MAKE[name]()
        kept.restore(own, other)
        own.seen[:] = [task.name for task in EARLIER]
        return own, other

    keep = Checkpoint(tmp_path / "run", every=2)
    dead, killed = again()
    with pytest.raises(KilledError):
        train(dead, TASK, killed, SETTINGS, callbacks=[Kill()], checkpoint=keep, show=False)
    unhurt = Before.of(dead, killed)
    assert unhurt.state == kept.state and unhurt.tensors.keys() == kept.tensors.keys()
    assert all(torch.equal(unhurt.tensors[key], t) for key, t in kept.tensors.items())

    own, resumed = again()
    result = train(own, TASK, resumed, SETTINGS, checkpoint=keep, show=False)
    whole = train(first, TASK, strategy, SETTINGS, show=False)
    assert result.losses == whole.losses and result.penalties == whole.penalties
    assert own.adapters.names == first.adapters.names
    for adapter in own.adapters.names:
        mine, theirs = own.adapters.state(adapter), first.adapters.state(adapter)
        assert all(mine[key].numpy().tobytes() == theirs[key].numpy().tobytes() for key in mine)
    mine, theirs = resumed.tensors(), strategy.tensors()
    assert mine.keys() == theirs.keys() and resumed.state() == strategy.state()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert torch.equal(own.generator.get_state(), first.generator.get_state())


def test_inflora_goes_on_with_its_a_where_eigenvectors_come_out_with_other_signs(
    tmp_path, monkeypatch
) -> None:
    whole, own, strategy = session(), session(), InfLoRA()
    train(whole, TASK, InfLoRA(), QUICK, show=False)
    keep = Checkpoint(tmp_path / "run", every=2)
    with pytest.raises(KilledError):
        train(own, TASK, strategy, QUICK, callbacks=[Kill()], checkpoint=keep, show=False)
    plain = inflora.leading

    def other(*given):
        values, vectors = plain(*given)
        return values, -vectors

    monkeypatch.setattr(inflora, "leading", other)
    train(own, TASK, strategy, QUICK, checkpoint=keep, show=False)
    mine, theirs = own.adapters.state("three"), whole.adapters.state("three")
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    assert not any(key.startswith("A/") for key in strategy.tensors())
