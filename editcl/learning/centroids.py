"""Centroids of a task's prompts, and how far a prompt may be from them to be one of its own.

    h(x) = mean state of the prompt's tokens in the base model
    radius of a centroid = max(its farthest training prompt,
                               max over training prompts of the distance to their next neighbour)

The first is CoLoR's (`strategies.color`). The second is a departure: of a task of a few prompts
each centroid is one of them, at distance 0, and every new prompt would be too far. Knows nothing of
logs, adapters and which tasks are active.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from editcl.learning.batches import visible
from editcl.learning.memory import reservoir
from editcl.learning.runs import encode_rows
from editcl.learning.session import Session
from editcl.learning.strategies.color import kmeans
from editcl.learning.tasks import Task

N_CENTROIDS = 5
SAMPLED = 512  # rows of a task that its centroids are taken from


def centroids_of(
    session: Session, task: Task
) -> tuple[Float[Tensor, "n_centroids d_model"], Float[Tensor, " n_centroids"]]:
    """Centroids and radii of the base model's states of a sample of the task's prompts."""
    rows = encode_rows(session.model, task)
    rows = reservoir([], 0, rows, SAMPLED, generator=session.generator)
    features = session.features(visible(rows, task.kind))
    found = kmeans(features, N_CENTROIDS, generator=session.generator)
    return found, radii(features, found)


def radii(
    features: Float[Tensor, "n_rows d_model"], centroids: Float[Tensor, "n_centroids d_model"]
) -> Float[Tensor, " n_centroids"]:
    """For each centroid how far prompts of the task are from it; 0 if there is one prompt."""
    distance, nearest = torch.cdist(features, centroids).min(1)
    own = torch.zeros(len(centroids)).scatter_reduce(0, nearest, distance, "amax")
    if len(features) < 2:
        return own
    apart = torch.cdist(features, features).fill_diagonal_(torch.inf)
    return own.clamp(min=float(apart.min(1).values.max()))
