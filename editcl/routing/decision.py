"""Decision: what `route` found, in words and numbers.

A value without behaviour: what shall be done, how sure that is, why, and what it would cost. Knows
nothing of how it was found, nor of the log that keeps it.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from editcl.errors import EditclError
from editcl.facts import Fact
from editcl.learning.tasks import Task

EDIT, TRAIN, SPLIT, ABSTAIN = "edit", "train", "split", "abstain"
KINDS = (EDIT, TRAIN, SPLIT, ABSTAIN)
FULL, CHEAP = "full", "cheap"
BUDGETS = (FULL, CHEAP)


@dataclass(frozen=True)
class Cost:
    """What a decision took, and what its two arms are expected to take.

    Attributes:
        decision: seconds, measured.
        edit: seconds that editing the facts would take, an estimate; None if there are none.
        train: seconds that training would take, an estimate; None if nothing can be trained.
    """

    decision: float
    edit: float | None
    train: float | None

    @property
    def cheaper(self) -> float | None:
        """Seconds of the cheaper arm; None if neither is possible."""
        arms = [arm for arm in (self.edit, self.train) if arm is not None]
        return min(arms, default=None)

    def __str__(self) -> str:
        def said(seconds: float | None) -> str:
            return "not possible" if seconds is None else f"about {seconds:.1f} s"

        return (
            f"decided in {self.decision:.2f} s; editing {said(self.edit)}, "
            f"training {said(self.train)}"
        )


@dataclass(frozen=True, repr=False)
class Decision:
    """Whether a task is to be edited, trained, split into both, or asked about.

    Attributes:
        task: its name.
        kind: "edit", "train", "split" or "abstain".
        confidence: how likely the kind is the right one, in [0, 1], calibrated.
        reasons: sentences, the weightiest first; of an abstention the first is a question.
        signals: what was measured, by name; see `editcl.routing.surface` and `probes`.
        cost: seconds.
        facts: what an edit would write; empty unless the kind is "edit" or "split".
        trains: what a training would learn; None unless the kind is "train" or "split".
        budget: "full" or "cheap".

    Raises:
        EditclError: the kind or the budget is unknown, or the confidence no probability.
    """

    task: str
    kind: str
    confidence: float
    reasons: tuple[str, ...]
    signals: Mapping[str, float]
    cost: Cost
    facts: tuple[Fact, ...] = ()
    trains: Task | None = None
    budget: str = FULL

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise EditclError(f"no decision is {self.kind!r}; it is one of {', '.join(KINDS)}.")
        if self.budget not in BUDGETS:
            raise EditclError(
                f"there is no budget {self.budget!r}; choose one of {', '.join(BUDGETS)}."
            )
        if not 0 <= self.confidence <= 1:
            raise EditclError(f"a confidence of {self.confidence} is not in [0, 1].")
        object.__setattr__(self, "reasons", tuple(self.reasons))
        object.__setattr__(self, "facts", tuple(self.facts))
        object.__setattr__(self, "signals", MappingProxyType(dict(self.signals)))

    def to_json(self) -> dict[str, Any]:
        """Plain values, as a log keeps them; of what is trained only the name."""
        return {
            "task": self.task,
            "kind": self.kind,
            "confidence": self.confidence,
            "reasons": list(self.reasons),
            "signals": dict(self.signals),
            "cost": asdict(self.cost),
            "facts": [asdict(fact) for fact in self.facts],
            "trains": None if self.trains is None else self.trains.name,
            "budget": self.budget,
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Decision:
        """From what `to_json` gave; `trains` is None, for its examples are not kept.

        Raises:
            EditclError: something is missing or of another type.
        """
        try:
            return cls(
                task=str(found["task"]),
                kind=found["kind"],
                confidence=float(found["confidence"]),
                reasons=tuple(found["reasons"]),
                signals={name: float(value) for name, value in found["signals"].items()},
                cost=Cost(**found["cost"]),
                facts=tuple(Fact(**fact) for fact in found["facts"]),
                budget=found["budget"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise EditclError(
                f"this is no decision as `to_json` writes it ({error!r}); route the task again."
            ) from None

    @property
    def summary(self) -> str:
        """One line: task, kind, confidence, and how much goes where."""
        parts = [f"{len(self.facts):,} facts to edit"] if self.facts else []
        if self.trains is not None:
            parts.append(f"{len(self.trains.train):,} examples to train on")
        what = f", {', '.join(parts)}" if parts else ""
        return f"{self.task}: {self.kind} (confidence {self.confidence:.2f}{what})"

    def __repr__(self) -> str:
        figures = ", ".join(f"{name} {value:.3g}" for name, value in self.signals.items())
        lines = [
            f"Decision({self.summary}",
            *(f"  - {reason}" for reason in self.reasons),
            f"  {self.cost} (budget {self.budget!r})",
            f"  signals: {figures})",
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """For notebooks: the summary, the reasons as a list, the signals as a table."""
        reasons = "".join(f"<li>{html.escape(reason)}</li>" for reason in self.reasons)
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.signals)
        cells = "".join(f"<td>{value:.3g}</td>" for value in self.signals.values())
        return (
            f"<p><b>{html.escape(self.summary)}</b></p><ul>{reasons}</ul>"
            f"<p>{html.escape(str(self.cost))}</p>"
            f"<table><tr>{head}</tr><tr>{cells}</tr></table>"
        )
