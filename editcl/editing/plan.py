"""Plan and Solution: what an editing method is given, and what it gives back.

A method is a function (model, facts, plan) -> solution; it never writes a weight lastingly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from editcl.editing.background import Background
from editcl.editing.contexts import DEFAULT_CONTEXTS
from editcl.editing.covariance import Covariance
from editcl.editing.refine import Refinement
from editcl.editing.resume import Checkpoint
from editcl.editing.values import Values, ValueSettings
from editcl.facts import Fact
from editcl.model import EditableModel
from editcl.update import WeightUpdate


@dataclass(frozen=True)
class Plan:
    """Everything a method needs beside the model and the facts.

    Attributes:
        layers: which down-projections to change, ascending.
        settings: how v* is sought.
        covariances: C by layer.
        essence: per fact, the prompts whose predictions are held.
        contexts: texts in front of the prompt, the first one "".
        rephrased: per fact, further prompts that say it; None: only its own says it.
        preservation: weight of what the model knows against the new facts, free of scale: a
            single fact is met up to 1 / (1 + preservation). Batch methods trade paraphrases
            (lower) for specificity (higher) by it.
        checkpoint: keeps finished values, so that a killed run can go on.
        values: v* of the facts where it is known already; None: it is sought.
        earlier: facts of earlier edits that are active, for methods that protect them.
        refinement: how the solution is trained further; None: it is left as solved for.
        background: ordinary text for that.
    """

    layers: tuple[int, ...]
    settings: ValueSettings
    covariances: Mapping[int, Covariance]
    essence: Sequence[Sequence[str]]
    contexts: Sequence[str] = DEFAULT_CONTEXTS
    rephrased: Sequence[Sequence[str]] | None = None
    preservation: float = 0.1
    earlier: Sequence[Fact] = ()
    checkpoint: Checkpoint | None = None
    values: Values | None = None
    refinement: Refinement | None = None
    background: Background | None = None


@dataclass(frozen=True)
class Solution:
    """The updates a method found, the values behind them (if any), and figures for the receipt."""

    updates: tuple[WeightUpdate, ...]
    values: Values | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


Method = Callable[[EditableModel, Sequence[Fact], Plan], Solution]
