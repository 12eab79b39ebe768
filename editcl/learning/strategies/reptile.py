"""reptile: some plain steps, then only a part of the way that they have gone.

    k steps from theta lead to theta~;   theta <- theta + eps (theta~ - theta)      arXiv:1803.02999

The part that successive stretches share adds up, the rest averages out. As there, the optimiser
goes on over the stretches with its state. The last stretch may be shorter. Where early stopping
takes the best parameters back, they are those that were judged, amid a stretch or not.

Memory held: nothing between tasks; during one, a copy of what trains.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, final

from torch import Tensor

from editcl.errors import EditclError
from editcl.learning.parameters import adapted, copies, move
from editcl.learning.session import Session
from editcl.learning.strategies.base import Strategy

if TYPE_CHECKING:
    from editcl.learning.tasks import Task


@final
class Reptile(Strategy):
    """Steps back after each stretch.

    Args:
        rate: eps, the share of the way that is kept.
        inner_steps: k, steps of a stretch.
    """

    name: ClassVar[str] = "reptile"

    def __init__(self, rate: float = 0.5, *, inner_steps: int = 5) -> None:
        if not 0 < rate <= 1:
            raise EditclError(f"the rate of reptile is {rate!r}; give a number in (0, 1].")
        if inner_steps < 1:
            raise EditclError(f"inner_steps is {inner_steps!r}; give at least 1.")
        self.rate, self.inner_steps = rate, inner_steps
        self._slow: dict[str, Tensor] = {}  # theta, while the parameters are on the way to theta~

    def begin(self, session: Session, task: Task) -> None:
        """The first stretch starts."""
        self._slow = copies(adapted(session))

    def before_step(self, session: Session, step: int, total: int) -> None:
        """A resumed copy comes to where the parameters are."""
        move(self._slow, session.training)

    def after_step(self, session: Session, step: int, total: int) -> None:
        """At the end of a stretch, goes back a part of it, and starts the next one there."""
        if (step + 1) % self.inner_steps and step + 1 < total:
            return
        for name, slow in self._slow.items():
            if name in session.training:
                slow.add_(session.training[name] - slow, alpha=self.rate)
                session.training[name].copy_(slow)

    def end(self, session: Session, task: Task) -> None:
        """Drops the copy."""
        self._slow = {}

    def tensors(self) -> dict[str, Tensor]:
        """Where the stretch started, during a task."""
        return dict(self._slow)

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Takes it over."""
        self._slow = dict(tensors)
