"""WeightUpdate: a frozen low-rank change of one matrix; solvers make it, only the log writes it.

Delta = left @ right.T. Editors give each column to one fact, so that any fact of a batch can be
taken out again; what trains on all facts at once gives columns that only go together. This module
knows nothing of how a change was solved for or where it is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from editcl.errors import NonFiniteError

SHARED = -1  # owner of a column that belongs to all facts of its edit
_ELEMENTS_PER_BLOCK = 1 << 22  # bounds the scratch memory of a norm


@dataclass(frozen=True)
class WeightUpdate:
    """Delta [d_mlp, d_model] = left @ right.T, in the orientation v = k @ W.

    Attributes:
        parameter: the parameter's name in the Hugging Face model.
        left: [d_mlp, rank], the direction in key space of each column.
        right: [d_model, rank], what is added to the value along it.
        owner: for each column the index of the fact that it belongs to, SHARED for one that
            belongs to all; a fact may own several columns, or none. None: column j belongs to
            fact j.

    Raises:
        NonFiniteError: a factor holds NaN or infinity.
    """

    parameter: str
    left: Float[Tensor, "d_mlp rank"]
    right: Float[Tensor, "d_model rank"]
    owner: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        assert self.left.ndim == self.right.ndim == 2, "factors of an update are matrices"
        assert self.left.shape[1] == self.right.shape[1], (
            f"left has {self.left.shape[1]} columns and right {self.right.shape[1]}; "
            "both need the same number"
        )
        assert self.owner is None or len(self.owner) == self.rank, (
            f"{self.rank} columns have {len(self.owner or ())} owners; each needs one"
        )
        assert self.owner is None or min(self.owner, default=0) >= SHARED, (
            f"an owner is the index of a fact or {SHARED}, got {min(self.owner or (0,))}"
        )
        for name, factor in (("left", self.left), ("right", self.right)):
            if not bool(torch.isfinite(factor).all()):
                raise NonFiniteError(
                    f"the {name} factor of the update of {self.parameter} is not finite. "
                    "Check the model's weights for NaN, or lower the learning rate."
                )

    @property
    def rank(self) -> int:
        """Columns of the factors."""
        return self.left.shape[1]

    def dense(self) -> Float[Tensor, "d_mlp d_model"]:
        """The change as one matrix, in float32."""
        return self.left.float() @ self.right.float().T

    def norm(self) -> float:
        """Frobenius norm of the change."""
        return product_norm(self.left, self.right)


def product_norm(left: Float[Tensor, "d_mlp rank"], right: Float[Tensor, "d_model rank"]) -> float:
    """Frobenius norm of left @ right.T in float64, the cheaper way.

    Few columns: ||L R^T||^2 = sum of (L^T L) * (R^T R). Many: the product itself, row by row.
    """
    (d_mlp, rank), d_model = left.shape, len(right)
    left, right = left.double(), right.double()
    if rank * (d_mlp + d_model) <= d_mlp * d_model:
        return float(((left.T @ left) * (right.T @ right)).sum().clamp(min=0).sqrt())
    rows = left.split(max(1, _ELEMENTS_PER_BLOCK // d_model))
    return float(sum((block @ right.T).square().sum() for block in rows)) ** 0.5
