"""l1sp: most parameters stay exactly what they were when the task began; a few move.

    after each step   theta <- theta_{t-1} + soft(theta - theta_{t-1}, lr lambda)
    soft(d, tau) = sign(d) max(|d| - tau, 0)

the proximal step of lambda sum_i |theta_i - theta_{t-1,i}| (the L1 form of L2-SP,
arXiv:1802.01483). A gradient of |d| never gives exact zeros; this does. Departure: the threshold is
not scaled by Adam's step sizes, as its weight decay isn't. Adam moves a parameter by about lr, so
that lambda is a share of such a step: at 1 hardly anything moves.

Memory held: nothing between tasks; during one, a copy of what trains, made anew from the adapter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, final

from jaxtyping import Float
from torch import Tensor

from editcl.learning.parameters import adapted, copies, positive
from editcl.learning.session import Session
from editcl.learning.strategies.base import Strategy

if TYPE_CHECKING:
    from editcl.learning.tasks import Task


@final
class L1SP(Strategy):
    """Soft threshold on the change of every parameter.

    Args:
        strength: lambda.
    """

    name: ClassVar[str] = "l1sp"

    def __init__(self, strength: float = 0.1) -> None:
        self.strength = positive("the strength of l1sp", strength)
        self._start: dict[str, Tensor] = {}

    def begin(self, session: Session, task: Task) -> None:
        """Copies the parameters."""
        self._start = copies(adapted(session))

    def after_step(self, session: Session, step: int, total: int) -> None:
        """The proximal step."""
        for name, start in self._start.items():
            if name in session.training:
                parameter = session.training[name]
                parameter.copy_(start + soft(parameter - start, session.lr * self.strength))

    def end(self, session: Session, task: Task) -> None:
        """Drops the copy: the next task starts from elsewhere."""
        self._start = {}


def soft(change: Float[Tensor, "*shape"], threshold: float) -> Float[Tensor, "*shape"]:
    """Each number nearer to 0 by the threshold; exactly 0 within it."""
    return change.sign() * (change.abs() - threshold).clamp_min(0)
