"""MEMIT: many facts over several layers, by least squares (arXiv:2210.07229, eq. 14).

    U = (lambda C + sum_g mean_j k_gj k_gj^T)^-1 K,   Delta_l = U R^T

K holds the subjects' mean keys, j runs over their contexts (every context's key is asked, not the
mean alone, as in rome.py), R what is left for layer l. Departures from the authors' code:

- facts of one subject are merged, and the layers left are solved for together (batch.py), with

      A_m = lambda C_m + sum_g (mean_j k_gjm k_gjm^T - k_gm k_gm^T)

  as each one's metric: what the model knows, and what a subject's keys differ by. At one layer
  this is the equation above. `published` divides the residual evenly instead.
- keys of earlier edits' subjects are asked for no change, as AlphaEdit does: A_m has their moments
  sum_e mean_j k_ejm k_ejm^T too. Least squares then goes on recursively, and batch after batch
  comes near to what one batch of all the facts would have given; without it later batches write
  over earlier ones;
- lambda is free of scale, preservation * median_g sum_m k_gm^T C_m^-1 k_gm, so that a single fact
  is met up to 1 / (1 + preservation) on any model, whatever the batch; theirs is 15,000 to 20,000,
  which suppresses every edit of a small model.

Solved in float64 by Cholesky.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from editcl.editing.batch import SubjectKeys, earlier_moments, held_facts, look_ahead, spread
from editcl.editing.covariance import Covariance
from editcl.editing.plan import Plan, Solution
from editcl.facts import Fact
from editcl.model import EditableModel


def preserving(
    covariances: Mapping[int, Covariance],
    keys: Mapping[int, SubjectKeys],
    preservation: float,
    earlier: Mapping[int, Tensor] = MappingProxyType({}),
) -> dict[int, Tensor]:
    """A^-1 K [d_mlp, n_subjects] of each layer, A as above."""
    means = {layer: own.means for layer, own in keys.items()}
    weight = preservation * _mass(covariances, means)
    found = {}
    for layer, k in means.items():
        moment = weight * covariances[layer].moment.double() + keys[layer].moment
        if layer in earlier:
            moment += earlier[layer]
        found[layer] = solve_spd(moment - k @ k.T, k)
    return found


def least_squares(
    covariance: Covariance, keys: SubjectKeys, preservation: float
) -> Float[Tensor, "d_mlp n_subjects"]:
    """U [d_mlp, n_subjects] at one layer."""
    means = keys.means
    weight = preservation * _mass({0: covariance}, {0: means})
    return solve_spd(weight * covariance.moment.double() + keys.moment, means)


def _mass(covariances: Mapping[int, Covariance], means: Mapping[int, Tensor]) -> Tensor:
    """median_g sum_m k_gm^T C_m^-1 k_gm."""
    masses = [(k * covariances[layer].solve(k)).sum(0) for layer, k in means.items()]
    return torch.stack(masses).sum(0).median()


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
    """MEMIT with the plan's layers, those left solved for together, earlier facts held."""
    earlier = held_facts(facts, plan)

    def metric(keys: Mapping[int, SubjectKeys]) -> Mapping[int, Tensor]:
        held = earlier_moments(model, earlier, plan, list(keys))
        return preserving(plan.covariances, keys, plan.preservation, held)

    return look_ahead(model, facts, plan, metric, protected=len(earlier))


def published(model: EditableModel, facts: Sequence[Fact], plan: Plan) -> Solution:
    """MEMIT with the residual divided evenly over what is left of the layers."""

    def directions(layer: int, keys: SubjectKeys) -> Tensor:
        return least_squares(plan.covariances[layer], keys, plan.preservation)

    return spread(model, facts, plan, directions)
