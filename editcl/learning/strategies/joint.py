"""joint: all tasks so far at once, on a fresh adapter. The upper bound of what one adapter can.

    theta_t = train(fresh adapter, data of tasks 1..t)

It is no continual learner: it keeps all rows of all tasks, and the t-th training costs t times the
first one. In return its order of tasks means nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, final

from torch import Tensor

from editcl.learning.memory import from_tensors, to_tensors
from editcl.learning.session import Session
from editcl.learning.strategies.base import SHARED, Strategy

if TYPE_CHECKING:
    from editcl.learning.batches import Encoded
    from editcl.learning.tasks import Task


@final
class Joint(Strategy):
    """Keeps every row and starts anew with each task."""

    name: ClassVar[str] = "joint"
    places: ClassVar[bool] = True

    def __init__(self) -> None:
        self._rows: list[Encoded] = []

    def place(self, session: Session, task: Task) -> None:
        """Replaces the shared adapter by a fresh one."""
        session.new_adapter(SHARED)
        session.active = (SHARED,)
        session.train_adapter(SHARED)

    def dataset(self, session: Session, task: Task, rows: list[Encoded]) -> list[Encoded]:
        """The rows of all tasks."""
        return [*self._rows, *rows]

    def end(self, session: Session, task: Task) -> None:
        """Keeps them."""
        self._rows = list(session.data)

    def tensors(self) -> dict[str, Tensor]:
        """The rows."""
        return to_tensors(self._rows)[0]

    def state(self) -> dict[str, Any]:
        """The names of the tasks."""
        return to_tensors(self._rows)[1]

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Puts rows together again."""
        self._rows = from_tensors(tensors, state)
