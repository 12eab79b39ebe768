"""PMET: MEMIT with attention's part of the value set aside (arXiv:2308.08742).

    min over (delta_attention, delta_mlp) of the loss of values.py;  r = delta_mlp / sqrt(left)

Attention output and MLP output of the last layer are optimised together and only the MLP's part is
written: what attention does at the subject is general and need not be stored as a fact. The
residual falls off with the square root of the layers left, not with their number. The
system that is solved is MEMIT's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from editcl.editing.batch import SubjectKeys, spread
from editcl.editing.memit import least_squares
from editcl.editing.plan import Plan, Solution
from editcl.facts import Fact
from editcl.model import EditableModel


def pmet(model: EditableModel, facts: Sequence[Fact], plan: Plan) -> Solution:
    """PMET with the plan's layers."""

    def directions(layer: int, keys: SubjectKeys) -> Tensor:
        return least_squares(plan.covariances[layer], keys, plan.preservation)

    return spread(model, facts, plan, directions, share=math.sqrt, with_attention=True)
