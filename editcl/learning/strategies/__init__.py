"""The strategies by name, each in a small file; `combine` makes one of several."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from editcl.learning.strategies.base import Strategy, combine, title
from editcl.learning.strategies.joint import Joint
from editcl.learning.strategies.per_task import PerTask
from editcl.learning.strategies.replay import InstructionReplay, Replay, own_answers
from editcl.learning.strategies.sequential import Sequential

#: What can be made without arguments.
STRATEGIES: Mapping[str, Callable[[], Strategy]] = MappingProxyType(
    {
        "sequential": Sequential,
        "per_task": PerTask,
        "joint": Joint,
        "replay": Replay,
        "replay_quota": partial(Replay, keeps="quota"),
    }
)

__all__ = [
    "STRATEGIES",
    "InstructionReplay",
    "Joint",
    "PerTask",
    "Replay",
    "Sequential",
    "Strategy",
    "combine",
    "own_answers",
    "title",
]
