"""color: one LoRA for each task; at prediction the task is that of the nearest centroid.

    h(x) = mean state of the prompt's tokens in the frozen base model
    task(x) = task of argmin_c ||h(x) - c||      over k centroids (k-means) of each task's h

Wistuba et al. 2023, "Continual learning with low rank adaptation" (CoLoR), arXiv:2311.17601.
Nothing is forgotten but by a wrong choice of the task. Centroids are of the base model as edited
when the task was learnt. Memory: k centroids a task; one forward pass of the base for a prediction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from editcl.errors import EditclError
from editcl.learning.batches import visible
from editcl.learning.lora import BASE
from editcl.learning.session import Route, Session
from editcl.learning.strategies.base import Strategy

if TYPE_CHECKING:
    from editcl.learning.batches import Encoded
    from editcl.learning.tasks import Task

ROUNDS = 100  # of k-means, at most


@final
class CoLoR(Strategy):
    """A fresh adapter for each task, and centroids to find it by.

    Args:
        centroids: of each task.
        abstain: prompts go to the base model if they are farther from the nearest centroid than so
            many times the farthest of the training prompts that belong to it; None: never.
    """

    name: ClassVar[str] = "color"
    places: ClassVar[bool] = True

    def __init__(self, centroids: int = 5, *, abstain: float | None = None) -> None:
        if centroids < 1:
            raise EditclError(f"{centroids} centroids tell no task; give at least 1.")
        if abstain is not None and not abstain > 0:
            raise EditclError(f"a distance of {abstain!r} abstains always; give > 0 or None.")
        self.centroids, self.abstain = centroids, abstain
        self._tasks: list[str] = []
        self._centroids = torch.zeros(0, 0)
        self._owner = torch.zeros(0, dtype=torch.long)
        self._radius = torch.zeros(0)

    def place(self, session: Session, task: Task) -> None:
        """Adds the task's adapter."""
        session.new_adapter(task.name)
        session.active = (task.name,)
        session.train_adapter(task.name)

    def end(self, session: Session, task: Task) -> None:
        """Finds the task's centroids."""
        own = [row for row in session.data if row.task == task.name]
        features = session.features(visible(own, task.kind))
        found = kmeans(features, self.centroids, generator=session.generator)
        distance, nearest = torch.cdist(features, found).min(1)
        radius = torch.zeros(len(found)).scatter_reduce(0, nearest, distance, "amax")
        owner = torch.full((len(found),), len(self._tasks))
        self._centroids = torch.cat([self._centroids.reshape(-1, found.shape[1]), found])
        self._owner = torch.cat([self._owner, owner])
        self._radius = torch.cat([self._radius, radius])
        self._tasks.append(task.name)

    def adapters_for(
        self, session: Session, task_name: str | None, rows: Sequence[Encoded]
    ) -> Route:
        """The task's own adapter, or for each row that of the nearest centroid's."""
        if task_name is not None:
            return Route((task_name,) if task_name in session.seen else ())
        if not self._tasks or not rows:
            return Route()
        distance, nearest = self.nearest(session, rows)
        names = [self._tasks[i] for i in self._owner[nearest].tolist()]
        if self.abstain is not None:
            far = (distance > self.abstain * self._radius[nearest]).tolist()
            names = [BASE if out else name for name, out in zip(names, far, strict=True)]
        return Route(rows=tuple(names))

    def nearest(
        self, session: Session, rows: Sequence[Encoded]
    ) -> tuple[Float[Tensor, " n_rows"], Int[Tensor, " n_rows"]]:
        """The distance of each row to its nearest centroid, and which that is."""
        found = torch.cdist(session.features(rows), self._centroids).min(1)
        return found.values, found.indices

    def tensors(self) -> dict[str, Tensor]:
        """The centroids."""
        if not self._tasks:
            return {}
        return {"centroids": self._centroids, "owner": self._owner, "radius": self._radius}

    def state(self) -> dict[str, Any]:
        """Whose they are."""
        return {"tasks": list(self._tasks)}

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Takes them over."""
        self._tasks = list(state["tasks"])
        self._centroids = tensors.get("centroids", torch.zeros(0, 0))
        self._owner = tensors.get("owner", torch.zeros(0, dtype=torch.long))
        self._radius = tensors.get("radius", torch.zeros(0))


def kmeans(
    points: Float[Tensor, "n d"], k: int, *, generator: torch.Generator
) -> Float[Tensor, "k d"]:
    """Centroids by Lloyd's rounds from a k-means++ start; fewer than k of fewer distinct points."""
    X = points.double()
    first = int(torch.randint(len(X), (1,), generator=generator))
    C = X[[first]]
    while len(C) < k:
        away = torch.cdist(X, C).min(1).values.square()
        # Rounding leaves equal points a hair apart.
        away = torch.where(away > 1e-12 * X.square().sum(1).max(), away, 0)
        if not bool(away.any()):
            break
        C = torch.cat([C, X[torch.multinomial(away, 1, generator=generator)]])
    before = None
    for _ in range(ROUNDS):
        nearest = torch.cdist(X, C).argmin(1)
        if before is not None and bool((nearest == before).all()):
            break
        before = nearest
        sums = torch.zeros_like(C).index_add(0, nearest, X)
        counts = torch.bincount(nearest, minlength=len(C))[:, None]
        C = torch.where(counts > 0, sums / counts.clamp(min=1), C)
    return C.float()
