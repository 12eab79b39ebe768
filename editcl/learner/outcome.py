"""What learning and judging tell: frozen results that read well. They compute nothing."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from editcl.evaluation.damage import Damage
from editcl.learning.survival import Survival
from editcl.log.entry import one_line
from editcl.routing.decision import ABSTAIN, Decision

SHOWN = 3


@dataclass(frozen=True)
class Weakened:
    """Something from before that a step weakened.

    Attributes:
        what: "fact" or "task".
        name: the fact as a sentence, or the task.
        before, after: score of a task; of a fact 1 (held) and 0.
    """

    what: str
    name: str
    before: float
    after: float

    def __str__(self) -> str:
        if self.what == "fact":
            return f"{one_line(self.name)} (no longer holds)"
        return f"{one_line(self.name)} {self.before:.2f} -> {self.after:.2f}"


@dataclass(frozen=True, repr=False)
class Outcome:
    """What a call of `learn` came to.

    Attributes:
        task: its name.
        kind: "edit", "train", "split" or "abstain".
        decision: with its reasons and figures.
        step: id of the step in the log.
        entries: ids of what it put into the log, repairs included.
        scores: "facts" (share of the step's facts that hold), "before" and "after" (of the test,
            under the skill that was told), "test" (of the kept test, untold); those that exist.
        survival: of a sample of earlier facts; None if there are none.
        earlier: scores of earlier steps, untold, by task.
        weakened: what was weaker after the step than before, and was not repaired.
        repaired: weakened facts that were edited anew and hold again.
        notes: what else is worth knowing.
        seconds: everything together, measuring included.
    """

    task: str
    kind: str
    decision: Decision
    step: str
    entries: tuple[str, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    survival: Survival | None = None
    earlier: Mapping[str, float] = field(default_factory=dict)
    weakened: tuple[Weakened, ...] = ()
    repaired: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def question(self) -> str | None:
        """What to ask the user; None where something was learnt."""
        if self.kind != ABSTAIN:
            return None
        return self.decision.reasons[0] if self.decision.reasons else "What shall be learnt here?"

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "task": self.task,
            "kind": self.kind,
            "question": self.question,
            "decision": self.decision.to_json(),
            "step": self.step,
            "entries": list(self.entries),
            "scores": dict(self.scores),
            "survival": survival_json(self.survival),
            "earlier": dict(self.earlier),
            "weakened": [asdict(one) for one in self.weakened],
            "repaired": list(self.repaired),
            "notes": list(self.notes),
            "seconds": self.seconds,
        }

    def lines(self) -> list[str]:
        """What it says, one line each."""
        entries = f" ({' '.join(self.entries)})" if self.entries else ""
        found = [f"{one_line(self.task)}: {self.kind}{entries}, {self.seconds:.1f} s"]
        found += [f"  - {one_line(reason)}" for reason in self.decision.reasons]
        if self.scores:
            found.append(
                "  " + ", ".join(f"{name} {value:.3g}" for name, value in self.scores.items())
            )
        if self.survival is not None:
            s = self.survival
            found.append(f"  earlier facts: {s.kept} of the {s.before} that held still hold")
        found += [f"  weakened: {one}" for one in self.weakened[:SHOWN]]
        if len(self.weakened) > SHOWN:
            found.append(f"  ... and {len(self.weakened) - SHOWN} more weakened")
        if self.repaired:
            found.append(f"  repaired: {len(self.repaired)} facts")
        return [*found, *(f"  {one_line(note)}" for note in self.notes)]

    def __repr__(self) -> str:
        return "Outcome(" + "\n".join(self.lines()) + ")"

    def _repr_html_(self) -> str:
        return "".join(f"<div>{html.escape(line)}</div>" for line in self.lines())


@dataclass(frozen=True, repr=False)
class Evaluated:
    """How everything that was learnt stands, under the Learner's own inference.

    Attributes:
        tasks: score of each active step with a test, by task.
        survival: of all facts in the log; None if there are none. Of facts that a later one
            overwrote only the later one counts.
        damage: of the edits, on general text, against the base model.
        bleed: share of general texts that inference gives to a skill instead of the base model.
        seconds: what it took.
    """

    tasks: Mapping[str, float]
    survival: Survival | None
    damage: Damage
    bleed: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "tasks": dict(self.tasks),
            "survival": survival_json(self.survival),
            "damage": self.damage.to_dict(),
            "bleed": self.bleed,
            "seconds": self.seconds,
        }

    def __repr__(self) -> str:
        lines = [f"  {one_line(name)} {score:.3g}" for name, score in self.tasks.items()]
        lines += [] if self.survival is None else [f"  {self.survival!r}"]
        lines += [f"  {self.damage!r}", f"  general texts given to a skill: {self.bleed:.1%}"]
        return f"Evaluated({self.seconds:.1f} s\n" + "\n".join(lines) + ")"


def survival_json(survival: Survival | None) -> dict[str, Any] | None:
    """A survival as plain JSON, its share included."""
    return None if survival is None else asdict(survival) | {"share": survival.share}
