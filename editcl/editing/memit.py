"""MEMIT: many facts over several layers, by least squares (arXiv:2210.07229, eq. 14).

    U = (lambda C + sum_g mean_j k_gj k_gj^T)^-1 K,   Delta_l = U R^T

K holds the subjects' mean keys, j runs over their contexts (every context's key is asked, not the
mean alone, as in rome.py), R the residual left for layer l. Two departures from the authors' code:
facts of one subject are merged (batch.py), and lambda is free of scale,

    lambda = preservation * median_g k_g^T C^-1 k_g,

so that a single fact is met up to 1 / (1 + preservation) on any model, whatever the batch; theirs
is 15,000 to 20,000, which suppresses every edit of a small model. Solved in float64 by Cholesky.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from editcl.editing.batch import SubjectKeys, spread
from editcl.editing.covariance import Covariance
from editcl.editing.plan import Plan, Solution
from editcl.facts import Fact
from editcl.model import EditableModel


def least_squares(
    covariance: Covariance, keys: SubjectKeys, preservation: float
) -> Float[Tensor, "d_mlp n_subjects"]:
    """U [d_mlp, n_subjects] of the equation above."""
    means = keys.means
    mass = (means * covariance.solve(means)).sum(0).median()
    system = preservation * mass * covariance.moment.double() + keys.moment
    return solve_spd(system, means)


def solve_spd(
    system: Float[Tensor, "d d"], right: Float[Tensor, "d n_columns"]
) -> Float[Tensor, "d n_columns"]:
    """system^-1 right, for a symmetric positive semi-definite matrix, in float64.

    A ridge of 1e-9 of the mean diagonal guards against units that never fire.
    """
    system = system.double()
    ridge = 1e-9 * system.diagonal().mean() * torch.eye(len(system), device=system.device)
    return torch.cholesky_solve(right.double(), torch.linalg.cholesky(system + ridge))


def memit(model: EditableModel, facts: Sequence[Fact], plan: Plan) -> Solution:
    """MEMIT with the plan's layers; the residual is divided evenly over what is left of them."""

    def directions(layer: int, keys: SubjectKeys) -> Tensor:
        return least_squares(plan.covariances[layer], keys, plan.preservation)

    return spread(model, facts, plan, directions)
