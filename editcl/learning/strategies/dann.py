"""dann: a classifier tells tasks apart by pooled states; the adapter learns to keep it from it.

    x = layer_norm(h),  h the mean state of a row's prompt
    loss + lambda CE(C x, task of the row);    the gradient reaches x times -s
    s = 2 / (1 + exp(-10 p)) - 1,  p the share of steps that are made

Ganin et al. 2016, "Domain-adversarial training of neural networks", arXiv:1505.07818, with tasks as
domains. Prompts of old tasks are kept, without what is to be learnt, and as many as a batch has new
rows go through the model beside it.

Departure: C is linear and fitted anew to each batch, by ridge logistic regression, instead of
trained by the optimiser that trains the adapter. Such a C is outrun: the states leave the side
where it looks for them faster than it turns, and tasks are easier to tell apart than without it.

How well tasks can be told apart is asked before and after each: a linear probe is fitted on one
half of the rows and judged on the other. On the shipped stream, whose tasks are worded each in its
own way, the probe is always right at weights from 0.1 to 100: no adapter hid the wording.

Memory: at most `capacity` prompts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, layer_norm, one_hot

from editcl.errors import EditclError
from editcl.learning.batches import Encoded, visible
from editcl.learning.memory import from_tensors, quota, reservoir, to_tensors
from editcl.learning.session import Route, Session, StepOutput
from editcl.learning.strategies.base import Strategy
from editcl.learning.strategies.pooled import pooled_prompts

if TYPE_CHECKING:
    from editcl.learning.tasks import Task

PROBED = 200  # rows of the new task that the probe sees
RIDGE = 1.0  # of the probe, in units of a row
WEAKNESS = 0.1  # ridge of the adversary, against a mean loss of normalised states
ROUNDS = 50  # of its fit


@final
class DANN(Strategy):
    """Makes tasks look alike.

    Args:
        weight: lambda.
        capacity: the most prompts of old tasks that are kept, equally many of each.
    """

    name: ClassVar[str] = "dann"

    def __init__(self, weight: float = 0.1, *, capacity: int = 500) -> None:
        if not weight > 0:
            raise EditclError(f"a weight of {weight!r} reverses nothing; give > 0.")
        if capacity < 1:
            raise EditclError(f"a memory of {capacity} prompts keeps nothing; give at least 1.")
        self.weight, self.capacity = weight, capacity
        self._prompts: list[Encoded] = []
        self._probes: dict[str, list[float]] = {}
        self._domains: list[str] = []
        self._probed: list[Encoded] = []
        self._reversal = 0.0

    @property
    def probes(self) -> Mapping[str, tuple[float, float]]:
        """For each task from the second on, the probe's balanced accuracy before and after it."""
        found = self._probes.items()
        return MappingProxyType({task: (p[0], p[1]) for task, p in found if len(p) == 2})

    def measured(self) -> dict[str, Any]:
        """`probes`, each [before, after]."""
        return {"probes": {task: list(found) for task, found in self.probes.items()}}

    def begin(self, session: Session, task: Task) -> None:
        """Lets the probe judge."""
        old = list(dict.fromkeys(row.task for row in self._prompts))
        self._domains = [*old, task.name]
        own = reservoir([], 0, _prompts(session, task), PROBED, generator=session.generator)
        self._probed = [*self._prompts, *own]
        if old:
            self._probes[task.name] = [self._probe(session)]

    def before_step(self, session: Session, step: int, total: int) -> None:
        """How strongly the gradient is reversed."""
        self._reversal = 2 / (1 + math.exp(-10 * step / total)) - 1

    def penalty(self, session: Session, output: StepOutput) -> Mapping[str, Tensor]:
        """The classifier's loss; nothing in the first task."""
        if not self._prompts:
            return {}
        assert session.task is not None, "no task is being learnt"
        rows = output.batch.rows
        known = [i for i, row in enumerate(rows) if row.task in self._domains]
        n_new = sum(row.task == session.task.name for row in rows)
        drawn = torch.randint(len(self._prompts), (n_new,), generator=session.generator)
        old = [self._prompts[i] for i in drawn.tolist()]
        states = pooled_prompts(output, session.task.kind)[known]
        if old:
            beside = session.forward(old, dropout=True).pooled(prompt_only=True)
            states = torch.cat([states, beside])
        names = [row.task for row in (*(rows[i] for i in known), *old)]
        if not names:
            return {}
        places = torch.tensor([self._domains.index(name) for name in names], device=states.device)
        x = _normal(states)
        C, b = adversary(x.detach(), places, len(self._domains))
        x = reversed_gradient(x, self._reversal)
        return {self.name: self.weight * cross_entropy(x @ C.T + b, places)}

    def end(self, session: Session, task: Task) -> None:
        """Lets the probe judge again, and keeps prompts."""
        if task.name in self._probes:
            self._probes[task.name].append(self._probe(session))
        prompts = _prompts(session, task)
        self._prompts = quota(self._prompts, prompts, self.capacity, generator=session.generator)
        self._probed = []

    def _probe(self, session: Session) -> float:
        features = session.features(self._probed, route=Route(session.active))
        places = [self._domains.index(row.task) for row in self._probed]
        return probe_accuracy(_normal(features), torch.tensor(places))

    def tensors(self) -> dict[str, Tensor]:
        """The prompts."""
        return to_tensors(self._prompts)[0]

    def state(self) -> dict[str, Any]:
        """The names of their tasks, and what the probe said before and after each."""
        return to_tensors(self._prompts)[1] | {"probes": {k: [*v] for k, v in self._probes.items()}}

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Puts the prompts together again."""
        self._prompts = from_tensors(tensors, state)
        self._probes = {task: list(found) for task, found in state["probes"].items()}


def reversed_gradient(x: Float[Tensor, "n d"], strength: float) -> Float[Tensor, "n d"]:
    """x, whose gradient is turned round and scaled."""
    return x.detach() - strength * (x - x.detach())


def adversary(
    x: Float[Tensor, "n d"], places: Int[Tensor, " n"], n_classes: int
) -> tuple[Float[Tensor, "n_classes d"], Float[Tensor, " n_classes"]]:
    """The linear classifier with the least cross-entropy and ridge, classes weighted alike.

    The Hessian is at most half the weighted covariance (Boehning 1992, "Multinomial logistic
    regression algorithm"), so that steps with that bound go down without a search.
    """
    # A ridge solution lies in the span of the rows, which are fewer than dimensions.
    U, S, Vh = torch.linalg.svd(x.cpu().double(), full_matrices=False)
    Z = torch.cat([U * S, torch.ones(len(x), 1).double()], dim=1)
    Y = one_hot(places.cpu(), n_classes).double()
    weights = Y @ (1 / Y.sum(0).clamp(min=1)) / int((Y.sum(0) > 0).sum())
    ridge = WEAKNESS * torch.eye(Z.shape[1]).double()
    L = torch.linalg.cholesky((Z * weights[:, None]).T @ Z / 2 + ridge)
    C = torch.zeros(n_classes, Z.shape[1]).double()
    for _ in range(ROUNDS):
        wrong = ((Z @ C.T).softmax(1) - Y) * weights[:, None]
        C = C - torch.cholesky_solve(Z.T @ wrong + ridge @ C.T, L).T
    return (C[:, :-1] @ Vh).to(x), C[:, -1].to(x)


def probe_accuracy(X: Float[Tensor, "n d"], places: Int[Tensor, " n"]) -> float:
    """The mean over classes of a ridge classifier's accuracy on every second row of each class.

    It is fitted on the other rows; a class of one row counts as wrong.
    """
    n_classes = int(places.max()) + 1
    parity = torch.zeros(len(X), dtype=torch.bool)
    for c in range(n_classes):
        parity[(places == c).nonzero()[1::2, 0]] = True
    fit, judged = X[~parity].double(), X[parity].double()
    mean = fit.mean(0)
    fit, judged = fit - mean, judged - mean
    Y = one_hot(places[~parity], n_classes).double()
    Y = Y / Y.sum(0) - 1 / len(Y)  # each class has the same weight
    K = fit @ fit.T
    scale = K.diagonal().mean().clamp(min=1e-12)
    scores = judged @ fit.T @ torch.linalg.solve(K + RIDGE * scale * torch.eye(len(K)).double(), Y)
    right = (scores.argmax(1) == places[parity]).double()
    counts = torch.bincount(places[parity], minlength=n_classes)
    hits = torch.zeros(n_classes).double().index_add(0, places[parity], right)
    return float((hits / counts.clamp(min=1)).mean())


def _normal(states: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    return layer_norm(states.float(), states.shape[1:])


def _prompts(session: Session, task: Task) -> list[Encoded]:
    """What may be looked at of the task's own rows, as rows without targets."""
    own: Sequence[Encoded] = [row for row in session.data if row.task == task.name]
    seen = visible(own, task.kind)
    return [Encoded(row.ids[: row.start], row.start, row.task) for row in seen]
