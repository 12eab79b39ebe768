"""The history of a log: which edits and skills there are, and what of them is active.

Active is what the fold of the events says: an edit starts with all its facts active, a rollback
takes some out, a reapply puts some back; a skill is in or out as a whole. A column of an edit is
active with the fact that owns it; facts that share columns go together or not at all. This module
knows nothing of weights and files.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from editcl.errors import LogError
from editcl.facts import Fact
from editcl.log.entry import EDIT, NOTE, ROLLBACK, SKILL, Edit, Event
from editcl.log.skill import Note, Skill, broken_chain
from editcl.update import SHARED

Entry: TypeAlias = Edit | Skill
Target: TypeAlias = str | Entry | Fact | tuple[str | Edit, int] | Iterable[Any]  # of targets
Columns: TypeAlias = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class History:
    """Edits, skills and events in log order; a new one is made for every step.

    Attributes:
        edits: by id, in log order.
        active: by id of edits and skills, in the one order of both: whether each fact of the edit
            is in the weights, or whether the skill is active.
        events: what was taken out and put back.
        skills: by id, in log order.
        notes: in log order.
    """

    edits: Mapping[str, Edit] = field(default_factory=dict)
    active: Mapping[str, tuple[bool, ...]] = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    skills: Mapping[str, Skill] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()

    def with_edit(self, edit: Edit) -> History:
        """The history after an edit."""
        if edit.id in self.edits:
            raise ValueError(f"two entries are named {edit.id}")
        return replace(
            self,
            edits={**self.edits, edit.id: edit},
            active={**self.active, edit.id: (True,) * len(edit.facts)},
        )

    def with_skill(self, skill: Skill) -> History:
        """The history after a skill; ValueError if it was trained on another state than this."""
        if skill.parents != self.active_skills() or skill.edits != self.active_edits():
            raise ValueError("it names other skills or edits than were active before it")
        return replace(
            self,
            skills={**self.skills, skill.id: skill},
            active={**self.active, skill.id: (True,)},
        )

    def with_note(self, note: Note) -> History:
        """The history after a note."""
        return replace(self, notes=(*self.notes, note))

    def with_event(self, event: Event) -> History:
        """The history after a rollback or reapply; ValueError if it does not fit."""
        active = dict(self.active)
        for name, indices in event.columns.items():
            if name not in active:
                raise ValueError(f"{event.id} names the unknown entry {name}")
            flags = list(active[name])
            for j in indices:
                if not 0 <= j < len(flags) or flags[j] != (event.action == ROLLBACK):
                    raise ValueError(f"{event.id} does not fit fact {j} of {name}")
                flags[j] = not flags[j]
            if name in self.edits and self.edits[name].joint and any(flags) != all(flags):
                raise ValueError(f"{event.id} parts facts of {name} that share columns")
            active[name] = tuple(flags)
        problem = broken_chain(self.skills, {name: active[name][0] for name in self.skills})
        if problem:
            raise ValueError(f"{event.id}: {problem}")
        return replace(self, active=active, events=(*self.events, event))

    @property
    def timeline(self) -> tuple[Entry, ...]:
        """Edits and skills in one order."""
        return tuple(self.edits.get(name) or self.skills[name] for name in self.active)

    def active_skills(self) -> tuple[str, ...]:
        """Ids of the skills that are active, older versions of an adapter included."""
        return tuple(name for name in self.skills if self.active[name][0])

    def active_edits(self) -> dict[str, tuple[int, ...]]:
        """For each edit that is active in part, the indices of its active facts."""
        found = {
            name: tuple(j for j, on in enumerate(self.active[name]) if on) for name in self.edits
        }
        return {name: indices for name, indices in found.items() if indices}

    def active_columns(self, entry: str, parameter: str) -> tuple[bool, ...]:
        """For each column of an entry's change of a matrix, whether it is in the weights."""
        facts = self.active[entry]
        owner = self.edits[entry].owners.get(parameter)
        if owner is None:
            return facts
        some = any(facts)
        return tuple(some if j == SHARED else facts[j] for j in owner)

    def next_id(self, kind: str) -> str:
        """The id that the next record of a kind gets: e0001, ... for edits, r0001, ... else."""
        kinds = {EDIT: ("e", self.edits), SKILL: ("s", self.skills), NOTE: ("n", self.notes)}
        letter, same = kinds.get(kind, ("r", self.events))
        return f"{letter}{len(same) + 1:04d}"

    def find(self, what: str | Entry) -> Entry:
        """The entry by id, or the entry that a receipt stands for.

        Raises:
            LogError: there is none, or the receipt is another log's.
        """
        name = what if isinstance(what, str) else what.id
        entry = self.edits.get(name) or self.skills.get(name)
        if entry is None:
            known = ", ".join([*self.active][-3:]) or "none yet"
            raise LogError(
                f"the log has no entry {name!r} (it holds {len(self.active)}; the last: {known}). "
                "model.log.timeline lists them."
            )
        if not isinstance(what, str) and what != entry:
            own = repr(entry.sentences[0]) if isinstance(entry, Edit) else repr(entry.task)
            raise LogError(
                f"{name} of this log is another entry ({own}): the receipt comes from a different "
                "log. Pass an entry of model.log.timeline."
            )
        return entry

    def find_edit(self, what: str | Edit) -> Edit:
        """The same, of edits only."""
        entry = self.find(what)
        if isinstance(entry, Skill):
            raise LogError(f"{entry.id} is a skill ({entry.task!r}) and has no facts.")
        return entry

    def columns(self, what: Target, *, active: bool) -> Columns:
        """The facts that are meant and are (not) active now, in log order.

        Raises:
            LogError: nothing of the sort is in the log, all of it is out (or in) already, or a
                fact is meant alone that shares columns with others, or a version of an adapter
                is meant without those that were trained on top of it.
        """
        chosen: dict[str, set[int]] = {}
        self._choose(what, active, chosen)
        if not chosen and what != "all":
            raise LogError("an empty list names nothing in a log. Pass entries, facts or 'all'.")
        if active:
            self._add_repairs(chosen)
        for name, indices in chosen.items():
            edit = self.edits.get(name)
            if edit is not None and edit.joint and len(indices) < len(edit.facts):
                raise LogError(_only_whole(edit, active))
        flags = {name: self.active[name][0] != (name in chosen) for name in self.skills}
        problem = broken_chain(self.skills, flags)
        if problem:
            raise LogError(problem)
        return {name: tuple(sorted(chosen[name])) for name in self.active if name in chosen}

    def dependents(self, columns: Columns) -> list[tuple[str, int]]:
        """Active facts that were solved with the named ones present, without those named.

        They are the other facts of the earliest edit named and all of the edits after it. Edits
        are solved on the model without skills, so none depends on a skill.
        """
        names = [*self.edits]
        first = min((i for i, name in enumerate(names) if name in columns), default=len(names))
        named = {name: set(indices) for name, indices in columns.items()}
        return [
            (name, j)
            for name in names[first:]
            for j, active in enumerate(self.active[name])
            if active and j not in named.get(name, ())
        ]

    def _add_repairs(self, chosen: dict[str, set[int]]) -> None:
        """What later edits repaired goes with it: the last facts of an edit that repaired some."""
        meant: set[Fact] = set()
        for name, edit in self.edits.items():
            repaired = edit.details.get("repaired", 0)
            first = len(edit.facts) - (repaired if isinstance(repaired, int) else 0)
            for j in range(max(0, first), len(edit.facts)):
                if edit.facts[j] in meant and self.active[name][j]:
                    chosen.setdefault(name, set()).add(j)
            meant |= {edit.facts[j] for j in chosen.get(name, ())}

    def _choose(self, what: Any, active: bool, chosen: dict[str, set[int]]) -> None:
        if what == "all":
            found = [(name, j) for name, flags in self.active.items() for j in range(len(flags))]
        elif isinstance(what, str | Edit | Skill):
            found = [(name, j) for name in self._named(what) for j in range(len(self.active[name]))]
        elif isinstance(what, Fact):
            found = self._holding(what)
        elif isinstance(what, tuple) and len(what) == 2 and isinstance(what[1], int):
            found = [self._column(*what)]
        elif isinstance(what, Iterable):
            for item in what:
                self._choose(item, active, chosen)
            return
        else:
            raise LogError(
                f"{what!r} names nothing in a log. Pass an entry or its id, the name of a task, a "
                "Fact, a pair (entry, index of a fact), a list of these, or 'all'."
            )
        fitting = [(name, j) for name, j in found if self.active[name][j] == active]
        if not fitting and what != "all":
            raise LogError(_nothing_to_do(what, active))
        for name, j in fitting:
            chosen.setdefault(name, set()).add(j)

    def _named(self, what: str | Entry) -> list[str]:
        """The entry of an id, or the skills of a task."""
        if isinstance(what, str) and what not in self.active:
            skills = [skill.id for skill in self.skills.values() if skill.task == what]
            if skills:
                return skills
        return [self.find(what).id]

    def last(self, what: str | Entry) -> str:
        """The id of an entry, or of the last skill of a task."""
        return self._named(what)[-1]

    def unsettled(self, moved: Collection[str]) -> tuple[Skill, ...]:
        """Active skills that were trained with other facts of the moved edits than are active."""
        now, place = self.active_edits(), {name: i for i, name in enumerate(self.active)}
        return tuple(
            self.skills[name]
            for name in self.active_skills()
            if any(
                place[edit] < place[name] and self.skills[name].edits.get(edit) != now.get(edit)
                for edit in moved
            )
        )

    def _column(self, what: str | Edit, index: int) -> tuple[str, int]:
        edit = self.find_edit(what)
        if not 0 <= index < len(edit.facts):
            raise LogError(f"{edit.id} has {len(edit.facts)} facts; there is no index {index}.")
        return edit.id, index

    def _holding(self, fact: Fact) -> list[tuple[str, int]]:
        found = [
            (edit.id, j)
            for edit in self.edits.values()
            for j, own in enumerate(edit.facts)
            if same_fact(fact, own)
        ]
        if not found:
            raise LogError(f"no entry of the log holds the fact {str(fact)!r}.")
        return found


def same_fact(asked: Fact, own: Fact) -> bool:
    """Whether a fact is the one asked for; without an old object, any old object fits."""
    if asked.old_object is not None and asked.old_object != own.old_object:
        return False
    keys = ("subject", "prompt", "new_object")
    return all(getattr(asked, key) == getattr(own, key) for key in keys)


def _only_whole(edit: Edit, active: bool) -> str:
    verb, call = ("rolled back", "rollback") if active else ("reapplied", "reapply")
    return (
        f"{edit.id} ({edit.method}) was solved for its {len(edit.facts)} facts together: columns "
        f"of its change belong to all of them, so no fact can be {verb} alone. "
        f"Take the whole entry: log.{call}({edit.id!r})."
    )


def _nothing_to_do(what: Target, active: bool) -> str:
    name = what.id if isinstance(what, Edit | Skill) else str(what)
    if active:
        return f"{name}: nothing to roll back, none of it is active. log.reapply puts it back."
    return f"{name}: nothing to reapply, none of it is rolled back."
