"""ROME: one fact, one layer, one rank-one update with W' k* = v* (arXiv:2202.05262, eq. 2).

    W' = W + delta u^T,   u = C^-1 k* / (k*^T C^-1 k*),   delta = v* - W k*

k* is the mean of the subject's keys k_j over contexts j, the same in numerator and denominator
(R-ROME, arXiv:2403.07175); this is `mean_direction`. Where the keys of two contexts differ much (a
subject of one token, with and without text in front), u meets the mean and misses the single keys.
The default therefore asks every context's key to meet, u^T k_j ~ 1, within a ridge:

    u ~ C^-1 K (K^T C^-1 K / s + ridge I)^-1 1,   K = [k_1 ... k_n], s = mean_j k_j^T C^-1 k_j

scaled to k*^T u = 1, so that W' k* = v* still holds exactly. A large ridge gives R-ROME.
The authors' code takes the mean key for C^-1 k* and the bare prompt's key in the denominator;
`published_direction` reproduces it for comparison. Knows nothing of how delta was found.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from editcl.editing.covariance import Covariance
from editcl.model import DownProjection
from editcl.update import WeightUpdate

RIDGE = 0.1


def context_direction(
    covariance: Covariance, keys: Float[Tensor, "n_contexts d_mlp"], *, ridge: float = RIDGE
) -> Float[Tensor, " d_mlp"]:
    """u [d_mlp] with u^T k_j ~ 1 for every context and u^T k* = 1 (module docstring)."""
    stacked = keys.double().T
    solved = covariance.solve(stacked)
    gram = stacked.T @ solved
    gram = gram / gram.diagonal().mean()
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weights = torch.linalg.solve(gram + ridge * identity, torch.ones_like(gram[:, 0]))
    u = solved @ weights
    return u / (u @ stacked.mean(1))


def mean_direction(
    covariance: Covariance, keys: Float[Tensor, "n_contexts d_mlp"]
) -> Float[Tensor, " d_mlp"]:
    """u [d_mlp] of R-ROME: C^-1 k* over k*^T C^-1 k*, k* the mean key."""
    k_star = keys.double().mean(0)
    u = covariance.solve(k_star[:, None])[:, 0]
    return u / (u @ k_star)


def published_direction(
    covariance: Covariance, keys: Float[Tensor, "n_contexts d_mlp"]
) -> Float[Tensor, " d_mlp"]:
    """u [d_mlp] of the authors' code: C^-1 k* with the mean key, over its product with the first.

    W' k* = v* fails wherever the two keys differ, and the product can come near zero.
    """
    u = covariance.solve(keys.double().mean(0)[:, None])[:, 0]
    return u / (u @ keys[0].double())


def rank_one(
    projection: DownProjection, u: Float[Tensor, " d_mlp"], delta: Float[Tensor, " d_model"]
) -> WeightUpdate:
    """The update that adds delta to the value of every key with u^T k = 1."""
    return WeightUpdate(projection.name, u.float()[:, None], delta.float()[:, None])
