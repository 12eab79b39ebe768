"""sequential: one shared adapter, trained on from task to task. The lower bound.

    theta_t = train(theta_{t-1}, data of task t)

Keeps nothing between tasks but the adapter.
"""

from __future__ import annotations

from typing import ClassVar, final

from editcl.learning.strategies.base import Strategy


@final
class Sequential(Strategy):
    """The loop without additions; every hook is the default."""

    name: ClassVar[str] = "sequential"
