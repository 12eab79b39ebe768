"""What holds for every strategy in the list: it learns, resumes, combines, tells its memory."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from lessons import QUICK, answered, labelled, session
from torch import Tensor, nn

from editcl.learning.batches import Encoded
from editcl.learning.callbacks import Callback
from editcl.learning.checkpoint import Before, Checkpoint
from editcl.learning.predict import score_with
from editcl.learning.strategies import STRATEGIES, combine
from editcl.learning.strategies.replay import Replay
from editcl.learning.texts import Texts
from editcl.learning.train import train
from editcl.model import tensor_bytes

FIRST, SECOND = answered("one"), labelled("two", ("red", "blue"))
SETTINGS = replace(
    QUICK, steps=6, batch_size=3, accumulate=2, patience=3, evaluate_every=2, held_out=0.2
)


class KilledError(Exception):
    pass


class Kill(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, step, values) -> None:
        if step == self.step:
            raise KilledError


def base_bytes(own) -> dict[str, bytes]:
    return {name: tensor_bytes(p) for name, p in own.model.hf.named_parameters()}


def bits(own) -> dict[str, dict[str, bytes]]:
    bank = own.adapters
    return {n: {k: tensor_bytes(t) for k, t in bank.state(n).items()} for n in bank.names}


@cache
def learnt(name: str) -> dict[str, Any]:
    """Two tasks without an interruption, and what was after the first."""
    own, strategy = session(dropout=0.2), STRATEGIES[name]()
    base = base_bytes(own)
    train(own, FIRST, strategy, SETTINGS, show=False)
    between = Before.of(own, strategy)
    after_first = bits(own)
    result = train(own, SECOND, strategy, SETTINGS, show=False)
    return {
        "own": own, "strategy": strategy, "base": base, "between": between,
        "first": after_first, "result": result,
    }  # fmt: skip


every = pytest.mark.parametrize("name", STRATEGIES)


@every
def test_it_learns_two_tasks_and_the_base_keeps_its_bytes(name) -> None:
    found = learnt(name)
    own, result = found["own"], found["result"]
    assert own.seen == ["one", "two"] and own.adapters.active == () and own.training == {}
    assert all(torch.isfinite(torch.tensor(result.losses)))
    assert bits(own) != found["first"], "the second task has changed no adapter"
    assert base_bytes(own) == found["base"]
    assert not any(module._forward_hooks for module in own.model.hf.modules())
    for task in (FIRST, SECOND):
        assert -1e9 < score_with(own, found["strategy"], task).log_prob < 0


@every
def test_killed_and_gone_on_it_ends_in_the_same_bytes(tmp_path, name) -> None:
    found = learnt(name)
    keep = Checkpoint(tmp_path / "run", every=3)

    def at_second():
        own, strategy = session(dropout=0.2), STRATEGIES[name]()
        found["between"].restore(own, strategy)
        own.seen[:] = ["one"]
        return own, strategy

    dead, killed = at_second()
    with pytest.raises(KilledError):
        train(dead, SECOND, killed, SETTINGS, callbacks=[Kill(4)], checkpoint=keep, show=False)
    assert bits(dead) == found["first"], "a failed training has left a trace"
    again, resumed = at_second()
    result = train(again, SECOND, resumed, SETTINGS, checkpoint=keep, show=False)
    assert result.losses == found["result"].losses
    assert result.penalties == found["result"].penalties
    assert bits(again) == bits(found["own"])
    mine, theirs = resumed.tensors(), found["strategy"].tensors()
    assert mine.keys() == theirs.keys()
    assert all(mine[key].cpu().equal(theirs[key].cpu()) for key in mine)
    assert resumed.state() == found["strategy"].state()
    assert torch.equal(again.generator.get_state(), found["own"].generator.get_state())


@every
def test_it_combines_with_replay(name) -> None:
    mixed = combine(STRATEGIES[name](), Replay(0.5))
    own, settings = session(), replace(QUICK, steps=2)
    first = train(own, FIRST, mixed, settings, show=False)
    second = train(own, SECOND, mixed, settings, show=False)
    added = second.examples - first.examples
    assert added >= 4, "half a row more for each of two batches of four"
    again = combine(STRATEGIES[name](), Replay(0.5))
    again.load(mixed.tensors(), mixed.state())
    assert again.memory() == mixed.memory() > 0


def held(value: Any) -> int:
    """Bytes of tensors, rows and texts that can be reached from an object; names are state."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, nn.Module):
        return sum(map(held, value.state_dict().values()))
    if isinstance(value, Encoded):
        return 4 * len(value.ids) + 12
    if isinstance(value, Texts):
        return sum(len(text.encode()) for text in value._texts) + held(value.rows)
    if isinstance(value, dict):
        return sum(map(held, value.values()))
    if isinstance(value, list | tuple | set):
        return sum(map(held, value))
    if type(value).__module__.startswith("editcl"):
        return sum(map(held, vars(value).values()))
    return 0


@every
def test_the_memory_that_it_tells_is_what_it_holds(name) -> None:
    strategy = learnt(name)["strategy"]
    state = strategy.state()
    assert strategy.memory() == held(strategy) + (len(json.dumps(state)) if state else 0)
