"""Shelf: the bank of adapters in step with the log, and how each skill is used.

    bank = the newest active version of each adapter (slot) in the log, and nothing else

A strategy is made anew whenever it is needed, from the newest active skill that it trained: so the
state of the log is all that there is, also where something was taken back. What a strategy has
trained is its line; lines live side by side. Knows nothing of training.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from editcl.errors import EditclError, LogError
from editcl.learning.answers import Way
from editcl.learning.batches import Encoded
from editcl.learning.callbacks import Callback
from editcl.learning.kinds import AdapterSettings
from editcl.learning.lora import Adapters
from editcl.learning.records import Content, Makers, plain, remade
from editcl.learning.session import Route, Session
from editcl.learning.strategies import STRATEGIES, Strategy, title
from editcl.log.skill import Skill
from editcl.model import EditableModel

STRIDE = 7919  # between the seeds of one task and the next


class Shelf:
    """What is active now.

    Args:
        model: with its log.
        makers: what makes strategies that can't be made from their plain settings, by title.
    """

    def __init__(self, model: EditableModel, makers: Makers) -> None:
        self.model, self.makers = model, makers
        self.adapters = Adapters(model)
        self._loaded: dict[str, Skill] = {}
        self._kept: dict[Skill, Content] = {}

    # -- in step with the log ---------------------------------------------------------------------

    @property
    def active(self) -> tuple[Skill, ...]:
        """The active skills in log order, older versions of an adapter included."""
        log = self.model.log
        return tuple(skill for skill in log.skills if log.active(skill))

    def sync(self) -> None:
        """Makes the bank hold what the log says.

        Raises:
            EditclError: the log has an active skill that `Skills.learn` hasn't written, or that
                doesn't fit the model; or one was trained beside another that is out.
        """
        newest = {skill.slot: skill for skill in self.model.log.active_skills()}
        for name in self.adapters.names:
            if name not in newest:
                self.adapters.remove(name)
        for slot, skill in newest.items():
            if self._loaded.get(slot) == skill and slot in self.adapters.names:
                continue
            settings = AdapterSettings.from_json(skill.settings)
            if slot in self.adapters.names and self.adapters.settings(slot) != settings:
                self.adapters.remove(slot)
            self.adapters.load(slot, settings, self._read(skill).adapter)
            self._loaded[slot] = skill
        active = self.active
        self._loaded = {slot: s for slot, s in self._loaded.items() if slot in newest}
        self._kept = {skill: content for skill, content in self._kept.items() if skill in active}
        for skill in active:
            missing = [name for name in skill.details.get("on", ()) if name not in newest]
            if missing:
                raise LogError(
                    f"{skill.id} ({skill.task}) was trained beside the adapter {missing[0]!r}, "
                    f"which is rolled back: put it back (model.log.reapply({missing[0]!r})), or "
                    f"roll {skill.id} back too."
                )

    def reset(self) -> None:
        """Forgets what the bank holds: the next `sync` loads all of it from the log."""
        self._loaded = {}

    def note(self, skill: Skill, content: Content) -> None:
        """Takes down that a new skill's adapter is in the bank already."""
        self._loaded[skill.slot] = skill
        self._kept[skill] = replace(content, adapter={})

    def content(self, skill: Skill) -> Content:
        """What an entry holds beside its adapter."""
        if skill not in self._kept:
            self._read(skill)
        return self._kept[skill]

    def _read(self, skill: Skill) -> Content:
        found = Content.of(skill, self.model.log.skill_tensors(skill))
        self._kept[skill] = replace(found, adapter={})
        return found

    # -- finding ----------------------------------------------------------------------------------

    def of_task(self, task: str) -> Skill:
        """The active skill of a task."""
        for skill in self.active:
            if skill.task == task:
                return skill
        known = ", ".join(skill.task for skill in self.active) or "none yet"
        raise LogError(f"no active skill is of a task {task!r}; learnt are {known}.")

    def find(self, what: str | Skill) -> Skill:
        """The active skill of a task, or any by itself or its id."""
        if isinstance(what, str) and what not in self.model.log:
            return self.of_task(what)
        found = self.model.log.get(what)
        if not isinstance(found, Skill):
            raise LogError(f"{found.id} is an edit; model.log.rollback takes it back.")
        return found

    # -- strategies -------------------------------------------------------------------------------

    def line(self, name: str) -> list[Skill]:
        """The active skills that a strategy has trained."""
        return [skill for skill in self.active if skill.strategy == name]

    def learner(self, strategy: str | Strategy) -> Strategy:
        """A strategy with what it kept of its active tasks.

        Raises:
            EditclError: there is none of that name, or it had other hyperparameters.
        """
        if isinstance(strategy, Strategy):
            found = copy.deepcopy(strategy)
        elif strategy in STRATEGIES:
            found = STRATEGIES[strategy]()
        else:
            listed = ", ".join(STRATEGIES)
            raise EditclError(f"there is no strategy {strategy!r}; choose one of {listed}.")
        line = self.line(title(found))
        if line:
            had, wanted = line[-1].details["strategy"]["settings"], plain(found.settings())
            if had != wanted:
                raise EditclError(
                    f"{title(found)} learnt {line[-1].task!r} with {had}, and shall go on with "
                    f"{wanted}: give it those that it had, or roll that skill back."
                )
            self._restore(found, line[-1])
        return found

    def session(self, name: str, adapter: AdapterSettings | None = None, seed: int = 0) -> Session:
        """A session that has seen the active tasks of a strategy."""
        line = self.line(name)
        if adapter is None:
            adapter = AdapterSettings.from_json(line[-1].settings) if line else AdapterSettings()
        seen = [skill.task for skill in line]
        found = Session(self.model, self.adapters, adapter, seed=seed, seen=seen)
        found.generator.manual_seed(seed + STRIDE * len(seen))
        return found

    def _restore(self, strategy: Strategy, skill: Skill) -> None:
        kept = {name: tensor.clone() for name, tensor in self.content(skill).strategy.items()}
        strategy.load(kept, skill.details["strategy"]["state"])

    # -- ways -------------------------------------------------------------------------------------

    def way(self, skill: Skill | None, rows: Sequence[Encoded]) -> Way:
        """How a skill is used for rows; None: the model without skills."""
        if skill is None:
            return Way(self.session(""), None, Route())
        newest = self.line(skill.strategy)[-1]
        strategy = remade(newest, self.makers)
        self._restore(strategy, newest)
        session = self.session(skill.strategy)
        return Way(session, strategy, strategy.adapters_for(session, skill.task, rows))

    def mixture(self, rows: Sequence[Encoded], weights: Mapping[str, float] | None) -> list[Way]:
        """The ways of all active skills, weighted by task; all alike without weights.

        Raises:
            EditclError: nothing is active, or the weights are no weights of active tasks.
        """
        skills = {skill.task: skill for skill in self.active}
        if not skills:
            raise EditclError("no skill is active, so there is nothing to mix.")
        weights = dict.fromkeys(skills, 1.0) if weights is None else weights
        for task, weight in weights.items():
            if task not in skills or not 0 <= weight < float("inf"):
                raise EditclError(
                    f"{task!r} can't have the weight {weight!r}: give each a number of at least 0; "
                    f"active are {', '.join(skills)}."
                )
        if not sum(weights.values()) > 0:
            raise EditclError("all weights are 0, so there is nothing to mix.")
        ways: dict[tuple[str, Route], Way] = {}
        for task, weight in weights.items():
            if weight:
                way = self.way(skills[task], rows)
                key = skills[task].strategy, way.route  # tasks that share adapters run once
                weight += ways[key].weight if key in ways else 0.0
                ways[key] = replace(way, weight=weight)
        return list(ways.values())

    def nearest(self, rows: Sequence[Encoded], abstain: float | None = None) -> list[str | None]:
        """For each row the active task with the nearest centroid.

        Args:
            rows: whose prompts count.
            abstain: None (no task) for rows that are farther than so many radii of the nearest
                centroid; if this is None, no row is too far.

        Raises:
            EditclError: nothing is active, or a skill was logged without radii.
        """
        skills = self.active
        if not skills:
            raise EditclError("no skill is active, so no task can be inferred. Learn one first.")
        content = [self.content(skill) for skill in skills]
        centroids = torch.cat([one.centroids for one in content])
        owner = [s.task for s, own in zip(skills, content, strict=True) for _ in own.centroids]
        found = torch.cdist(self.session("").features(rows), centroids).min(1)
        names: list[str | None] = [owner[i] for i in found.indices.tolist()]
        if abstain is None:
            return names
        if not abstain > 0:
            raise EditclError(f"a distance of {abstain!r} abstains always; give > 0 or None.")
        limit = abstain * torch.cat([_radius(*pair) for pair in zip(skills, content, strict=True)])
        far = (found.values > limit[found.indices]).tolist()
        return [None if out else name for name, out in zip(names, far, strict=True)]


def _radius(skill: Skill, content: Content) -> Tensor:
    if content.radius is None:
        raise EditclError(
            f"{skill.id} ({skill.task}) was logged without the radii that abstaining goes by: "
            "learn it anew, or leave abstain at None."
        )
    return content.radius


class Claim(Callback):
    """Sees which adapters a training is about to change, before its first step."""

    def __init__(
        self, shelf: Shelf, session: Session, line: str, adapter: AdapterSettings | None
    ) -> None:
        self._bank, self._session = shelf.adapters, session
        self._line, self._wanted = line, adapter
        self._owners = {skill.slot: skill for skill in shelf.active}
        self.slot = ""
        self.beside: tuple[str, ...] = ()

    def on_start(self, info: Mapping[str, Any]) -> None:
        """Refuses to write over what is not the strategy's own.

        Raises:
            EditclError: the adapter is another strategy's, or has other settings than asked for.
        """
        trained = {key.partition("/")[0] for key in self._session.training}
        slots = [name for name in self._bank.names if name in trained]
        if len(slots) != 1:
            raise EditclError(
                f"{info['strategy']} trains {len(slots)} adapters at once ({', '.join(slots)}); a "
                "log entry is of one. Use evaluate_stream, which needs no log."
            )
        self.slot = slots[0]
        self.beside = tuple(name for name in self._session.active if name != self.slot)
        owner = self._owners.get(self.slot)
        if owner is not None and owner.strategy != self._line:
            raise EditclError(
                f"{self._line} would train on the adapter {self.slot!r}, which holds what "
                f"{owner.strategy} has learnt ({owner.id}: {owner.task}). Go on with that "
                "strategy, roll its skills back, or keep another log."
            )
        if owner is not None and self._wanted is not None:
            has = self._bank.settings(self.slot)
            if has != self._wanted:
                raise EditclError(
                    f"the adapter {self.slot!r} that {self._line} goes on training has other "
                    f"settings ({has}) than those asked for ({self._wanted}). Leave them out."
                )
