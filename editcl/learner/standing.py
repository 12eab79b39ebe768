"""Standings: how a sample of facts and the tests of steps stand, before and after a step.

What was measured is remembered until the log changes, so that the state after one step needn't be
measured again before the next. Knows nothing of how anything was learnt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from editcl.facts import Fact
from editcl.learner.judge import Judge
from editcl.learner.outcome import Weakened
from editcl.learner.steps import Step
from editcl.learning.survival import Survival
from editcl.log.weakening import Place

FELL = 0.05  # the least loss of a score that counts, and never a single example of the kept test


@dataclass(frozen=True)
class Standing:
    """How things stand.

    Attributes:
        facts: whether each holds, by place.
        of: the facts themselves.
        tasks: score of each step, by its id.
        steps: the steps themselves.
    """

    facts: Mapping[Place, bool]
    of: Mapping[Place, Fact]
    tasks: Mapping[str, float]
    steps: tuple[Step, ...]

    @property
    def names(self) -> dict[str, str]:
        """Of each step its task."""
        return {step.id: step.task for step in self.steps}

    def by_name(self) -> dict[str, float]:
        """Scores by task."""
        return {self.names[name]: score for name, score in self.tasks.items()}


class Standings:
    """Measures, and remembers while the log stays as it is.

    Args:
        judge: who measures.
    """

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._state: tuple[int, int] | None = None
        self._facts: dict[Place, bool] = {}
        self._tasks: dict[str, float] = {}

    def of(self, facts: Mapping[Place, Fact], steps: Sequence[Step]) -> Standing:
        """How these facts and steps stand now; steps without a test are left out."""
        log = self._judge.model.log
        state = len(log.timeline), len(log.events)
        if state != self._state:
            self._state, self._facts, self._tasks = state, {}, {}
        new = [place for place in facts if place not in self._facts]
        self._facts |= zip(new, self._judge.holds([facts[place] for place in new]), strict=True)
        judged = tuple(step for step in steps if step.kept is not None)
        for step in judged:
            if step.id not in self._tasks and step.kept is not None:
                self._tasks[step.id] = self._judge.score(step.kept, step.task)
        return Standing(
            {place: self._facts[place] for place in facts},
            dict(facts),
            {step.id: self._tasks[step.id] for step in judged},
            judged,
        )

    def again(self, before: Standing) -> Standing:
        """The same facts and steps, now."""
        return self.of(before.of, before.steps)


def weakened(before: Standing, after: Standing) -> tuple[Weakened, ...]:
    """The facts that no longer hold, and the steps whose scores fell."""
    facts = [
        Weakened("fact", str(before.of[place]), 1.0, 0.0)
        for place, held in before.facts.items()
        if held and not after.facts[place]
    ]
    tasks = []
    for step in before.steps:
        was, now = before.tasks[step.id], after.tasks[step.id]
        one = 1 / len(step.kept.examples) if step.kept is not None else 0.0
        if was - now > max(FELL, one):
            tasks.append(Weakened("task", step.task, was, now))
    return (*facts, *tasks)


def own_survival(before: Standing, after: Standing, n_facts: int) -> Survival | None:
    """How many of the sampled facts that held before a step hold after it; None without facts."""
    if not before.facts:
        return None
    held = [place for place, holds in before.facts.items() if holds]
    lost = tuple(str(before.of[place]) for place in held if not after.facts[place])
    return Survival(n_facts, len(held), len(held) - len(lost), lost)
