"""What strategies share that give each task a LoRA of its own beside the frozen ones of old tasks.

    W_t = W + sum_{i<=t} s_i B_i A_i

Predicts with the sum of all, whether the task is known or not. Keeps one LoRA a task, and a forward
pass costs all of them. Knows nothing of what holds the tasks apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from torch import nn

from editcl.errors import EditclError
from editcl.learning.kinds import AdapterSettings
from editcl.learning.session import Route, Session
from editcl.learning.strategies.base import Strategy

if TYPE_CHECKING:
    from editcl.learning.batches import Encoded
    from editcl.learning.lora import Adapters
    from editcl.learning.tasks import Task

_FRONT, _A, _B = "base_model.model.", ".lora_A.", ".lora_B."


class Pair(NamedTuple):
    """The factors of one module's change: A [rank, d_in] and B [d_out, rank]."""

    A: nn.Parameter
    B: nn.Parameter


class Summed(Strategy):
    """Abstract: a new LoRA for each task, the old ones frozen and added."""

    places: ClassVar[bool] = True

    def place(self, session: Session, task: Task) -> None:
        """Adds the task's LoRA, which alone trains.

        Raises:
            EditclError: the adapters of the session are of another kind.
        """
        kind = session.settings.kind
        if kind != "lora":
            raise EditclError(
                f"{self.name} adds up the changes of all tasks, which only LoRA has; the session's "
                f"adapters are {kind}. Use AdapterSettings(kind='lora')."
            )
        session.new_adapter(task.name, self._settings(session.settings))
        session.active = (*earlier(session), task.name)
        session.train_adapter(task.name)

    def _settings(self, settings: AdapterSettings) -> AdapterSettings:
        return settings

    def adapters_for(
        self, session: Session, task_name: str | None, rows: Sequence[Encoded]
    ) -> Route:
        """The sum of all."""
        return Route(earlier(session))


def earlier(session: Session) -> tuple[str, ...]:
    """The adapters of the finished tasks, in order."""
    return tuple(name for name in session.seen if name in session.adapters.names)


def pairs(adapters: Adapters, name: str) -> dict[str, Pair]:
    """The factors of a LoRA, by the paths of the modules that they change."""
    found = adapters.trainable(name)
    return {
        key.removeprefix(_FRONT).partition(_A)[0]: Pair(A, found[key.replace(_A, _B)])
        for key, A in found.items()
        if _A in key
    }


def is_a(key: str) -> bool:
    """Whether a parameter's name is that of an A."""
    return _A in key
