"""Pooled states of a step's rows: what strategies tell tasks by.

Knows nothing of what they do with them.
"""

from __future__ import annotations

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from editcl.learning.batches import visible
from editcl.learning.session import StepOutput


def pooled_prompts(output: StepOutput, kind: str) -> Float[Tensor, "n_rows d_model"]:
    """The mean states over what is known of each row at prediction, with gradients.

    Args:
        output: of a batch.
        kind: of the task that is learnt.
    """
    rows = tuple(visible(output.batch.rows, kind))
    return replace(output, batch=replace(output.batch, rows=rows)).pooled(prompt_only=True)
