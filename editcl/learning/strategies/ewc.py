"""ewc: parameters that the finished tasks need are held; the others are free.

    loss + lambda/2 sum_i F_i (theta_i - theta*_i)^2                     arXiv:1612.00796
    F_i = mean over examples of (d log p(completion | prompt) / d theta_i)^2

F is the diagonal of the empirical Fisher information, of the true completions, at theta*: where
training on the task has ended, from that task's rows alone, each example's gradient squared on its
own (a batch's mean gradient squared is another quantity), and of the likelihood alone, without this
penalty. Several tasks:

    summed   a term for each finished task. Their sum is one such term, and a constant K:
             F = sum_t F_t, theta* = sum_t F_t theta*_t / F, K = sum_t F_t (theta*_t - theta*)^2
    online   F <- decay F + F_t, theta* <- theta*_t                      arXiv:1805.06370

It needs parameters that are trained on from task to task: a shared adapter.

Memory held: twice the adapter (F and theta*), however many tasks there were.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from editcl.errors import EditclError
from editcl.learning.fisher import squared_gradients
from editcl.learning.parameters import adapted, move, positive
from editcl.learning.session import Session, StepOutput
from editcl.learning.strategies.base import Strategy

if TYPE_CHECKING:
    from editcl.learning.tasks import Task


@final
class EWC(Strategy):
    """Holds parameters by their importance for finished tasks.

    Args:
        strength: lambda.
        keeps: "summed" or "online".
        decay: of the importance for earlier tasks, with "online".
        examples: of a finished task, from which its importance is computed; drawn if it has more.
    """

    name: ClassVar[str] = "ewc"

    def __init__(
        self,
        strength: float = 100.0,
        *,
        keeps: Literal["summed", "online"] = "summed",
        decay: float = 0.9,
        examples: int = 200,
    ) -> None:
        if keeps not in ("summed", "online"):
            raise EditclError(f"ewc can't keep {keeps!r}; choose 'summed' or 'online'.")
        if not 0 <= decay <= 1:
            raise EditclError(f"the decay of ewc is {decay!r}; give a number in [0, 1].")
        if examples < 1:
            raise EditclError(f"ewc needs examples, not {examples!r}; give at least 1.")
        self.strength = positive("the strength of ewc", strength)
        self.keeps, self.decay, self.n_examples = keeps, decay, examples
        self._importance: dict[str, Tensor] = {}  # F
        self._centre: dict[str, Tensor] = {}  # theta*
        self._constant = torch.zeros(())  # K

    def begin(self, session: Session, task: Task) -> None:
        """Checks that something is held.

        Raises:
            EditclError: the adapters in training are others than those of the finished tasks.
        """
        if self._importance and not self._importance.keys() & adapted(session).keys():
            raise EditclError(
                f"ewc has nothing to hold: {', '.join(session.active)} did not train in an earlier "
                "task. Leave it out, or combine it with a strategy that trains one adapter on."
            )

    def before_step(self, session: Session, step: int, total: int) -> None:
        """Resumed tensors come to where the parameters are."""
        move(self._importance, session.training)
        move(self._centre, session.training)

    def penalty(self, session: Session, output: StepOutput) -> Mapping[str, Tensor]:
        """From the second task on."""
        terms = [
            (self._importance[name] * (parameter - self._centre[name]).square()).sum()
            for name, parameter in session.training.items()
            if name in self._importance
        ]
        if not terms:
            return {}
        constant = self._constant.to(terms[0].device)
        return {self.name: 0.5 * self.strength * (torch.stack(terms).sum() + constant)}

    def end(self, session: Session, task: Task) -> None:
        """Computes the importance for the task, and adds it."""
        session.mark_training()  # a schedule may have left some frozen
        rows = [row for row in session.data if row.task == task.name]
        if len(rows) > self.n_examples:
            order = torch.randperm(len(rows), generator=session.generator)
            rows = [rows[i] for i in order[: self.n_examples].tolist()]
        parameters = adapted(session)
        found = squared_gradients(session, rows, parameters)
        if self.keeps == "online":
            self._importance = {n: self.decay * f for n, f in self._importance.items()}
        for name, squares in found.items():
            value = parameters[name].detach().float()
            self._add(name, squares / len(rows), value)

    def _add(
        self, name: str, importance: Float[Tensor, "*shape"], value: Float[Tensor, "*shape"]
    ) -> None:
        """F_t and theta*_t of one parameter join those of the tasks before."""
        before = self._importance.get(name, torch.zeros_like(importance)).to(value.device)
        total = before + importance
        self._importance[name] = total
        if self.keeps == "online" or name not in self._centre:
            self._centre[name] = value.clone()
            return
        gap = value - self._centre[name].to(value.device)
        share = torch.where(total > 0, importance / total, 0.0)
        self._constant = self._constant + (before * share * gap.square()).sum().cpu()
        self._centre[name] = value - (1 - share) * gap

    def tensors(self) -> dict[str, Tensor]:
        """F, theta* and K."""
        if not self._importance:
            return {}
        found = {f"importance/{name}": tensor for name, tensor in self._importance.items()}
        found |= {f"centre/{name}": tensor for name, tensor in self._centre.items()}
        return found | {"constant": self._constant}

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Takes them over."""
        parts: dict[str, dict[str, Tensor]] = {"importance": {}, "centre": {}}
        for name, tensor in tensors.items():
            part, _, own = name.partition("/")
            if own:
                parts[part][own] = tensor
        self._importance, self._centre = parts["importance"], parts["centre"]
        self._constant = tensors.get("constant", torch.zeros(()))
