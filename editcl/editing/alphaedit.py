"""AlphaEdit: edits in the null space of what the model knows (arXiv:2410.02355, eq. 11).

    U = P (P (sum_g k k^T + sum_e k k^T) P + lambda I)^-1 P K,   Delta_l = U R^T

P projects onto the eigenvectors of C with the smallest eigenvalues, e runs over the subjects of
earlier edits, whose values must stay. Departures: the authors keep eigenvalues below 0.02, which
means nothing on another model; here the null space is what holds `energy` of C's trace. lambda
is `preservation` times the median squared length of a projected key (theirs: 10). Subjects that are
edited again are not protected by their key, which would forbid the edit; the prompts of their
earlier facts are held while v* is sought instead. Solved within the null space, in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from editcl.editing.batch import SubjectKeys, spread, subject_groups
from editcl.editing.covariance import Covariance
from editcl.editing.keys import subject_keys
from editcl.editing.memit import solve_spd
from editcl.editing.plan import Plan, Solution
from editcl.facts import Fact
from editcl.model import EditableModel

ENERGY = 0.02


def null_space(
    covariance: Covariance, *, energy: float = ENERGY
) -> Float[Tensor, "d_mlp n_directions"]:
    """Orthonormal directions that hold the lowest `energy` of C's trace; at least one."""
    values, vectors = covariance.eigen()
    held = values.clamp(min=0).cumsum(0) / values.clamp(min=0).sum()
    return vectors[:, : max(1, int((held <= energy).sum()))]


def projected(
    basis: Float[Tensor, "d_mlp n_directions"],
    keys: SubjectKeys,
    earlier: Float[Tensor, "d_mlp d_mlp"] | None,
    preservation: float,
) -> Float[Tensor, "d_mlp n_subjects"]:
    """U of the equation above, in the coordinates of the null space."""
    moment = keys.moment if earlier is None else keys.moment + earlier
    means = basis.T @ keys.means
    ridge = preservation * means.square().sum(0).median()
    eye = torch.eye(basis.shape[1], dtype=basis.dtype, device=basis.device)
    return basis @ solve_spd(basis.T @ moment @ basis + ridge * eye, means)


def alphaedit(model: EditableModel, facts: Sequence[Fact], plan: Plan) -> Solution:
    """AlphaEdit with the plan's layers and the plan's earlier facts."""
    again = {fact.subject.casefold() for fact in facts}
    earlier = [fact for fact in plan.earlier if fact.subject.casefold() not in again]
    ranks: dict[int, int] = {}

    def directions(layer: int, keys: SubjectKeys) -> Tensor:
        basis = null_space(plan.covariances[layer])
        ranks[layer] = basis.shape[1]
        protected = None
        if earlier:
            known = subject_keys(model, earlier, [layer], plan.contexts[:1])[layer]
            protected = SubjectKeys.of(known, subject_groups(earlier)).moment
        return projected(basis, keys, protected, plan.preservation)

    solution = spread(model, facts, plan, directions)
    details = {
        **solution.details,
        "null_space": {str(layer): rank for layer, rank in ranks.items()},
        "protected_facts": len(earlier),
    }
    return Solution(solution.updates, solution.values, details)
