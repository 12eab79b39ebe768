"""per_task: one adapter for each task, named after it; the task must be known at prediction.

    theta_t = train(fresh adapter, data of task t), theta_i unchanged for i < t

Nothing is forgotten, by construction: backward transfer is zero, and so is forward transfer. Keeps
one adapter a task and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, final

from editcl.errors import EditclError
from editcl.learning.session import Route, Session
from editcl.learning.strategies.base import Strategy

if TYPE_CHECKING:
    from editcl.learning.batches import Encoded
    from editcl.learning.tasks import Task


@final
class PerTask(Strategy):
    """A fresh adapter for each task; one that isn't learnt yet is predicted by the base model."""

    name: ClassVar[str] = "per_task"
    places: ClassVar[bool] = True
    must_be_told: ClassVar[bool] = True

    def place(self, session: Session, task: Task) -> None:
        """Adds the task's adapter."""
        session.new_adapter(task.name)
        session.active = (task.name,)
        session.train_adapter(task.name)

    def adapters_for(
        self, session: Session, task_name: str | None, rows: Sequence[Encoded]
    ) -> Route:
        """The task's own adapter.

        Raises:
            EditclError: the task is not told.
        """
        if task_name is None:
            raise EditclError(
                "adapters by task can't tell which task a prompt belongs to: name the task, or "
                "use a strategy that infers it, such as color."
            )
        return Route((task_name,) if task_name in session.seen else ())
