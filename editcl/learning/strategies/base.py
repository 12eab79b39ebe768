"""Strategy: what may differ between ways of learning one task after another.

A strategy adds examples to the data or to a batch, terms to the loss, constraints to gradients or
parameters, or a schedule; each is a hook that does nothing by default. In the order in which the
loop of `editcl.learning.train` calls them:

    place      which adapters there are, which are active and which parameters train
    dataset    the rows that the task is learnt from
    begin      what the task needs from the state before it (old parameters, projections)
    around     a context from the first step to the last, and at prediction
      before_step   schedules: which parameters train now
      examples      the rows of a batch
      penalty       named terms, added to the loss
      after_backward   constraints on gradients, before they are clipped
      after_step    constraints on parameters
    end        what is kept of the task: importance, memory, prototypes

Everything that a strategy keeps between tasks, and between steps, goes through `tensors` and
`state`: a resumed training gets it from there. Knows nothing of the loop's own affairs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from editcl.errors import EditclError
from editcl.learning.session import Route, Session, StepOutput

if TYPE_CHECKING:
    from collections.abc import Iterator

    from editcl.learning.batches import Encoded
    from editcl.learning.tasks import Task

SHARED = "shared"  # the adapter that strategies without a place of their own train on


class Strategy:
    """Abstract base; concrete strategies are final, one small file each.

    A strategy with `places` chooses adapters in `place` and `adapters_for`; the others leave that
    to the default, one shared adapter that is trained on, and so combine with any that does. One
    that `must_be_told` the task can't choose adapters for prompts of which the task is not known.
    """

    name: ClassVar[str]
    places: ClassVar[bool] = False
    must_be_told: ClassVar[bool] = False

    # -- before the first step --------------------------------------------------------------------

    def place(self, session: Session, task: Task) -> None:
        """Makes or chooses adapters; sets `session.active` and fills `session.training`.

        Both are empty when it is called; the bank is as it was after the task before.
        """
        if SHARED not in session.adapters.names:
            session.new_adapter(SHARED)
        session.active = (SHARED,)
        session.train_adapter(SHARED)

    def dataset(self, session: Session, task: Task, rows: list[Encoded]) -> list[Encoded]:
        """The rows to learn from; `rows` are the task's own."""
        return rows

    def begin(self, session: Session, task: Task) -> None:
        """Called once adapters and `session.data` stand; may still take from `session.training`.

        Must depend on nothing but session, task and the strategy's own state, so that a resumed
        training can call it again.
        """

    def around(self, session: Session) -> AbstractContextManager[None]:
        """A context around all steps, held-out evaluation and prediction (hooks in the model)."""
        return nullcontext()

    # -- in each step -----------------------------------------------------------------------------

    def before_step(self, session: Session, step: int, total: int) -> None:
        """May set `requires_grad` of parameters in `session.training`, by step alone."""

    def examples(self, session: Session, batch: list[Encoded], step: int) -> list[Encoded]:
        """The rows to train on; `batch` holds those of the data."""
        return batch

    def penalty(self, session: Session, output: StepOutput) -> Mapping[str, Tensor]:
        """Scalars by name, added to the loss; may run forward passes of its own.

        A batch may come in parts: what each gives is weighted by its share of the targets.
        """
        return {}

    def after_backward(self, session: Session) -> None:
        """May change the gradients of `session.training` (None where a parameter has none)."""

    def after_step(self, session: Session, step: int, total: int) -> None:
        """May change parameters, without gradients; `session.lr` is the step's learning rate.

        Args:
            session: its parameters are those after the optimiser's step.
            step: from 0.
            total: how many steps there are if training isn't stopped early.
        """

    # -- after the last step ----------------------------------------------------------------------

    def end(self, session: Session, task: Task) -> None:
        """Keeps what later tasks need; `session.data` still holds the rows."""

    def adapters_for(
        self, session: Session, task_name: str | None, rows: Sequence[Encoded]
    ) -> Route:
        """Which adapters predict.

        Args:
            session: with the bank.
            task_name: None where the task is not known; not for one that `must_be_told`.
            rows: what is asked: of each, only the tokens before `start` may be looked at.
        """
        return Route((SHARED,) if SHARED in session.adapters.names else ())

    # -- what is kept -----------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that it keeps, on any device."""
        return {}

    def state(self) -> dict[str, Any]:
        """What else it keeps, as JSON."""
        return {}

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Takes over what `tensors` and `state` gave, as copies on the CPU."""

    def settings(self) -> dict[str, Any]:
        """Its hyperparameters, as JSON: public attributes that are plain values."""
        plain = (str, int, float, bool, tuple, list, type(None))
        found = vars(self).items()
        return {key: v for key, v in found if key[0] != "_" and isinstance(v, plain)}

    def measured(self) -> dict[str, Any]:
        """What it has found out about its own effect, as JSON."""
        return {}

    def memory(self) -> int:
        """Bytes that it holds between tasks, adapters aside."""
        held = sum(tensor.numel() * tensor.element_size() for tensor in self.tensors().values())
        state = self.state()
        return held + (len(json.dumps(state)) if state else 0)


class _Combined(Strategy):
    """Several strategies at once: each hook of each, in order. Made by `combine`."""

    name: ClassVar[str] = "combined"
    places: ClassVar[bool] = True

    def __init__(self, parts: Sequence[Strategy]) -> None:
        placing = [part.name for part in parts if part.places]
        if len(placing) > 1:
            raise EditclError(
                f"{' and '.join(placing)} each choose the adapters of a task: combine at most one "
                "such strategy with others."
            )
        if not parts:
            raise EditclError("there is nothing to combine; give at least one strategy.")
        self.parts = tuple(parts)
        self._placing = next((part for part in parts if part.places), parts[0])

    @property
    def must_be_told(self) -> bool:  # type: ignore[override]  # its parts' say
        return self._placing.must_be_told

    def place(self, session: Session, task: Task) -> None:
        self._placing.place(session, task)

    def dataset(self, session: Session, task: Task, rows: list[Encoded]) -> list[Encoded]:
        for part in self.parts:
            rows = part.dataset(session, task, rows)
        return rows

    def begin(self, session: Session, task: Task) -> None:
        for part in self.parts:
            part.begin(session, task)

    @contextmanager
    def around(self, session: Session) -> Iterator[None]:
        with ExitStack() as stack:
            for part in self.parts:
                stack.enter_context(part.around(session))
            yield

    def before_step(self, session: Session, step: int, total: int) -> None:
        for part in self.parts:
            part.before_step(session, step, total)

    def examples(self, session: Session, batch: list[Encoded], step: int) -> list[Encoded]:
        for part in self.parts:
            batch = part.examples(session, batch, step)
        return batch

    def penalty(self, session: Session, output: StepOutput) -> Mapping[str, Tensor]:
        found: dict[str, Tensor] = {}
        for part in self.parts:
            for name, term in part.penalty(session, output).items():
                found[name if name not in found else f"{name}.{len(found)}"] = term
        return found

    def after_backward(self, session: Session) -> None:
        for part in self.parts:
            part.after_backward(session)

    def after_step(self, session: Session, step: int, total: int) -> None:
        for part in self.parts:
            part.after_step(session, step, total)

    def end(self, session: Session, task: Task) -> None:
        for part in self.parts:
            part.end(session, task)

    def adapters_for(
        self, session: Session, task_name: str | None, rows: Sequence[Encoded]
    ) -> Route:
        return self._placing.adapters_for(session, task_name, rows)

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"{i}.{name}": tensor
            for i, part in enumerate(self.parts)
            for name, tensor in part.tensors().items()
        }

    def state(self) -> dict[str, Any]:
        return {str(i): part.state() for i, part in enumerate(self.parts)}

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        for i, part in enumerate(self.parts):
            found, own = tensors.items(), f"{i}."
            mine = {name.removeprefix(own): t for name, t in found if name.startswith(own)}
            part.load(mine, state[str(i)])

    def settings(self) -> dict[str, Any]:
        return {title(part): part.settings() for part in self.parts}

    def measured(self) -> dict[str, Any]:
        return {title(part): found for part in self.parts if (found := part.measured())}

    def memory(self) -> int:
        return sum(part.memory() for part in self.parts)


def combine(*strategies: Strategy) -> Strategy:
    """One strategy that does what each does.

    At most one may choose the adapters (`places`); without one, all train a shared adapter.

    Raises:
        EditclError: two choose them, or none is given.
    """
    return strategies[0] if len(strategies) == 1 else _Combined(strategies)


def title(strategy: Strategy) -> str:
    """How a strategy is called in logs and tables: "ewc", "olora + replay"."""
    if isinstance(strategy, _Combined):
        return " + ".join(title(part) for part in strategy.parts)
    return strategy.name
