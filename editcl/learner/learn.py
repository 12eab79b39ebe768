"""Learner: learns whatever comes, by edit, training or both, and can take every step back.

    model now = base weights + active edits, beside it the adapters of active skills
    each prompt goes to the adapter of the nearest skill, or to the base model if that is too far

A step is: decide, put the entries into the log as one transaction, measure what earlier steps have
lost, repair it if asked to. All of it goes into the log, and nothing is kept elsewhere: a Learner
on the same log in a new process knows the same. Knows no method's equation and no router's rule.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from editcl.errors import EditclError, LogError
from editcl.evaluation.damage import damage, general_texts
from editcl.facts import Fact
from editcl.learner.deciding import AUTO, check_method, decide, trained_instead
from editcl.learner.judge import Judge, current_facts
from editcl.learner.making import CostlyError, Maker, Plan
from editcl.learner.outcome import Evaluated, Outcome
from editcl.learner.settings import ABSTAIN, EditSettings
from editcl.learner.steps import DECISION, EVALUATION, Step, steps_of
from editcl.learner.transaction import recover
from editcl.learning.answers import Answer
from editcl.learning.kinds import AdapterSettings
from editcl.learning.records import Makers
from editcl.learning.settings import TrainSettings
from editcl.learning.skills import Skills
from editcl.learning.strategies import Strategy
from editcl.learning.tasks import Example, Task
from editcl.log import EditLog, RollbackReport, Skill
from editcl.model import EditableModel
from editcl.routing.decision import ABSTAIN as ABSTAINS
from editcl.routing.decision import FULL, TRAIN, Decision
from editcl.routing.material import Material, material, whole_task


class Learner:
    """What one model has learnt, by its log; open the same log anywhere and it is back.

    Opening rolls back what a process that died has left half done. Not thread-safe.

    Args:
        model: with its log.
        abstain: prompts farther than so many radii from the nearest skill's centroid go to the
            model without skills; None: every prompt goes to a skill.
        edits: how facts are edited.
        strategies: what makes strategies that can't be made from their plain settings, by title.
    """

    def __init__(
        self,
        model: EditableModel,
        *,
        abstain: float | None = ABSTAIN,
        edits: EditSettings | None = None,
        strategies: Makers | None = None,
    ) -> None:
        self.model, self.abstain = model, abstain
        self.edits = edits or EditSettings()
        recover(model.log)
        self.skills = Skills(model, strategies=strategies)
        self._judge = Judge(self.skills, abstain)
        self._maker = Maker(self._judge, self.edits)

    def __repr__(self) -> str:
        listed = ", ".join(f"{step.task} ({step.kind})" for step in self.history() if step.active)
        return f"Learner({self.model.name}: {listed or 'nothing'})"

    @property
    def log(self) -> EditLog:
        """The model's log."""
        return self.model.log

    # -- learning ---------------------------------------------------------------------------------

    def learn(
        self,
        task: object,
        method: str = "auto",
        *,
        name: str | None = None,
        strategy: str | Strategy = "per_task",
        settings: TrainSettings | None = None,
        adapter: AdapterSettings | None = None,
        budget: str = FULL,
        repair: bool = False,
        checkpoint: Path | None = None,
        seed: int = 0,
        show: bool = True,
    ) -> Outcome:
        """Learns a task, wholly or not at all.

        With "auto", an edit that takes more of what was learnt before than half of what it brings
        is taken back, and the task trained instead, if it can be; the log keeps both steps.

        Args:
            task: a Task, facts, examples or pairs, a text, or the Path of a file; see `material`.
            method: "auto", or what to do whatever the router would say: "edit", "train", "split".
            name: of the task; by default its own.
            strategy: of a training.
            settings: of a training; by default those of `default_training`.
            adapter: settings of a new adapter.
            budget: of the decision, "full" or "cheap".
            repair: edit facts anew that this step has weakened.
            checkpoint: keeps a training in a folder, from which the same call goes on.
            seed: of everything random.
            show: draws progress bars in terminals.

        Returns:
            What came of it. Of a decision to abstain nothing but the decision, with a question.

        Raises:
            EditclError: the task is unfit, its name taken, or the method not possible; weights,
                skills and history are as they were, but for a note that the step failed.
        """
        started = time.perf_counter()
        check_method(method)
        recover(self.log)
        made = self._material(task, method, name)
        self._check_name(made.name)
        decision = decide(self.model, made, method, budget=budget, seed=seed, show=show)
        if decision.trains is not None:
            self.skills.check(decision.trains, strategy)
        # What an edit that costs too much would be trained as; None: it is not weighed.
        whole = whole_task(made) if method == AUTO and decision.facts else None
        plan = Plan(
            made=made,
            decision=decision,
            step=self._note(method, decision),
            strategy=strategy,
            settings=settings,
            adapter=adapter,
            seed=seed,
            show=show,
            checkpoint=checkpoint,
            weigh=whole is not None,
        )
        if decision.kind == ABSTAINS:
            seconds = time.perf_counter() - started
            return Outcome(made.name, ABSTAINS, decision, plan.step, seconds=seconds)
        try:
            return self._maker.make(plan, repair=repair, started=started)
        except CostlyError as error:
            assert whole is not None, "only what can be trained is weighed"
            other = trained_instead(decision, made, whole, str(error))
            assert other.trains is not None, "it trains"
            self.skills.check(other.trains, strategy)
            again = replace(plan, decision=other, step=self._note(method, other), weigh=False)
            return self._maker.make(again, repair=repair, started=started)

    def _note(self, method: str, decision: Decision) -> str:
        """The id of the note that a decision becomes, and of the step that follows."""
        return self.log.note(DECISION, {"method": method, "decision": decision.to_json()}).id

    def _material(self, task: object, method: str, name: str | None) -> Material:
        """What is to be learnt; a task that is trained as it is needs no look for facts.

        Nor is it refused for two answers to one prompt, which are noise that a training bears.
        """
        if method != TRAIN or not isinstance(task, Task):
            return material(task, name=name, model=self.model)
        none = (None,) * len(task.train)
        return Material(name or task.name, task.train, task.test, none, task)

    def _check_name(self, name: str) -> None:
        for step in self.history():
            if step.task == name and step.active and step.entries:
                raise EditclError(
                    f"a task {name!r} has been learnt ({step.id}, {step.kind}): roll it back "
                    "first, or give this one another name (name=...)."
                )

    # -- taking back ------------------------------------------------------------------------------

    def history(self) -> tuple[Step, ...]:
        """All steps in order, as the log tells of them, whichever process made them."""
        return steps_of(self.log)

    def rollback(self, task: str) -> RollbackReport:
        """Takes a step's edits and skill back; the others stay.

        Args:
            task: its name, or the id of the step.

        Raises:
            LogError: no active step is called so, or a later skill was trained on top of it.
        """
        recover(self.log)
        step = self._step(task)
        active = [self.log.get(name) for name in step.entries if self.log.active(name)]
        if not active:
            raise LogError(f"{step.task!r} ({step.id}) changed nothing that could be rolled back.")
        for entry in active:
            if isinstance(entry, Skill):
                self.skills.check_rollback(entry)
        return self.log.rollback(active)

    def rollback_to(self, entry: str) -> RollbackReport:
        """Takes back every edit and skill after an entry or a step, which stays.

        Args:
            entry: an id of the log, the name of a task, the id of a step, or "start".

        Raises:
            LogError: there is no such entry or step.
        """
        recover(self.log)
        if entry != "start" and entry not in self.log:
            at = self._step(entry).at
            entry = self.log.timeline[at - 1].id if at else "start"
        return self.log.rollback_to(entry)

    def _step(self, task: str) -> Step:
        known = [step for step in self.history() if step.active]
        for step in reversed(known):
            if task in (step.task, step.id):
                return step
        listed = ", ".join(step.task for step in known) or "none yet"
        raise LogError(f"no active step is called {task!r}; learnt are {listed}.")

    # -- asking -----------------------------------------------------------------------------------

    def predict(
        self, texts: Sequence[str], task: str | None = None, *, max_new_tokens: int = 16
    ) -> list[Answer]:
        """Answers prompts.

        Args:
            texts: prompts.
            task: the name of a learnt task; None: the skill is inferred, or none, for each prompt.
            max_new_tokens: of answers that are no labels.

        Raises:
            LogError: there is no such task.
        """
        return self._judge.predict(texts, self._told(task), max_new_tokens)

    def correct(
        self, examples: Sequence[Example], labels: Sequence[str] = (), task: str | None = None
    ) -> list[bool]:
        """Whether each completion is what the model would answer; see `Judge.correct`."""
        return self._judge.correct(examples, labels, self._told(task))

    def holds(self, facts: Sequence[Fact]) -> list[bool]:
        """Whether facts hold, each prompt going where inference sends it."""
        return self._judge.holds(facts)

    def evaluate(self) -> Evaluated:
        """How everything that was learnt stands now; goes into the log."""
        started = time.perf_counter()
        steps = [one for one in self.history() if one.active and one.kept is not None]
        found = Evaluated(
            tasks=dict(self._maker.standings.of({}, steps).by_name()),
            survival=self._judge.survival([*current_facts(self.log, self.history()).values()]),
            damage=damage(self.model),
            bleed=self._judge.bleed(general_texts()),
            seconds=time.perf_counter() - started,
        )
        self.log.note(EVALUATION, found.to_json())
        return found

    def _told(self, task: str | None) -> str | None:
        return task if task is None or task in self.skills.tasks else self._step(task).task
