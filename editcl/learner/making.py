"""Making a step: edit, train or both as one transaction, then measure, and repair if asked to.

What an edit brings is weighed, if asked to, against what it costs of all that was learnt before: a
model holds so many facts, and a batch too many takes more than it gives. One that costs too much is
taken back (`CostlyError`), for whoever decided to decide otherwise.

What earlier steps have lost is what stood before this step and no longer does: a sample of the
facts, and the kept tests. Facts that the step itself states anew don't count. Knows nothing of how
a decision was come to.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from editcl.editing.many import edit_csv
from editcl.editing.report import BatchReport
from editcl.errors import EditclError
from editcl.facts import Fact
from editcl.learner.judge import Judge, current_facts
from editcl.learner.outcome import Outcome, survival_json
from editcl.learner.settings import EditSettings, default_training
from editcl.learner.standing import Standing, Standings, own_survival, weakened
from editcl.learner.steps import EVALUATION, KEPT, REPAIR, Kept, fact_json, steps_of
from editcl.learner.transaction import Transaction
from editcl.learning.kinds import AdapterSettings
from editcl.learning.settings import TrainSettings
from editcl.learning.strategies import Strategy
from editcl.learning.tasks import COMPLETION, TEXT
from editcl.log import Skill
from editcl.log.weakening import evenly
from editcl.routing.decision import EDIT, Decision
from editcl.routing.material import Material

COSTLY = 0.5  # of the facts that an edit brings: what it may cost at most of earlier ones
LEAST_LOST = 2  # sampled facts; of one nothing can be told about thousands


class CostlyError(EditclError):
    """An edit took more of what was learnt before than it may, and was taken back."""


@dataclass(frozen=True)
class Plan:
    """A step that is to be made.

    Attributes:
        made: what is learnt.
        decision: how.
        step: its id.
        strategy, settings, adapter: of a training.
        seed: of everything random.
        show: draws progress bars.
        checkpoint: keeps a training in a folder, from which the same call goes on.
        weigh: refuses an edit that costs too much of what was learnt before.
    """

    made: Material
    decision: Decision
    step: str
    strategy: str | Strategy = "per_task"
    settings: TrainSettings | None = None
    adapter: AdapterSettings | None = None
    seed: int = 0
    show: bool = True
    checkpoint: Path | None = None
    weigh: bool = False


class Maker:
    """Makes steps on the model of a judge.

    Args:
        judge: who measures.
        edits: how facts are edited.
    """

    def __init__(self, judge: Judge, edits: EditSettings) -> None:
        self._judge, self._edits = judge, edits
        self._model = judge.model
        self.standings = Standings(judge)

    def make(self, plan: Plan, *, repair: bool, started: float) -> Outcome:
        """Makes a step; if it fails, nothing of it stays in force.

        Raises:
            CostlyError: the edit costs too much of what was learnt before.
            EditclError: it failed.
        """
        decision, log = plan.decision, self._model.log
        before, n_earlier = self._standing({fact.sentence for fact in decision.facts})
        with Transaction(log, plan.step, task=decision.task, facts=decision.facts) as transaction:
            report = self._edit(decision.facts, plan.seed) if decision.facts else None
            if report is not None and plan.weigh:
                self._weigh(report, before, n_earlier)
            skill = self._train(plan)
            transaction.done(_done(plan.made, report, time.perf_counter() - started))
        scores = self._scores(plan, report, skill)
        after = self.standings.again(before)
        notes = _untaken(report, scores)
        repaired: tuple[str, ...] = ()
        lost = tuple(place for place, held in before.facts.items() if held > after.facts[place])
        if repair and lost:
            notes += self._repair(plan, [before.of[place] for place in lost], before)
            after = self.standings.again(before)
            scores = self._scores(plan, report, skill)
            repaired = tuple(str(before.of[place]) for place in lost if after.facts[place])
        steps = steps_of(log)
        outcome = Outcome(
            task=decision.task,
            kind=decision.kind,
            decision=decision,
            step=plan.step,
            entries=next(step.entries for step in steps if step.id == plan.step),
            scores=scores,
            survival=own_survival(before, after, len(current_facts(log, steps))),
            earlier=after.by_name(),
            weakened=weakened(before, after),
            repaired=repaired,
            notes=notes,
            seconds=time.perf_counter() - started,
        )
        log.note(EVALUATION, _evaluation(outcome))
        return outcome

    def _edit(self, facts: Sequence[Fact], seed: int) -> BatchReport:
        """One call of `edit_csv`, all facts in one entry.

        Raises:
            EditclError: they can't be edited, or the guard objected.
        """
        edits = self._edits
        report = edit_csv(
            self._model,
            list(facts),
            method=edits.method,
            layers=edits.layers,
            settings=edits.settings,
            preservation=edits.preservation,
            refine=edits.refine,
            contexts=edits.contexts,
            corpus=edits.corpus,
            guard=edits.guard,
            seed=seed,
        )
        if report.stopped is not None:
            raise EditclError(f"the edit was not kept: {report.stopped}.")
        return report

    def _weigh(self, report: BatchReport, before: Standing, n_earlier: int) -> None:
        """CostlyError if it costs more than COSTLY of what it brings.

        Facts count one each, lost ones for as many as they were sampled from; of skills the kept
        answers that fell. What an edit means to change is its own business: neither facts that it
        states anew nor tests of earlier edits count, and texts have no answers to count.
        """
        after = self.standings.again(before)
        found = weakened(before, after)
        lost = sum(one.what == "fact" for one in found)
        cost = n_earlier * lost / max(1, len(before.facts)) if lost >= LEAST_LOST else 0.0
        fell = {one.name for one in found if one.what == "task"}
        for step in before.steps:
            if step.kind == EDIT or step.kept is None or step.kept.kind == TEXT:
                continue
            if step.task in fell:
                drop = before.tasks[step.id] - after.tasks[step.id]
                cost += drop * len(step.kept.examples)
        new = [row.fact for row in report.rows if row.status == "edited"]
        asked = _sample(new)
        gain = len(new) * sum(self._judge.holds(asked)) / max(1, len(asked))
        if cost > COSTLY * gain:
            raise CostlyError(
                f"editing brought about {gain:.0f} of {len(new):,} facts and cost about {cost:.0f} "
                "facts and answers that were learnt before"
            )

    def _train(self, plan: Plan) -> Skill | None:
        task = plan.decision.trains
        if task is None:
            return None
        return self._judge.skills.learn(
            task,
            plan.strategy,
            settings=plan.settings or default_training(len(task.train), seed=plan.seed),
            adapter=plan.adapter,
            checkpoint=plan.checkpoint,
            seed=plan.seed,
            show=plan.show,
        )

    def _repair(self, plan: Plan, facts: Sequence[Fact], before: Standing) -> tuple[str, ...]:
        """Edits facts anew; kept only if more of the earlier facts hold with it than without."""
        held = sum(self.standings.again(before).facts.values())
        task, log = plan.decision.task, self._model.log
        with Transaction(log, plan.step, task=task, facts=facts, what=REPAIR) as transaction:
            self._edit(facts, plan.seed)
            if sum(self.standings.again(before).facts.values()) > held:
                transaction.done()
                return ()
            why = f"editing {len(facts)} weakened facts anew mended nothing and was taken back"
            transaction.take_back(why)
            return (why,)

    def _scores(
        self, plan: Plan, report: BatchReport | None, skill: Skill | None
    ) -> dict[str, float]:
        """Of the step itself; see `Outcome.scores`."""
        found: dict[str, float] = {}
        if report is not None:
            asked = _sample([row.fact for row in report.rows])
            found["facts"] = sum(self._judge.holds(asked)) / len(asked)
        if skill is not None:
            told = skill.details["score"]
            found |= {name: value for name, value in told.items() if value is not None}
        (step,) = (step for step in steps_of(self._model.log) if step.id == plan.step)
        tests = self.standings.of({}, [step]).tasks
        return found | ({"test": tests[step.id]} if tests else {})

    def _standing(self, overwritten: set[str]) -> tuple[Standing, int]:
        """How a sample of the facts, and the steps with tests, stand now; of how many facts."""
        steps = [step for step in steps_of(self._model.log) if step.active]
        facts = current_facts(self._model.log, steps)
        places = [place for place, fact in facts.items() if fact.sentence not in overwritten]
        sample = {place: facts[place] for place in evenly(places, KEPT)}
        return self.standings.of(sample, steps), len(places)


def _sample(facts: Sequence[Fact]) -> list[Fact]:
    """At most KEPT of the facts, spread over them."""
    n = min(KEPT, len(facts))
    return [facts[i * len(facts) // n] for i in range(n)]


def _untaken(report: BatchReport | None, scores: Mapping[str, float]) -> tuple[str, ...]:
    """What is worth knowing of facts that an edit did not bring about."""
    if report is None or scores["facts"] == 1:
        return ()
    return (
        f"{1 - scores['facts']:.0%} of the step's facts do not hold: the model may not know such "
        "names or words. Look at the entry, and roll the step back or train it instead.",
    )


def _evaluation(outcome: Outcome) -> dict[str, Any]:
    return {
        "step": outcome.step,
        "scores": dict(outcome.scores),
        "survival": survival_json(outcome.survival),
        "earlier": dict(outcome.earlier),
        "weakened": [asdict(one) for one in outcome.weakened],
        "repaired": list(outcome.repaired),
        "seconds": outcome.seconds,
    }


def _done(made: Material, report: BatchReport | None, seconds: float) -> Mapping[str, Any]:
    """What the log keeps of a step beside its entries."""
    task = made.task
    kind, labels = (COMPLETION, ()) if task is None else (task.kind, task.labels)
    # Without a test, what was trained can at least be asked for again.
    rows = made.test or (() if task is None or report is not None else task.train)
    kept = Kept.of(rows, kind, labels, None if task is None else task.max_tokens)
    edited = () if report is None else report.rows
    said = [row.fact for row in edited if row.status == "already said"]
    return {
        "kept": None if kept is None else kept.to_json(),
        "said": fact_json(said[:KEPT]),
        "seconds": seconds,
    }
