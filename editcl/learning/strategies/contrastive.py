"""contrastive: a task's pooled states are drawn to its own prototype and away from old tasks'.

    z = h / ||h||,  h the mean state of a row's prompt
    loss + lambda mean_rows -log( exp(z.p_own / tau) / sum_i exp(z.p_i / tau) )

InfoNCE (van den Oord et al. 2018, arXiv:1807.03748) with the prototype of the row's own task as the
positive, whichever its place in the list; replayed rows are drawn to theirs. Prototypes are the
normalised means of z: the current task's follows the training as a moving average, old ones stay
what they were at the end of their tasks. Memory: one vector a task.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from editcl.errors import EditclError
from editcl.learning.batches import visible
from editcl.learning.memory import reservoir
from editcl.learning.session import Route, Session, StepOutput
from editcl.learning.strategies.base import Strategy
from editcl.learning.strategies.pooled import pooled_prompts

if TYPE_CHECKING:
    from editcl.learning.tasks import Task

SAMPLES = 256  # rows of a task that its prototype is taken from


@final
class Contrastive(Strategy):
    """Holds the tasks' states apart.

    Args:
        weight: lambda.
        temperature: tau.
        momentum: how much of the current task's prototype stays in each step.
    """

    name: ClassVar[str] = "contrastive"

    def __init__(
        self, weight: float = 0.1, *, temperature: float = 0.1, momentum: float = 0.9
    ) -> None:
        for what, value, top in (
            ("weight", weight, float("inf")),
            ("temperature", temperature, float("inf")),
            ("momentum", momentum, 1.0),
        ):
            if not 0 < value < top:
                raise EditclError(f"a {what} of {value!r} can't be; give one in (0, {top}).")
        self.weight, self.temperature, self.momentum = weight, temperature, momentum
        self._prototypes: dict[str, Tensor] = {}
        self._step: list[Tensor] = []  # states of the step's rows of the current task

    def begin(self, session: Session, task: Task) -> None:
        """The task's prototype before it is learnt."""
        self._step = []
        self._prototypes[task.name] = self._prototype(session, task)

    def penalty(self, session: Session, output: StepOutput) -> Mapping[str, Tensor]:
        """Nothing while there is one prototype alone."""
        assert session.task is not None, "no task is being learnt"
        z = normalize(pooled_prompts(output, session.task.kind), dim=1)
        names = list(self._prototypes)
        rows = output.batch.rows
        own = [i for i, row in enumerate(rows) if row.task == session.task.name]
        self._step.append(z[own].detach())
        known = [i for i, row in enumerate(rows) if row.task in self._prototypes]
        if len(names) < 2 or not known:
            return {}
        P = torch.stack(list(self._prototypes.values())).to(z)
        places = torch.tensor([names.index(rows[i].task) for i in known], device=z.device)
        return {self.name: self.weight * info_nce(z[known], P, places, self.temperature)}

    def after_step(self, session: Session, step: int, total: int) -> None:
        """Moves the task's prototype."""
        assert session.task is not None, "no task is being learnt"
        states, self._step = torch.cat(self._step), []
        if len(states):
            old = self._prototypes[session.task.name].to(states)
            moved = self.momentum * old + (1 - self.momentum) * states.mean(0)
            self._prototypes[session.task.name] = normalize(moved, dim=0)

    def end(self, session: Session, task: Task) -> None:
        """The task's prototype as later tasks find it."""
        self._prototypes[task.name] = self._prototype(session, task)

    def _prototype(self, session: Session, task: Task) -> Float[Tensor, " d_model"]:
        rows = [row for row in session.data if row.task == task.name]
        rows = reservoir([], 0, rows, SAMPLES, generator=session.generator)
        features = session.features(visible(rows, task.kind), route=Route(session.active))
        return normalize(normalize(features, dim=1).mean(0), dim=0)

    def tensors(self) -> dict[str, Tensor]:
        """The prototypes, in the order of tasks."""
        found = list(self._prototypes.values())
        return {"prototypes": torch.stack([p.cpu() for p in found])} if found else {}

    def state(self) -> dict[str, Any]:
        """Whose they are."""
        return {"tasks": list(self._prototypes)}

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Takes them over."""
        self._prototypes = dict(zip(state["tasks"], tensors.get("prototypes", ()), strict=True))


def info_nce(
    z: Float[Tensor, "n_rows d_model"],
    P: Float[Tensor, "n_tasks d_model"],
    own: Tensor,
    temperature: float,
) -> Float[Tensor, ""]:
    """The mean over rows of -log softmax(z P^T / tau) at the row's own prototype."""
    return cross_entropy(z @ P.T / temperature, own)
