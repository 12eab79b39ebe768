"""EMMET: many facts at one layer under equality constraints (arXiv:2403.14236, eq. 9).

    U = C^-1 K (K^T C^-1 K + ridge s I)^-1,   Delta = U R^T,   s = mean_g k_g^T C^-1 k_g

With ridge = 0 every subject's mean key is met exactly, U^T K = I; the authors add 0.1 I for
stability, here it is a thousandth of s, so that the constraints stay what the name says. By the
push-through identity, MEMIT at one layer with mean keys is the same formula with the ridge for its
lambda: the two differ in how much they give up for what the model knows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from editcl.editing.batch import SubjectKeys, spread, subject_groups
from editcl.editing.covariance import Covariance
from editcl.editing.plan import Plan, Solution
from editcl.errors import EditclError
from editcl.facts import Fact
from editcl.model import EditableModel

RIDGE = 1e-3


def equality(
    covariance: Covariance, means: Float[Tensor, "d_mlp n_subjects"], *, ridge: float = RIDGE
) -> Float[Tensor, "d_mlp n_subjects"]:
    """U [d_mlp, n_subjects] of the equation above."""
    solved = covariance.solve(means)
    gram = means.T @ solved
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(gram + ridge * gram.diagonal().mean() * eye, solved.T).T


def emmet(model: EditableModel, facts: Sequence[Fact], plan: Plan) -> Solution:
    """EMMET at one layer.

    Raises:
        EditclError: several layers, or more subjects than d_mlp can tell apart.
    """
    if len(plan.layers) != 1:
        raise EditclError(f"emmet edits one layer, got {list(plan.layers)}.")

    n_subjects = len(set(subject_groups(facts)))
    if n_subjects >= model.d_mlp:
        raise EditclError(
            f"{n_subjects} subjects can't all be met exactly by keys of {model.d_mlp} dimensions. "
            "Use method='memit' or edit in smaller batches."
        )

    def directions(layer: int, keys: SubjectKeys) -> Tensor:
        return equality(plan.covariances[layer], keys.means)

    return spread(model, facts, plan, directions)
