"""WeightUpdate: a frozen low-rank change of one matrix; solvers make it, only the log writes it.

Delta = left @ right.T, one column per fact, so that any fact of a batch can be taken out again.
This module knows nothing of how a change was solved for or where it is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from editcl.errors import NonFiniteError


@dataclass(frozen=True)
class WeightUpdate:
    """Delta [d_mlp, d_model] = left @ right.T, in the orientation v = k @ W.

    Attributes:
        parameter: the parameter's name in the Hugging Face model.
        left: [d_mlp, n_facts], the direction in key space of each fact.
        right: [d_model, n_facts], what is added to the value along it.

    Raises:
        NonFiniteError: a factor holds NaN or infinity.
    """

    parameter: str
    left: Float[Tensor, "d_mlp n_facts"]
    right: Float[Tensor, "d_model n_facts"]

    def __post_init__(self) -> None:
        assert self.left.ndim == self.right.ndim == 2, "factors of an update are matrices"
        assert self.left.shape[1] == self.right.shape[1], (
            f"left has {self.left.shape[1]} columns and right {self.right.shape[1]}; "
            "both need one per fact"
        )
        for name, factor in (("left", self.left), ("right", self.right)):
            if not bool(torch.isfinite(factor).all()):
                raise NonFiniteError(
                    f"the {name} factor of the update of {self.parameter} is not finite. "
                    "Check the model's weights for NaN, or lower the learning rate."
                )

    @property
    def n_facts(self) -> int:
        """Columns of the factors."""
        return self.left.shape[1]

    def dense(self) -> Float[Tensor, "d_mlp d_model"]:
        """The change as one matrix, in float32."""
        return self.left.float() @ self.right.float().T

    def norm(self) -> float:
        """Frobenius norm of the change, from the factors' Gram matrices."""
        left, right = self.left.double(), self.right.double()
        return float(((left.T @ left) * (right.T @ right)).sum().clamp(min=0).sqrt())
