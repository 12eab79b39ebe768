"""olora: each task's LoRA is driven to rows that stand at right angles to those of earlier ones.

    loss + lambda sum_{i<t} ||A_i A_t^T||_F^2        summed over modules

The rows of A_i span what task i reads of the inputs. Wang et al. 2023, "Orthogonal subspace
learning for language model continual learning", arXiv:2310.14152. Its published code sums absolute
values instead of squares; here is the paper's norm. Keeps nothing but the LoRAs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, final

import torch
from torch import Tensor, nn

from editcl.errors import EditclError
from editcl.learning.session import Session, StepOutput
from editcl.learning.strategies.summed import Summed, earlier, pairs

if TYPE_CHECKING:
    from editcl.learning.tasks import Task


@final
class OLoRA(Summed):
    """Soft orthogonality between the tasks' LoRAs.

    Args:
        weight: lambda.
    """

    name: ClassVar[str] = "olora"

    def __init__(self, weight: float = 0.5) -> None:
        if not weight > 0:
            raise EditclError(f"a weight of {weight!r} leaves the tasks as they are; give > 0.")
        self.weight = weight
        self._meeting: list[tuple[Tensor, nn.Parameter]] = []

    def begin(self, session: Session, task: Task) -> None:
        """Puts the rows of all old tasks together, module by module."""
        old = [pairs(session.adapters, name) for name in earlier(session)]
        self._meeting = [
            (torch.cat([found[path].A.detach().float() for found in old]), own.A)
            for path, own in pairs(session.adapters, task.name).items()
            if old
        ]

    def penalty(self, session: Session, output: StepOutput) -> Mapping[str, Tensor]:
        """Nothing in the first task."""
        if not self._meeting:
            return {}
        terms = [(old @ A.float().T).square().sum() for old, A in self._meeting]
        return {self.name: self.weight * torch.stack(terms).sum()}

    def end(self, session: Session, task: Task) -> None:
        """Lets go of the rows."""
        self._meeting = []
