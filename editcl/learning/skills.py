"""Skills: what a model has learnt, as its log says; learning, predicting and taking back.

    model now = base weights + active edits,  and beside it the adapters of the active skills

Each call first brings the bank to the state of the log, bit for bit, so that whatever put an entry
there or took it out is heeded. Training runs by the loop of `train`; the adapter that it changed
goes to the log in one step with what its strategy keeps, and a training that fails leaves model,
bank and log as they were. Which skill a prompt is for is told, inferred, or left to a mixture: its
task is that of the nearest centroid of the base model's pooled states (CoLoR, arXiv:2311.17601), or
none, the base model, if that is too far.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from editcl.errors import EditclError, LogError
from editcl.learning.answers import (
    Answer,
    Way,
    around,
    best_labels,
    greedy,
    joined_score,
    next_log_probs,
    score_mixed,
)
from editcl.learning.batches import Encoded, encode_prompts, visible
from editcl.learning.callbacks import Callback
from editcl.learning.centroids import centroids_of
from editcl.learning.checkpoint import Checkpoint
from editcl.learning.kinds import AdapterSettings
from editcl.learning.lora import Adapters
from editcl.learning.predict import TaskScore, encode_test, score_task, score_with
from editcl.learning.records import Content, Makers, details_of
from editcl.learning.runs import encode_rows
from editcl.learning.session import Session
from editcl.learning.settings import TrainSettings
from editcl.learning.shelf import Claim, Shelf
from editcl.learning.strategies import Strategy, title
from editcl.learning.strategies.base import SHARED
from editcl.learning.tasks import CLASSIFICATION, TEXT, Task
from editcl.learning.train import train
from editcl.log.report import RollbackReport
from editcl.log.skill import Skill
from editcl.model import EditableModel

INFER, MIXTURE, TOLD = "infer", "mixture", "told"
RESERVED = (INFER, MIXTURE, TOLD, SHARED)


class Skills:
    """The skills of one model; open the same log anywhere and they are back. Not thread-safe.

    Args:
        model: with its log; its weights are not trained.
        strategies: what makes strategies that can't be made from their plain settings, by title.
    """

    def __init__(self, model: EditableModel, *, strategies: Makers | None = None) -> None:
        self.model = model
        self._shelf = Shelf(model, dict(strategies or {}))
        self._shelf.sync()

    def __repr__(self) -> str:
        listed = ", ".join(f"{s.task} ({s.strategy})" for s in self.active)
        return f"Skills({self.model.name}: {listed or 'none'})"

    @property
    def active(self) -> tuple[Skill, ...]:
        """The skills in use, in log order, older versions of an adapter included."""
        return self._shelf.active

    @property
    def tasks(self) -> tuple[str, ...]:
        """What has been learnt and not been taken back, in order."""
        return tuple(skill.task for skill in self.active)

    @property
    def adapters(self) -> Adapters:
        """The bank, as the log has it now; look, and leave changing it to `learn`."""
        self._shelf.sync()
        return self._shelf.adapters

    # -- learning and taking back -----------------------------------------------------------------

    def check(self, task: Task, strategy: str | Strategy = "per_task") -> None:
        """Whether a task could be learnt now: its name is free, and all of its rows fit the model.

        Raises:
            EditclError: it couldn't, or there is no such strategy.
        """
        self._shelf.learner(strategy)
        self._check_name(task)
        encode_rows(self.model, task)
        if task.test:
            encode_test(self.model, task)

    def learn(
        self,
        task: Task,
        strategy: str | Strategy = "per_task",
        *,
        settings: TrainSettings | None = None,
        adapter: AdapterSettings | None = None,
        checkpoint: Checkpoint | Path | None = None,
        callbacks: Sequence[Callback] = (),
        seed: int = 0,
        show: bool = True,
    ) -> Skill:
        """Learns a task and puts what it became into the log, in one step.

        Args:
            task: of a name that no active skill has.
            strategy: a name in STRATEGIES, or a fresh strategy, which is copied. It goes on from
                what it kept of its earlier tasks, with the hyperparameters that it had.
            settings: of the training.
            adapter: settings of a new adapter; by default those that the strategy had before.
            checkpoint: keeps the training in a folder, from which the same call goes on.
            callbacks: get plain numbers.
            seed: of everything random but what `settings.seed` is of.
            show: draws a progress bar in terminals.

        Returns:
            The log's entry; `details["score"]` has the task's score before and after.

        Raises:
            EditclError: the task is unfit, or its name taken; or the strategy would write over
                what another one has learnt, or over an adapter of other settings. All is as before.
        """
        shelf = self._shelf
        shelf.sync()
        self.check(task, strategy)
        learner = shelf.learner(strategy)
        session = shelf.session(title(learner), adapter, seed)
        watch = Claim(shelf, session, title(learner), adapter)
        settings = settings or TrainSettings()
        if isinstance(checkpoint, Path):
            checkpoint = Checkpoint(checkpoint)
        try:
            scores = {"before": _score(session, learner, task)}
            result = train(
                session,
                task,
                learner,
                settings,
                callbacks=[watch, *callbacks],
                checkpoint=checkpoint,
                show=show,
            )
            scores["after"] = _score(session, learner, task)
            bank, slot = shelf.adapters, watch.slot
            content = Content(bank.state(slot), learner.tensors(), *centroids_of(session, task))
            details = details_of(
                task, learner, settings, result, on=watch.beside, scores=scores, seed=seed
            )
            skill = self.model.log.append_skill(
                content.tensors(),
                task=task.name,
                slot=slot,
                settings=bank.settings(slot).to_json(),
                strategy=title(learner),
                details=details,
                seconds=result.seconds,
            )
        except BaseException:
            shelf.reset()
            raise
        shelf.note(skill, content)
        return skill

    def rollback(self, what: str | Skill) -> RollbackReport:
        """Takes a skill out of use: predictions are, bit for bit, those without it.

        Args:
            what: the name of a task, a skill or its id.

        Raises:
            LogError: there is none, it is out already, or a later one was trained on top of it.
        """
        chosen = self.check_rollback(what)
        report = self.model.log.rollback(chosen)
        self._shelf.sync()
        return report

    def check_rollback(self, what: str | Skill) -> Skill:
        """The skill that `rollback` would take back.

        Raises:
            LogError: it can't be taken back alone; see `rollback`.
        """
        self._shelf.sync()
        chosen = self._shelf.find(what)
        later = [skill for skill in self.active if chosen.slot in skill.details["on"]]
        if later:
            names = ", ".join(f"{skill.id} ({skill.task})" for skill in later)
            raise LogError(
                f"{names} learnt beside the adapter of {chosen.id} ({chosen.task}), which can't go "
                f"alone: roll back {later[-1].id} first, or use rollback_to with the entry before."
            )
        return chosen

    def rollback_to(self, entry: Any) -> RollbackReport:
        """Takes back every skill and edit after an entry ("start": all of them).

        Args:
            entry: a skill or edit, its id, or the name of a task (its last skill), which stays.

        Raises:
            LogError: there is no such entry.
        """
        report = self.model.log.rollback_to(entry)
        self._shelf.sync()
        return report

    # -- predicting -------------------------------------------------------------------------------

    def predict(
        self,
        texts: Sequence[str],
        task: str | None = INFER,
        *,
        max_new_tokens: int = 16,
        weights: Mapping[str, float] | None = None,
        abstain: float | None = None,
    ) -> list[Answer]:
        """Answers prompts, in batches.

        Args:
            texts: prompts as the examples of the tasks have them.
            task: the name of a learnt task; "infer" to find the task of each prompt; "mixture" for
                the mean of all skills' next-token distributions; None for the model without skills.
            max_new_tokens: of answers that are no labels.
            weights: of a mixture, by task; by default all alike.
            abstain: where tasks are inferred: a prompt farther than so many radii from the nearest
                centroid goes to the model without skills.

        Raises:
            EditclError: there is no such task, or nothing to infer or to mix.
        """
        found: dict[int, Answer] = {}
        for name, chosen, rows in self._parts(texts, task, weights, abstain):
            own = [texts[i] for i in chosen]
            told = self._told(name)
            ways = self._ways(name, rows, weights)
            if told and all(skill.details["kind"] == CLASSIFICATION for skill in told):
                labels = dict.fromkeys(label for s in told for label in s.details["labels"])
                said = best_labels(ways, own, list(labels), max_tokens=_longest(told))
            else:
                decode = self.model.tokenizer.decode
                said = [
                    (decode(ids, skip_special_tokens=True).strip(), log_prob)
                    for ids, log_prob in greedy(ways, rows, max_new_tokens)
                ]
            named = None if name == MIXTURE else name
            for i, text, (answer, log_prob) in zip(chosen, own, said, strict=True):
                found[i] = Answer(text, answer, log_prob, named)
        return [found[i] for i in range(len(texts))]

    def next_token(
        self,
        texts: Sequence[str],
        task: str | None = INFER,
        *,
        weights: Mapping[str, float] | None = None,
        abstain: float | None = None,
    ) -> Float[Tensor, "n_rows d_vocab"]:
        """Log-probabilities of the token behind each prompt; arguments as those of `predict`."""
        found = torch.zeros(len(texts), self.model.d_vocab)
        for name, chosen, rows in self._parts(texts, task, weights, abstain):
            found[chosen] = next_log_probs(self._ways(name, rows, weights), rows)
        return found

    def infer(self, texts: Sequence[str], *, abstain: float | None = None) -> list[str | None]:
        """The task that each prompt is taken for; None, with `abstain`, if it is too far."""
        self._shelf.sync()
        return self._shelf.nearest(encode_prompts(self.model, texts), abstain)

    def ways(
        self, rows: Sequence[Encoded], task: str | None = INFER, *, abstain: float | None = None
    ) -> Iterator[tuple[list[int], Way]]:
        """Which rows go which way, for what runs rows through adapters by itself.

        Args:
            rows: encoded prompts, with or without targets.
            task: a learnt task, "infer", or None for the model without skills.
            abstain: as in `predict`.
        """
        self._shelf.sync()
        names = [task] * len(rows) if task != INFER else self._shelf.nearest(rows, abstain)
        for name, chosen in _grouped(names).items():
            (way,) = self._ways(name, [rows[i] for i in chosen])
            yield chosen, way

    def evaluate(
        self, task: Task, using: str | None = TOLD, *, abstain: float | None = None
    ) -> TaskScore:
        """Judges the test of a task.

        Args:
            task: learnt or not.
            using: "told" for the skill of the task's own name, or the name of another; "infer",
                "mixture", or None for the model without skills.
            abstain: as in `predict`.

        Raises:
            EditclError: that was not learnt, the task has no test, or plain texts are to be
                inferred or mixed.
        """
        self._shelf.sync()
        rows = visible(encode_test(self.model, task), task.kind)
        if using not in (INFER, MIXTURE):
            (way,) = self._ways(task.name if using == TOLD else using, rows)
            with around(way):
                return score_task(way.session, task, way.route)
        if task.kind == TEXT:
            raise EditclError("plain texts are judged by the skill of one task: name it.")
        if using == MIXTURE:
            return score_mixed(self._ways(MIXTURE, rows), task)
        found: dict[int, tuple[bool, float, str]] = {}
        for name, chosen in _grouped(self._shelf.nearest(rows, abstain)).items():
            part = replace(task, test=tuple(task.test[i] for i in chosen))
            (way,) = self._ways(name, [rows[i] for i in chosen])
            with around(way):
                own = score_task(way.session, part, way.route)
            said = own.predicted or ("",) * len(chosen)
            found |= zip(chosen, zip(own.correct, own.log_probs, said, strict=True), strict=True)
        return joined_score([found[i] for i in range(len(rows))], task)

    # -- helpers ----------------------------------------------------------------------------------

    def _check_name(self, task: Task) -> None:
        if task.name in RESERVED:
            raise EditclError(f"a task can't be called {task.name!r} here; rename it.")
        for skill in self.active:
            if skill.task == task.name:
                raise EditclError(
                    f"a task {task.name!r} has been learnt ({skill.id}, {skill.strategy}): roll it "
                    "back first, or name this one otherwise."
                )

    def _parts(
        self,
        texts: Sequence[str],
        task: str | None,
        weights: Mapping[str, float] | None,
        abstain: float | None,
    ) -> list[tuple[str | None, list[int], list[Encoded]]]:
        """What is answered together: the task, and which texts they are, as rows."""
        self._shelf.sync()
        if isinstance(texts, str):
            raise EditclError("a list of texts is answered; put the text in brackets.")
        if weights is not None and task != MIXTURE:
            raise EditclError("weights are of a mixture; leave them out.")
        if not texts:
            return []
        rows = encode_prompts(self.model, texts, max_tokens=_longest(self._told(task)))
        if task != INFER:
            return [(task, list(range(len(texts))), rows)]
        groups = _grouped(self._shelf.nearest(rows, abstain)).items()
        return [(name, chosen, [rows[i] for i in chosen]) for name, chosen in groups]

    def _told(self, task: str | None) -> list[Skill]:
        """The skills that may answer."""
        if task is None:
            return []
        if task in (INFER, MIXTURE):
            return list(self.active)
        return [self._shelf.of_task(task)]

    def _ways(
        self,
        task: str | None,
        rows: Sequence[Encoded],
        weights: Mapping[str, float] | None = None,
    ) -> list[Way]:
        if task == MIXTURE:
            return self._shelf.mixture(rows, weights)
        return [self._shelf.way(None if task is None else self._shelf.of_task(task), rows)]


def _score(session: Session, strategy: Strategy, task: Task) -> float | None:
    return score_with(session, strategy, task).score if task.test else None


def _longest(skills: Sequence[Skill]) -> int | None:
    """The shortest of the rows that the tasks were cut to."""
    return min((s.details["max_tokens"] for s in skills if s.details["max_tokens"]), default=None)


def _grouped(names: Sequence[str | None]) -> dict[str | None, list[int]]:
    return {
        name: [i for i, own in enumerate(names) if own == name] for name in dict.fromkeys(names)
    }
