"""TrainSettings: how a task is trained, and TrainResult: what came of it.

Knows nothing of strategies and tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from editcl.errors import EditclError


@dataclass(frozen=True)
class TrainSettings:
    """How a task is trained: AdamW, linear warm-up, then half a cosine down to zero.

    Attributes:
        epochs: how often each row is seen; fractions are allowed.
        steps: steps of the optimiser, instead of epochs.
        batch_size: rows of one forward pass, those that a strategy adds aside.
        accumulate: forward passes of one step.
        lr: the highest learning rate.
        warmup: share of the steps in which the rate rises to it.
        schedule: what the rate does then.
        weight_decay: AdamW's.
        clip: the largest norm of the gradient; None: no limit.
        seed: of the order of rows, of what is held out and of dropout.
        autocast: "bf16", "off", or "auto": bf16 on processors with instructions for it, unless the
            model is in 16 bits already.
        patience: stops after so many looks at the held-out rows without a better loss, and takes
            the best parameters back; None: trains to the end, on all rows.
        held_out: share of the task's rows that is held out, with patience.
        evaluate_every: steps between two looks; by default a twentieth of the training.

    Raises:
        EditclError: a value is out of its range.
    """

    epochs: float = 1.0
    steps: int | None = None
    batch_size: int = 16
    accumulate: int = 1
    lr: float = 1e-3
    warmup: float = 0.05
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: float = 0.0
    clip: float | None = 1.0
    seed: int = 0
    autocast: Literal["auto", "bf16", "off"] = "auto"
    patience: int | None = None
    held_out: float = 0.1
    evaluate_every: int | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "patience", "evaluate_every"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise EditclError(f"{name} is {value!r}; give a whole number of at least 1.")
        for name in ("epochs", "lr", "clip"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise EditclError(f"{name} is {value!r}; give a number above 0.")
        for name, top in (("warmup", 1.0), ("held_out", 1.0), ("weight_decay", math.inf)):
            value = getattr(self, name)
            if not 0 <= value < top:
                raise EditclError(f"{name} is {value!r}; give a number in [0, {top}).")
        for name, choices in (
            ("schedule", ("cosine", "constant")),
            ("autocast", ("auto", "bf16", "off")),
        ):
            if getattr(self, name) not in choices:
                raise EditclError(
                    f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}."
                )

    @property
    def rows_per_step(self) -> int:
        """Rows of the data in one step of the optimiser."""
        return self.batch_size * self.accumulate

    def total(self, n_rows: int) -> int:
        """How many steps a training on so many rows has."""
        if self.steps is not None:
            return self.steps
        return max(1, round(self.epochs * math.ceil(n_rows / self.rows_per_step)))

    def rate(self, step: int, total: int) -> float:
        """The learning rate of a step, counted from 0."""
        warm = round(self.warmup * total)
        if step < warm:
            return self.lr * (step + 1) / (warm + 1)
        if self.schedule == "constant":
            return self.lr
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


@dataclass(frozen=True, repr=False)
class TrainResult:
    """What came of a training.

    Attributes:
        losses: the task's loss of each step, the strategy's terms aside.
        penalties: the strategy's terms of each step, by name; 0 where a step had none.
        held_out: (step, loss) of each look at the held-out rows.
        steps: how many were made.
        examples: rows that were trained on, those that the strategy added included.
        seconds: what all steps took, those before a resume included.
        parameters: how many numbers were trained.
        stopped_early: whether patience ended it.
        best: the step whose parameters were kept, where it was not simply the last.
    """

    losses: tuple[float, ...]
    penalties: Mapping[str, tuple[float, ...]]
    held_out: tuple[tuple[int, float], ...]
    steps: int
    examples: int
    seconds: float
    parameters: int
    stopped_early: bool
    best: int | None

    @property
    def examples_per_second(self) -> float:
        """Rows trained on in a second."""
        return self.examples / self.seconds if self.seconds else 0.0

    def __repr__(self) -> str:
        end = f", stopped early, best at step {self.best}" if self.stopped_early else ""
        return (
            f"TrainResult({self.steps} steps: loss {self.losses[0]:.3f} -> {self.losses[-1]:.3f}, "
            f"{self.seconds:.1f} s, {self.examples_per_second:.0f} examples/s{end})"
        )
