"""What a Learner edits and trains with unless it is told otherwise. Values without behaviour."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from editcl.editing.contexts import DEFAULT_CONTEXTS
from editcl.editing.guards import Guard
from editcl.editing.plan import Plan
from editcl.editing.values import ValueSettings
from editcl.learning.settings import TrainSettings

#: Prompts farther than so many radii from the nearest centroid go to the base model. Measured on
#: the shipped stream's four skills: of 240 examples each, all but 0.5 % of their test prompts stay
#: with them, and at most 3 % of the catalogue's prompts and of everyday sentences join. At 1.25 one
#: skill takes 15 % of the catalogue's; at 1.0 a skill of five examples loses up to 34 % of its own,
#: at 1.1 up to 23 %.
ABSTAIN = 1.1
LEAST_STEPS, BATCH_SIZE, LR = 80, 16, 1.5e-3


@dataclass(frozen=True)
class EditSettings:
    """Arguments of `edit_csv` for the edits of a Learner.

    Attributes:
        method: a name in METHODS.
        layers: which layers to change; None: as `edit_csv` chooses.
        settings: how v* is sought.
        preservation: what the model knows against the new facts.
        refine: train further what was solved for. Off: the router's thresholds are fitted to edits
            without, and facts come to a Learner in tens rather than in hundreds.
        contexts: texts in front of the prompts.
        corpus: texts for the covariance; None: the model samples its own.
        guard: when to take an edit back; None: never, for a Learner measures by itself.
    """

    method: str = "memit"
    layers: tuple[int, ...] | None = None
    settings: ValueSettings | str | None = None
    preservation: float = Plan.preservation
    refine: bool = False
    contexts: Sequence[str] = DEFAULT_CONTEXTS
    corpus: Sequence[str] | None = None
    guard: Guard | None = None


def default_training(n_rows: int, *, seed: int) -> TrainSettings:
    """Settings for a task of so many rows: one epoch, and no fewer steps than short tasks need.

    The rate is that of `editcl bench learn`; numbers of the same bits on every processor.
    """
    steps = max(LEAST_STEPS, math.ceil(n_rows / BATCH_SIZE))
    return TrainSettings(steps=steps, batch_size=BATCH_SIZE, lr=LR, seed=seed, autocast="off")
