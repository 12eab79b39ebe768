"""A mixed stream: the same tasks learnt one after the other in one Learner, by several policies.

    router         what the router says
    always edit    every task is edited, as far as it states facts
    always train   every task is trained into one adapter, earlier ones replayed

After the last task, with no task told: OP, the mean share of held-out items that are right; and
edit survival, the share of the stated facts that held right after their task and still do. Cost is
the seconds of deciding and learning. What running both arms costs is the sum of the last two. Knows
nothing of labels and utilities.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from editcl.benchmarks.arms import EDITS, share
from editcl.benchmarks.families import FAMILIES, make_tasks
from editcl.benchmarks.posed import KNOWLEDGE, Posed
from editcl.errors import EditclError
from editcl.learner import Learner
from editcl.learning.tasks import Example
from editcl.model import EditableModel
from editcl.progress import progress
from editcl.routing.decision import EDIT, TRAIN

ROUTER, ALWAYS_EDIT, ALWAYS_TRAIN, BOTH = "router", "always edit", "always train", "both arms"
#: Of each policy the method and the strategy.
POLICIES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        ROUTER: ("auto", "per_task"),
        ALWAYS_EDIT: (EDIT, "per_task"),
        ALWAYS_TRAIN: (TRAIN, "replay"),
    }
)
LENGTH = 20
LEFT_OUT = ("many",)  # too long for a stream that several policies learn


@dataclass(frozen=True)
class StreamLine:
    """What a policy came to.

    Attributes:
        OP: mean over tasks of the share of held-out items that are right after the last task.
        edit_survival: share of facts that held right after their task and hold at the end; None if
            no fact ever held.
        cost: seconds of deciding and learning.
        kinds: how often each arm was taken; "refused" where a task didn't allow it.
        by_task: the share of held-out items in the end, by task.
    """

    OP: float
    edit_survival: float | None
    cost: float
    kinds: Mapping[str, int]
    by_task: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self)


def stream_tasks(seed: int = 0, length: int = LENGTH) -> tuple[Posed, ...]:
    """Tasks of as many families as there are places, in random order; the same for one seed."""
    names = [name for name in FAMILIES if name not in LEFT_OUT]
    drawn = random.Random(f"stream {seed}")
    rounds = -(-length // len(names))
    chosen = drawn.sample(make_tasks(names, per_family=rounds, seed=seed), length)
    return tuple(chosen)


def run_stream(
    model: EditableModel, tasks: Sequence[Posed], policies: Sequence[str] = tuple(POLICIES)
) -> dict[str, StreamLine]:
    """Every policy on the same tasks; the model is as before afterwards.

    Returns:
        A line for each policy, and the cost of both arms where both were run.
    """
    return {name: _run(model, tasks, name) for name in policies}


def both_costs(lines: Mapping[str, StreamLine]) -> float | None:
    """Seconds of editing and of training everything; None where one of them was not run."""
    if ALWAYS_EDIT not in lines or ALWAYS_TRAIN not in lines:
        return None
    return lines[ALWAYS_EDIT].cost + lines[ALWAYS_TRAIN].cost


def _run(model: EditableModel, tasks: Sequence[Posed], policy: str) -> StreamLine:
    method, strategy = POLICIES[policy]
    learner = Learner(model, edits=EDITS)
    kinds: dict[str, int] = {}
    held: list[Example] = []
    cost = 0.0
    try:
        for posed in progress(tasks, f"stream, {policy}"):
            try:
                outcome = learner.learn(
                    posed.what, method, name=posed.name, strategy=strategy, show=False
                )
            except EditclError:
                # Nothing to edit, or nothing to train: the policy has no other way.
                kinds["refused"] = kinds.get("refused", 0) + 1
                continue
            step = learner.history()[-1]
            cost += step.seconds or outcome.seconds
            kinds[outcome.kind] = kinds.get(outcome.kind, 0) + 1
            stated = facts_of(posed)
            right = learner.correct(stated)
            held += [row for row, holds in zip(stated, right, strict=True) if holds]
        by_task = {p.name: share(learner.correct(p.task.test, p.task.labels)) for p in tasks}
        survived = share(learner.correct(held)) if held else None
    finally:
        learner.rollback_to("start")
    return StreamLine(sum(by_task.values()) / len(by_task), survived, cost, kinds, by_task)


def facts_of(posed: Posed) -> list[Example]:
    """The items that are facts: all of a task of knowledge, those of a mixed one that are."""
    if posed.kind == KNOWLEDGE:
        return list(posed.task.train)
    return [Example(fact.sentence, fact.new_object) for fact in posed.facts]


__all__ = ["BOTH", "POLICIES", "StreamLine", "both_costs", "run_stream", "stream_tasks"]
